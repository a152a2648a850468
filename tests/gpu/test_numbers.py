"""Scores, cells and repetition on a device, beside the CPU in float64."""

import pytest
import torch

from benchmarks.gpu.parity import exact, score_errors
from benchmarks.gpu.subject import METRICS, scores_of, table
from esa_ray.evaluation import Intact, evaluate
from esa_ray.evaluation import intact as intact_module
from esa_ray.models.addressing import catalogue
from esa_ray.models.device import folds_by, kernels_wanted
from esa_ray.perturb.edit import perturbed
from esa_ray.perturb.sites import Sites
from esa_ray.resume import Resumable
from esa_ray.scoring import fold as folding
from esa_ray.spec import PerturbSpec
from tests.tiny import random_windows, tiny

FAMILIES = ("llama", "gpt2", "mixtral", "phi3", "gemma", "gpt_neox")
#: What rounding leaves of a score, as a share of its tensor's largest: 2⁻²⁴ of float32 over sums of some hundred terms.
TOLERANCE = 1e-4
WINDOWS, TEXT = random_windows(4, 24), random_windows(6, 24, seed=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_float64(device, family):
    model = tiny(family)
    errors = score_errors(tiny(family).to(device), exact(model), WINDOWS)
    assert errors.keys() == set(METRICS)
    assert max(errors.values()) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_cells_are_those_of_float64(device, family):
    found = []
    for model in (tiny(family).to(device), exact(tiny(family))):
        weights = catalogue(model)
        tensor = next(t for t in weights.tensors if t.layer == 1 and t.parts[0].component == "down")
        intact = Intact(model, TEXT, tail_stays=True)
        chosen = Sites(weights, {tensor.name: torch.arange(0, tensor.size, 5).numpy()}, intact=True)
        with perturbed(weights, chosen, PerturbSpec(kind="sign_flip"), 0):
            found.append(evaluate(model, TEXT, intact=intact))
    here, truth = found
    assert here.hits == truth.hits
    assert here.nll == pytest.approx(truth.nll, abs=1e-4)
    assert here.kl == pytest.approx(truth.kl, abs=1e-4)
    assert max(truth.kl) > 0.01  # the damage shows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_divergence_from_logits_made_again_is_that_from_kept_ones(device, family, dtype, monkeypatch):
    monkeypatch.setattr(intact_module, "KEEPS_LOGITS", frozenset())  # on the CPU, too, they are made again
    model = tiny(family, dtype=dtype).to(device)
    weights = catalogue(model)
    again, kept = (Intact(model, TEXT, 4, tail_stays=stays) for stays in (True, False))
    assert (again.kind, kept.kind) == ("States", "Logits")
    tensor = next(t for t in weights.tensors if t.layer == 1 and t.parts[0].component == "down")
    chosen = Sites(weights, {tensor.name: torch.arange(0, tensor.size, 5).numpy()}, intact=True)
    with perturbed(weights, chosen, PerturbSpec(kind="sign_flip"), 0):
        found = [evaluate(model, TEXT, 4, intact=intact).kl for intact in (again, kept)]
    # The same logits to the bit, whose softmax over 48 numbers a kernel may sum in an order of its own.
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert min(found[1]) > 1e-3  # the damage shows
    assert max(map(abs, evaluate(model, TEXT, 4, intact=again).kl)) < 1e-6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() or not kernels_wanted(0), reason="needs a CUDA device from Ampere on")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_card_from_ampere_on_folds_by_the_kernel(dtype):
    from esa_ray.scoring import kernels

    assert folding._route(torch.device("cuda:0"), dtype, frozenset(folding.FOLDS)) is kernels.fold
    assert "triton" in folds_by()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_scores_in_sixteen_bits_point_where_those_of_float64_do(device, family, dtype):
    model = tiny(family, dtype=dtype)
    here, truth = scores_of(model.to(device), WINDOWS), scores_of(exact(model), WINDOWS)
    for metric in METRICS:
        for index in range(len(truth.tensors)):
            a, b = (s.of(metric, index).cpu().double() for s in (here, truth))
            assert torch.cosine_similarity(a, b, dim=0) > 0.99, (metric, truth.tensors[index].name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_the_same_study_twice_is_the_same_to_the_bit(device, family, dtype):
    first, second = (table(tiny(family, dtype=dtype).to(device), WINDOWS, TEXT, k=3) for _ in range(2))
    assert first.equals(second)
    assert not first.equals(table(tiny(family, dtype=dtype, seed=1).to(device), WINDOWS, TEXT, k=3))


def test_fused_attention_scores_as_plain_attention_does(device):
    fused, plain = tiny("llama").to(device), tiny("llama").to(device)
    assert fused.config._attn_implementation == "sdpa"
    plain.set_attn_implementation("eager")
    a, b = scores_of(fused, WINDOWS), scores_of(plain, WINDOWS)
    for metric in METRICS:
        for index in range(len(a.tensors)):
            x, y = a.of(metric, index), b.of(metric, index)
            assert (x - y).abs().max() <= TOLERANCE * y.abs().max()


def test_experts_score_what_is_routed_to_them(device):
    model = tiny("mixtral").to(device)
    tensor = next(t for t in catalogue(model).tensors if t.experts)
    with torch.no_grad():  # all tokens to experts 0 and 1: nobody passes the last one
        for block in model.model.layers:
            block.mlp.gate.weight.copy_(torch.zeros_like(block.mlp.gate.weight))
    scores = scores_of(model, WINDOWS)
    index = [t.name for t in scores.tensors].index(tensor.name)
    for metric in ("grad_x_weight", "grad_squared", "act_mag"):
        used = scores.of(metric, index).view(tensor.shape).flatten(1).abs().amax(1) > 0
        assert int(used.sum()) == 2, metric


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_a_resumed_cell_is_the_whole_one(device, family):
    model = tiny(family).to(device)
    weights, resumable = catalogue(model), Resumable(model, TEXT, 3)
    tensor = next(t for t in weights.tensors if t.layer == 1 and t.parts[0].component == "o")
    with perturbed(weights, {tensor.name: torch.arange(40).numpy()}, PerturbSpec(kind="zero"), 0):
        whole = evaluate(model, TEXT, 3)
        resumed = evaluate(model, TEXT, 3, forward=lambda n, _: resumable.logits(1, n))
    assert resumed.nll == pytest.approx(whole.nll, abs=1e-4)
    assert whole.nll != pytest.approx(resumable.intact, abs=1e-2)
