"""Each kind of damage against its formula in float64, another library, or the theory of its draws."""

import math

import numpy as np
import pytest
import torch

from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.perturb.edit import perturbed
from esa_ray.perturb.known import Known
from esa_ray.spec import PerturbSpec
from tests.tiny import random_windows, summed_nll, tiny

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def damaged(model, chosen, spec, draw=0, known=None) -> dict[str, np.ndarray]:
    """New values of the chosen weights, by tensor, float64."""
    found = catalogue(model)
    with perturbed(found, chosen, spec, draw, known):
        return {n: found[n].flat_weights()[torch.as_tensor(f)].double().numpy() for n, f in chosen.items()}


def changes(model, chosen, spec, draws, known=None) -> np.ndarray:
    """How each of so many draws changes the chosen weights, tensor after tensor: draws × weights, float64."""
    found = catalogue(model)
    parts = {n: (found[n], torch.as_tensor(f)) for n, f in chosen.items()}

    def now() -> np.ndarray:
        return np.concatenate([t.flat_weights()[f].double().numpy() for t, f in parts.values()])

    old, new = now(), []
    for draw in range(draws):
        with perturbed(found, chosen, spec, draw, known):
            new.append(now())
    return np.array(new) - old


def all_of(model, component="down") -> dict[str, np.ndarray]:
    return {t.name: np.arange(t.size) for t in catalogue(model).select((component,))}


def values(model, name) -> np.ndarray:
    return catalogue(model)[name].flat_weights().double().numpy()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [0.5, -1.0, 3.0, 0.0])
