"""The trial of every model type: tiny configs are what they should be, checks can fail, and the table is whole."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, __version__
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from analysis.documents.architectures import COLUMNS, NAMED, document
from benchmarks.architectures import checks, recipes, run
from benchmarks.architectures.shrink import tiny
from esa_ray.scoring.gather import score_tensors

TABLE = Path(__file__).parents[1] / "docs/results/architectures.json"


def test_a_llama_is_shrunk_to_two_blocks_of_width_32():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny("llama"))
    # q and o of 4 heads of 8, k and v of 2, gate, up and down of 64, two norms; embedding, head and the last norm.
    block = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32 + 2 * 32
    assert sum(p.numel() for p in model.parameters()) == 2 * block + 2 * 258 * 32 + 32


def test_a_hybrid_keeps_one_block_of_each_kind():
    config = tiny("qwen3_next")
    assert sorted(config.layer_types) == ["full_attention", "linear_attention"]
    assert config.num_experts == 4
    assert config.num_experts_per_tok == 2


def test_a_model_inside_a_model_is_shrunk_too():
    config = tiny("gemma3")
    assert config.text_config.hidden_size == config.vision_config.hidden_size == 32
    assert set(config.text_config.layer_types) == {"sliding_attention", "full_attention"}
    assert config.text_config.num_hidden_layers == 2


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return checks.Subject(recipes.write("llama", tmp_path_factory.mktemp("llama")))


def test_a_type_of_which_all_holds_works(subject):
    assert {name: run._checked(subject, check)["status"] for name, check in checks.CHECKS.items()} == dict.fromkeys(
        checks.CHECKS, "ok"
    )


def test_a_wrong_score_and_a_wrong_norm_are_noticed(subject, monkeypatch):
    def off(model, tensors, windows, metrics):
        with torch.no_grad():
            tensors[3].parameter[0, 0] += 0.5
        try:
            return score_tensors(model, tensors, windows, metrics)
        finally:
            with torch.no_grad():
                tensors[3].parameter[0, 0] -= 0.5

    monkeypatch.setattr(checks, "score_tensors", off)
    for check in (checks.scores, checks.activations):
        with pytest.raises(AssertionError, match=r"is off by|differs from plain autograd"):
            check(subject)


def test_a_matrix_that_isnt_addressed_is_noticed(subject):
    other = checks.Subject(subject.directory)
    lost = other.weights.tensors[2].name
    object.__setattr__(other.weights, "tensors", tuple(t for t in other.weights.tensors if t.name != lost))
    with pytest.raises(AssertionError, match=f"1 matrices are neither addressed nor listed: {lost}"):
        checks.coverage(other)


def test_a_model_that_looks_ahead_is_noticed():
    ahead = AutoModelForCausalLM.from_config(tiny("bert", is_decoder=False)).eval()
    assert not checks.causal(ahead)
    assert checks.causal(recipes.build("bert"))


@pytest.mark.parametrize(
    ("work", "said"), [(lambda _: os._exit(3), "the process ended with 3"), (lambda _: time.sleep(1e6), "took longer")]
)
def test_a_type_that_crashes_or_hangs_is_a_row_like_any_other(monkeypatch, work, said):
    monkeypatch.setattr(run, "tried", work)
    found = run.apart("llama", seconds=0.2 if "longer" in said else 60)
    assert said in found["ended"]
    assert not run.works(found)


@pytest.mark.skipif(
    json.loads(TABLE.read_text())["environment"]["transformers"] != __version__, reason="made with another transformers"
)
def test_the_table_has_every_type_of_the_mapping():
    rows = json.loads(TABLE.read_text(encoding="utf-8"))["types"]
    assert [row["type"] for row in rows] == sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert all(row.get("absent") or row.get("ended") or set(row["checks"]) == set(COLUMNS) for row in rows)
    assert {kind for kinds in NAMED.values() for kind in kinds} <= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def test_the_document_tells_which_types_work_and_what_is_the_matter_with_the_others():
    good = {name: {"status": "ok", "note": ""} for name in COLUMNS}
    good["coverage"] |= {
        "known": 0.96,
        "other": 0.04,
        "left_out": 0.0,
        "unaddressed": [],
        "unknown": ["a.b"],
        "components": ["q", "down"],
    }
    bad = good | {"scores": {"status": "failed", "note": "grad_squared of w | x differs"}}
    rows = [
        {"type": "fine", "works": True, "checks": good}, {"type": "wrong", "works": False, "checks": bad},
        {"type": "gone", "works": False, "checks": {}, "absent": "needs timm"},
        {"type": "slow", "works": False, "checks": {}, "ended": "took longer than 120 s"},
    ]  # fmt: skip
    text = document("T", "C", {"environment": {"transformers": "5", "date": "2026-01-01"}, "types": rows})
    assert "**4 types**" in text
    assert "**3 can be made here, and 1 of them work: 33.3%.**" in text
    assert "- `wrong`: scores: grad_squared of w \\| x differs" in text
    assert "- `gone`: needs timm" in text
    assert "- `slow`: took longer than 120 s" in text
    assert "| fine | ok | 96% | ok | ok | ok | ok | ok | ok | ok | q, down |" in text
    assert "- `fine`: `a.b`" in text
    assert "**rwkv doesn't**" in text
