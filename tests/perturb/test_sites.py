"""Weights of a set, all of them in one vector, against the same kinds computed tensor by tensor on the host."""

import numpy as np
import pytest
import torch

from esa_ray.models.addressing import catalogue
from esa_ray.perturb import sites as sites_module
from esa_ray.perturb.edit import perturbed
from esa_ray.perturb.sites import Sites
from esa_ray.spec import PerturbSpec
from tests.perturb.kinds import DTYPES, SPECS, known_of
from tests.perturb.oracle import new_values
from tests.tiny import state_bits, tiny

HALFWAY = PerturbSpec(kind="progressive", strength=0.5, toward=PerturbSpec(kind="quantize", strength=3))


def a_set(found, seed=0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {t.name: rng.permutation(t.size)[: 1 + t.size // 9] for t in found.tensors}


def stored(found, chosen) -> dict[str, bytes]:
    return {n: raw(found[n].flat_weights()[torch.from_numpy(flat)]) for n, flat in chosen.items()}


def raw(values) -> bytes:
    """The bits, with one and the same NaN for all: arithmetic leaves its sign and payload open."""
    return values.masked_fill(values.isnan(), torch.nan).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("spec", [*SPECS, HALFWAY], ids=lambda s: s.label)
def test_new_values_are_to_the_bit_those_of_each_tensor_by_itself_on_the_host(spec, family, dtype):
    model = tiny(family, dtype=dtype)
    found = catalogue(model)
    chosen = a_set(found)
    known = known_of(chosen)
    wanted = {n: new_values(spec, found, n, chosen, (3, 1), known) for n in chosen}
    with perturbed(found, chosen, spec, (3, 1), known) as applied:
        now = stored(found, chosen)
    assert now == {n: raw(w) for n, w in wanted.items()}
    old = {n: found[n].flat_weights()[torch.from_numpy(f)] for n, f in chosen.items()}
    assert applied.n_changed == sum(int((wanted[n] != old[n]).sum()) for n in chosen)
    change = np.concatenate([(wanted[n].double() - old[n].double()).numpy() for n in chosen])
    assert applied.delta_norm == pytest.approx(np.linalg.norm(change), rel=1e-12, nan_ok=True)


def test_a_model_of_two_dtypes_has_each_of_its_weights_damaged_in_its_own():
    model = tiny("llama", dtype=torch.bfloat16)
    for block in model.model.layers:
        block.input_layernorm.float()
    found, spec = catalogue(model), PerturbSpec(kind="gauss_noise", strength=0.3, relative_to="tensor")
    chosen = {t.name: np.arange(0, t.size, 5) for t in found.tensors}
    assert len(Sites(found, chosen).groups) == 2
    before, wanted = state_bits(model), {n: new_values(spec, found, n, chosen, (0,), {}) for n in chosen}
    with perturbed(found, chosen, spec, 0) as applied:
        assert stored(found, chosen) == {n: raw(w) for n, w in wanted.items()}
    assert applied.n_weights == sum(map(len, chosen.values()))
    assert state_bits(model) == before


@pytest.mark.parametrize("intact", [True, False])
def test_a_set_can_be_damaged_again_and_again(intact, monkeypatch):
    model = tiny("mixtral")
    found = catalogue(model)
    chosen, before, taken = a_set(found), state_bits(model), []
    real = sites_module.standard_deviation
    monkeypatch.setattr(sites_module, "standard_deviation", lambda values: taken.append(1) or real(values))
    mine, spec = Sites(found, chosen, intact=intact), PerturbSpec(kind="gauss_noise", relative_to="tensor")
    for seed in (0, 1, 0):
        with perturbed(found, chosen, spec, seed):
            wanted = stored(found, chosen)
        counted = len(taken)
        with perturbed(found, mine, spec, seed):
            assert stored(found, chosen) == wanted
        if seed == 1:
            assert len(taken) - counted == (0 if intact else len(chosen))
    assert state_bits(model) == before
    assert dict(mine).keys() == chosen.keys()


def test_what_is_known_of_tensors_outlives_an_edit_that_sets_weights_to_it():
    model = tiny("llama").double()  # the mean needs no rounding to be a weight
    found, name = catalogue(model), "model.layers.0.mlp.down_proj.weight"
    mine, wanted = Sites(found, {name: np.arange(5)}, intact=True), float(found[name].flat_weights().mean())
    for _ in range(3):
        with perturbed(found, mine, PerturbSpec(kind="set_mean"), 0):
            assert found[name].flat_weights()[:5].tolist() == pytest.approx([wanted] * 5, rel=1e-12)


def test_in_an_edit_within_an_edit_tensors_are_taken_as_they_stand():
    model = tiny("llama")
    found, name = catalogue(model), "model.layers.0.mlp.down_proj.weight"
    half, spec = np.arange(0, 384, 2), PerturbSpec(kind="set_mean")
    with perturbed(found, {name: half}, PerturbSpec(kind="scale", strength=5.0), 0):
        wanted = float(found[name].flat_weights().double().mean())
        with perturbed(found, {name: np.array([1])}, spec, 0):
            assert float(found[name].flat_weights()[1]) == pytest.approx(wanted, rel=1e-6)


def test_statistics_of_large_tensors_come_in_pieces(monkeypatch):
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    for chunk in (7, 1000):
        monkeypatch.setattr(sites_module, "CHUNK", chunk)
        exact = values.double().numpy()
        assert float(sites_module.mean(values)) == pytest.approx(exact.mean(), rel=1e-12)
        assert float(sites_module.standard_deviation(values)) == pytest.approx(exact.std(), rel=1e-12)
        assert float(sites_module.largest(values)) == np.abs(exact).max()
