"""Injections as a whole: what a linear model's loss does, counts, and flips one by one."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from esa_ray.applications.calibrated import Calibrated
from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.schema import FAULTS
from esa_ray.scoring.strata import BORDERS, STRATA
from esa_ray.security.inject import inject, single
from esa_ray.security.memory import Memory
from esa_ray.security.protection import Protection
from esa_ray.spec.security import DEFENCES, OF_CRITICAL, FaultSpec
from tests.security.memories import WINDOWS, memory_for
from tests.tiny import state_bits, tiny, window_gradients

COUNTED = ("n_corrected", "n_detected", "n_miscorrected", "n_undetected")


def test_random_flips_move_a_linear_output_as_the_closed_form_says():
    # y = Σ wᵢxᵢ with int8 weights. Each bit flips with probability p: Δwᵢ = s·Σ_b ±2^b over flipped bits, so that
    # E[Δy] = p·Σᵢ xᵢ·μᵢ and Var[Δy] = Σᵢ xᵢ²·s²·p(1 − p)·Σ_b 4^b, with μᵢ = s·Σ_b ±2^b over all bits.
    spec = FaultSpec(dtype="int8", rate=0.004, components=("down",))
    memory = memory_for(spec)
    rng, p, n = np.random.default_rng(0), spec.rate, 300
    with memory:
        address = np.arange(memory.n_weights)
        x, codes = rng.normal(size=len(address)), memory.codes(address)
        before, scale = memory.values(address, codes), memory.values(address, np.ones_like(codes))
        protection, found = Protection(memory), []
        for repeat in range(n):
            edit = inject(memory, protection, spec, 0, repeat).edit
            at = np.empty(0, dtype=int) if edit is None else edit.address
            found.append(x[at] @ (memory.values(at, edit.codes) - before[at]) if len(at) else 0.0)
    place = np.array([1, 2, 4, 8, 16, 32, 64, -128])
    signs = 1 - 2 * (codes[:, None].astype(np.int64) >> np.arange(8) & 1)
    mean = p * (x * scale) @ (signs * place).sum(1)
    variance = p * (1 - p) * ((x * scale) ** 2).sum() * (4.0 ** np.arange(8)).sum()
    found = np.array(found)
    assert abs(found.mean() - mean) < 4 * np.sqrt(variance / n)
    assert (found**2).mean() == pytest.approx(variance + mean**2, rel=0.32)


@pytest.mark.parametrize("protect", [d for d in DEFENCES if d != "rotation"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "int8"])
def test_counts_add_up_and_what_stands_is_what_was_counted(protect, dtype):
    if (protect, dtype) == ("zero-exponent-bit", "int8"):
        return
    critical = {"critical": 0.05} if protect in OF_CRITICAL else {}
    spec = FaultSpec(dtype=dtype, rate=0.003, protect=protect, **critical)
    memory = memory_for(spec, "mixtral")
    before = state_bits(memory.model)
    with memory:
        protection, stored = Protection(memory), state_bits(memory.model)
        weights = {t.name: t.flat_weights().double() for t in memory.tensors}
        for repeat in range(4):
            injection = inject(memory, protection, spec, 5, repeat)
            columns = injection.columns
            assert set(columns) <= set(FAULTS.names)
            if protect == "secded":
                assert sum(columns[name] for name in COUNTED) == columns["n_words"]
            assert (columns["n_words"] is None) == (not protection.coded)
            assert injection.edit is not None
            with injection.edit.standing():
                changed = [t.flat_weights().double() != weights[t.name] for t in memory.tensors]
                assert sum(int(c.sum()) for c in changed) == columns["n_changed"]
                assert {t.name for t in injection.tensors} >= {
                    t.name for t, c in zip(memory.tensors, changed, strict=True) if bool(c.any())
                }
            assert state_bits(memory.model) == stored
    assert state_bits(memory.model) == before


def test_what_a_code_corrects_leaves_no_edit():
    spec = FaultSpec(fault="uniform", rate=1e-6, protect="secded", dtype="int8")
    with memory_for(spec) as memory:
        protection = Protection(memory)
        found = [inject(memory, protection, spec, 0, repeat) for repeat in range(80)]
    assert any(each.columns["n_flips"] for each in found)
    assert all(each.edit is None and each.columns["n_changed"] == 0 for each in found)
    assert all(each.columns["n_corrected"] == each.columns["n_words"] for each in found)


@pytest.mark.parametrize("policy", ["zero", "reload", "stop"])
def test_a_detected_error_changes_weights_by_the_policy_zero_alone(policy):
    spec = FaultSpec(fault="burst", burst=2, events=1, protect="secded", policy=policy)
    with memory_for(spec) as memory:
        injection = inject(memory, Protection(memory), spec, 0, 0)
        assert injection.columns["n_detected"] == 1
        assert (injection.edit is None) == (policy != "zero")


def by_definition(model, components):
    """(component, tensor, flat) → score Σ|g·w|, told weight by weight, and the gradient in nats a token."""
    where = catalogue(model)
    names = [tensor.name for tensor in where.select(components)]
    gradients = window_gradients(model, names, WINDOWS)
    tokens, found = WINDOWS[:, 1:].size, {}
    for name, each in zip(names, gradients, strict=True):
        weight = model.get_parameter(name).double().numpy().ravel()
        part = where[name].locate(np.arange(weight.size))["component"]
        score = np.abs(each.reshape(len(WINDOWS), -1)).sum(0) * np.abs(weight) / tokens
        for flat, component in enumerate(part):
            if component in components:
                found[name, flat] = component, score[flat], each.sum(0).ravel()[flat] / tokens
    return found


@pytest.mark.parametrize("family", ["phi3", "gpt2", "mixtral"])
def test_single_flips_are_drawn_from_ranges_of_the_scores_quantiles_in_each_component(family):
    spec = FaultSpec(fault="single", dtype="fp16", repeats=5, components=("q", "k", "down", "up"))
    memory = memory_for(spec, family)
    model, text = memory.model, Calibrated(memory.model, memory.catalogue, WINDOWS)
    known = by_definition(model, spec.components)
    rows = single(memory, spec, 0, 14, range(5), text)
    with memory:
        found = [(row.columns, row.edit) for row in rows]
    flats = {}
    for columns, edit in found:
        tensor = memory.catalogue[columns["tensor"]]
        flat = tensor.index(columns["row"], columns["col"], columns["expert"] if tensor.experts else None)
        component, score, gradient = known[tensor.name, flat]
        assert columns["component"] == component
        all_scores = np.array([s for c, s, _ in known.values() if c == component])
        low, high = (float(b) for b in columns["stratum"].split("-"))
        # Quantiles are read from a histogram, to within 2⁻⁸.
        assert (all_scores <= score * (1 + 2**-7)).mean() >= low - 1 / len(all_scores)
        assert (all_scores < score * (1 - 2**-7)).mean() <= high + 1 / len(all_scores)
        if columns["predicted"] is not None:
            change = columns["damaged"] - columns["weight"]
            assert columns["predicted"] == pytest.approx(gradient * change, rel=1e-3, abs=1e-7)
        assert (columns["bit_class"], columns["n_flips"], columns["n_undetected"]) == ("exponent", 1, 1)
        assert edit.applied.n_changed == 1
        flats.setdefault((component, columns["stratum"]), set()).add((tensor.name, flat))
        assert columns["repeat"] < 5
    for component in spec.components:
        sizes = {c["stratum"]: c["population"] for c, _ in found if c["component"] == component}
        assert sum(sizes.values()) == sum(c == component for c, _, _ in known.values())
        for stratum, n in sizes.items():
            assert len(flats[component, stratum]) == min(5, n)


def test_packets_of_repeats_and_other_bits_and_dtypes_hit_the_same_weights():
    def places(dtype, bit, repeats, n):
        spec = FaultSpec(fault="single", dtype=dtype, repeats=n, components=("up",))
        memory = memory_for(spec)
        rows = single(memory, spec, 3, bit, repeats, Calibrated(memory.model, memory.catalogue, WINDOWS))
        with memory:
            return {(c["stratum"], c["repeat"]): (c["tensor"], c["row"], c["col"]) for c in (r.columns for r in rows)}

    whole = places("bf16", 3, range(8), 8)
    assert len({*whole.values()}) == len(whole)
    assert places("int8", 7, range(8), 8) == whole
    assert places("bf16", 3, range(4), 8) | places("bf16", 3, range(4, 8), 8) == whole
    assert places("bf16", 3, range(4), 4).items() <= whole.items()


def test_a_bit_that_a_dtype_has_not_is_refused():
    spec = FaultSpec(fault="single", dtype="int8", components=("up",))
    memory = memory_for(spec)
    with pytest.raises(EsaError, match="int8 has the bits 0 to 7; there is no bit 8"):
        single(memory, spec, 0, 8, range(2), Calibrated(memory.model, memory.catalogue, WINDOWS))


def test_strata_are_named_by_their_borders():
    edges = [0.0, *BORDERS, 1.0]
    assert [tuple(map(float, name.split("-"))) for name in STRATA] == list(pairwise(edges))


def test_zero_weights_are_flipped_as_others_are():
    model = tiny("gemma")  # whose norms are all zeros
    spec = FaultSpec(fault="single", components=("norm",), score="magnitude", repeats=3)
    memory = Memory(model, catalogue(model), spec)
    rows = single(memory, spec, 0, 14, range(3), Calibrated(model, memory.catalogue, WINDOWS))
    with memory:
        found = [row.columns for row in rows]
    assert [(c["weight"], c["damaged"], c["population"]) for c in found] == [(0, 2, memory.n_weights)] * 3
    assert torch.equal(model.model.norm.weight, torch.zeros(16))
