"""Models whose weights wait on the CPU or on disk are compressed as the same ones as a whole."""

import copy

import accelerate
import pytest
import torch

from esa_ray.applications.calibrated import Calibrated
from esa_ray.applications.compress import compressed
from esa_ray.applications.kept import replacing
from esa_ray.applications.tuning import tune
from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.models.slots import values, write
from esa_ray.spec import TuneSpec
from esa_ray.spec.compression import PruneSpec, QuantizeSpec
from tests.tiny import random_windows, tiny

CAL = random_windows(4)


def offloaded(family: str, where: str, directory):
    model = tiny(family)
    if where == "disk":
        return accelerate.disk_offload(model, str(directory), execution_device=torch.device("cpu"))
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize(
    "spec",
    [PruneSpec(), PruneSpec(update="refit", score="grad_x_weight_abs"), PruneSpec(score="regional"),
     QuantizeSpec(bits=3, kept=0.01)],
    ids=lambda spec: spec.label,
)  # fmt: skip
def test_offloaded_weights_are_compressed_as_resident_ones_and_restored(tmp_path, family, where, spec):
    resident, tokens = tiny(family), torch.as_tensor(CAL)
    away = offloaded(family, where, tmp_path)
    intact = away(tokens).logits
    with compressed(resident, catalogue(resident), CAL, spec) as expected:
        logits = copy.deepcopy(resident)(tokens).logits
    with compressed(away, catalogue(away), CAL, spec) as found:
        torch.testing.assert_close(away(tokens).logits, logits, rtol=1e-4, atol=1e-5)
        assert found.digest == expected.digest
        assert (found.n_changed, found.n_pruned) == (expected.n_changed, expected.n_pruned)
    assert torch.equal(away(tokens).logits, intact)


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_sparse_edits_of_a_replaced_weight_are_seen_and_taken_back(tmp_path, where):
    model = offloaded("llama", where, tmp_path)
    tensor = catalogue(model)["model.layers.0.mlp.up_proj.weight"]
    stored = tensor.flat_weights().clone()
    at = torch.tensor([3])
    with replacing() as kept:
        kept.write(tensor, torch.ones(tensor.size))
        write(tensor.slots, at, torch.tensor([5.0]))
        assert values(tensor.slots[0]).flatten()[:5].tolist() == [1, 1, 1, 5, 1]
        write(tensor.slots, at, torch.tensor([1.0]))
        assert bool((values(tensor.slots[0]) == 1).all())
    assert torch.equal(tensor.flat_weights(), stored)


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_weights_have_no_memory_to_be_held_or_tuned_in(tmp_path, where):
    model = offloaded("llama", where, tmp_path)
    weights = catalogue(model)
    with (
        replacing() as kept,
        pytest.raises(EsaError, match=r"q_proj.weight is offloaded and can't be tuned; take a larger"),
    ):
        kept.hold(weights["model.layers.0.self_attn.q_proj.weight"])
    text, spec = Calibrated(model, weights, CAL), TuneSpec(steps=4)
    sentence = r"is offloaded, and only a model that is all in memory can be tuned; take a larger device, or a smaller"
    with replacing() as kept, pytest.raises(EsaError, match=sentence):
        tune(model, weights, spec, 0, CAL, source=text, target=text, kept=kept)