def test_scale_multiplies(dtype, alpha):
    model = tiny("llama", dtype=dtype)
    for name, new in damaged(model, all_of(model), PerturbSpec(kind="scale", strength=alpha)).items():
        wanted = torch.as_tensor(alpha * values(model, name)).to(dtype).double().numpy()
        assert new.tolist() == wanted.tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_set_mean_sets_the_tensors_mean(dtype):
    model = tiny("gpt2", dtype=dtype)
    chosen = {name: flat[:7] for name, flat in all_of(model).items()}
    for name, new in damaged(model, chosen, PerturbSpec(kind="set_mean")).items():
        mean = torch.tensor(math.fsum(values(model, name)) / values(model, name).size, dtype=torch.float64).to(dtype)
        assert new == pytest.approx([float(mean)] * 7, rel=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("per", ["row", "tensor"])
def test_quantization_is_torchs_symmetric_one(family, bits, per):
    model = tiny(family)
    found, top = catalogue(model), 2 ** (bits - 1) - 1
    for name, new in damaged(model, all_of(model), PerturbSpec(kind="quantize", strength=bits, per=per)).items():
        tensor = found[name]
        weight = tensor.parameter.detach()
        matrices = weight.mT if tensor.transposed else weight  # output rows first
        lines = matrices.reshape(-1, matrices.shape[-1])
        if per == "row":
            step = lines.abs().amax(-1) / top
            wanted = torch.fake_quantize_per_channel_affine(lines, step, torch.zeros(len(step)).int(), 0, -top, top)
        else:
            wanted = torch.fake_quantize_per_tensor_affine(lines, float(lines.abs().max() / top), 0, -top, top)
        wanted = wanted.view(matrices.shape)
        wanted = (wanted.mT if tensor.transposed else wanted).flatten().double().numpy()
        # A value halfway between two levels in float32 may fall to the other side in float64.
        off = ~np.isclose(new, wanted, rtol=1e-5, atol=1e-7)
        assert off.mean() < 0.01
        assert len({*np.round(new / new[new != 0].__abs__().min()).tolist()}) <= 2**bits * (
            len(lines) if per == "row" else 1
        )


def test_quantizing_a_few_weights_uses_the_step_of_their_whole_row():
    model = tiny("llama")
    name = "model.layers.0.mlp.down_proj.weight"
    everything = damaged(model, {name: np.arange(384)}, PerturbSpec(kind="quantize", strength=3))[name]
    some = np.array([5, 200, 30])
    assert (
        damaged(model, {name: some}, PerturbSpec(kind="quantize", strength=3))[name].tolist()
        == everything[some].tolist()
    )


def _gradients(model, window):
    model.requires_grad_(True)
    summed_nll(model, window).backward()
    return {t.name: t.parameter.grad.flatten().clone() for t in catalogue(model).select(("down",))}


@pytest.mark.parametrize(("kind", "sign"), [("gradient_aligned", 1), ("gradient_opposed", -1)])
def test_steps_along_the_gradient_change_the_loss_as_first_order_says(kind, sign):
    model, window, step = tiny("llama").double(), random_windows(1)[0], 1e-4  # norms compute in float32
    gradient = _gradients(model, window)
    found, chosen = catalogue(model), all_of(model)
    known = {name: Known(gradient=g.numpy()) for name, g in gradient.items()}
    with torch.no_grad():
        before = float(summed_nll(model, window))
        with perturbed(found, chosen, PerturbSpec(kind=kind, strength=step), 0, known):
            change = float(summed_nll(model, window)) - before
    first_order = sign * step * sum(float((g * found[n].flat_weights()).abs().sum()) for n, g in gradient.items())
    assert change == pytest.approx(first_order, rel=5e-3)


def test_a_weight_without_gradient_stays_where_it_is():
    model, name = tiny("llama"), "model.layers.0.mlp.down_proj.weight"
    known = {name: Known(gradient=np.array([0.0, 2.0]))}
    new = damaged(model, {name: np.array([3, 4])}, PerturbSpec(kind="gradient_aligned"), known=known)[name]
    old = values(model, name)[[3, 4]]
    assert new[0] == old[0]
    assert new[1] == pytest.approx(old[1] + 0.1 * abs(old[1]), rel=1e-6)


@pytest.mark.parametrize(("kind", "fact"), [("gradient_opposed", "gradient"), ("adaptive", "score")])
@pytest.mark.parametrize("known", [None, np.array([1.0, math.nan])])
def test_a_kind_that_needs_what_is_not_known_says_so(kind, fact, known):
    model, name = tiny("llama"), "model.layers.0.mlp.down_proj.weight"
    facts = {name: Known(**{fact: known})}
    with pytest.raises(EsaError, match=f"needs the {fact}"):
        damaged(model, {name: np.array([3, 4])}, PerturbSpec(kind=kind), known=facts)


UNITS = {
    # Two weights of one row, one of another row, one of another tensor of the layer, one of the other layer.
    "row": [0, 0, 1, 2, 3],
    "layer": [0, 0, 0, 0, 1],
    "component": [0, 0, 0, 1, 0],
}


@pytest.mark.parametrize("shared", UNITS)
@pytest.mark.parametrize("relative_to", ["weight", "tensor"])
def test_shared_draws_have_the_covariance_of_their_theory(shared, relative_to):
    model, sigma, draws = tiny("llama"), 0.1, 3000
    down, up = "model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.up_proj.weight"
    chosen = {down: np.array([2, 5, 30]), up: np.array([7]), down.replace("0", "1"): np.array([2])}
    old = np.concatenate([values(model, n)[f] for n, f in chosen.items()])
    spec = PerturbSpec(kind="correlated", shared=shared, strength=sigma, relative_to=relative_to)
    change = changes(model, chosen, spec, draws)
    scale = np.abs(old)
    if relative_to == "tensor":
        scale = np.concatenate([[values(model, n).std()] * len(f) for n, f in chosen.items()])
    unit = np.array(UNITS[shared])
    wanted = (unit[:, None] == unit) * sigma**2 * np.outer(scale, scale)
    error = (change.T @ change / draws - wanted) / (sigma**2 * np.outer(scale, scale))
    assert np.abs(error).max() < 5 * math.sqrt(2 / draws)
    assert np.abs(change.mean(axis=0) / (sigma * scale)).max() < 5 / math.sqrt(draws)


def test_adaptive_noise_spends_the_norm_of_plain_noise_where_the_score_is():
    model, sigma, draws = tiny("llama"), 0.1, 1500
    names = [t.name for t in catalogue(model).select(("down",))]
    chosen = {n: np.array([1, 8, 90]) for n in names}
    scores = {n: np.array([1.0, 2.0, 5.0]) * (i + 1) for i, n in enumerate(names)}
    known = {n: Known(score=s) for n, s in scores.items()}
    old, score = (np.concatenate([*d.values()]) for d in ({n: values(model, n)[f] for n, f in chosen.items()}, scores))
    spec = PerturbSpec(kind="adaptive", strength=sigma)
    change = changes(model, chosen, spec, draws, known)
    variance = sigma**2 * score**2 * (old @ old) / (score @ score)
    assert (change**2).mean(axis=0) == pytest.approx(variance, rel=5 * math.sqrt(2 / draws))
    assert (change**2).sum(axis=1).mean() == pytest.approx(sigma**2 * (old @ old), rel=0.15)


def test_adaptive_noise_by_row_is_as_large_as_the_rows_root_mean_square():
    model, name = tiny("gpt2"), "transformer.h.0.mlp.c_proj.weight"  # stored (in, out)
    flat, draws = np.array([0, 17, 200]), 1500
    change = changes(model, {name: flat}, PerturbSpec(kind="adaptive", adapt="row", strength=0.1), draws)
    weight = catalogue(model)[name].parameter.detach().double().numpy()
    rms = np.sqrt((weight**2).mean(axis=0))[flat % weight.shape[1]]
    assert (change**2).mean(axis=0) == pytest.approx(0.01 * rms**2, rel=5 * math.sqrt(2 / draws))


@pytest.mark.parametrize("toward", ["sign_flip", "gauss_noise-0.3", "bit_flip-mantissa-0.5", "quantize-2", "set_mean"])
def test_a_path_leads_straight_to_where_its_end_is(toward):
    model, chosen = tiny("llama"), all_of(tiny("llama"))
    end = damaged(model, chosen, PerturbSpec.parse(toward))
    for part in (0.25, 0.5, 1.0):
        on_way = damaged(model, chosen, PerturbSpec.parse(f"progressive-{toward}-{part}"))
        for name, old in ((n, values(model, n)) for n in chosen):
            assert on_way[name] == pytest.approx(old + part * (end[name] - old), rel=1e-6, abs=1e-9)


def test_a_repetition_draws_anew_and_the_first_is_the_seeds_own():
    model, chosen = tiny("llama"), all_of(tiny("llama"))
    for label in (
        "gauss_noise-0.1",
        "bit_flip-mantissa-0.3",
        "correlated-0.1",
        "correlated-layer-0.1",
        "adaptive-row-0.1",
    ):
        spec = PerturbSpec.parse(label)
        name = next(iter(chosen))
        first, again, second = (damaged(model, chosen, spec, draw)[name] for draw in (3, (3,), (3, 1)))
        assert first.tolist() == again.tolist()
        assert not np.isclose(first, second, rtol=1e-3).all()
