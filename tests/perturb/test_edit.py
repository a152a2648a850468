import math
from contextlib import ExitStack
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy import stats

from esa_ray.models.addressing import WeightTensor, catalogue
from esa_ray.perturb.edit import NotRestoredError, Write, perturbed
from esa_ray.perturb.fixed import UnchangeableError, rounds_away
from esa_ray.perturb.known import Known
from esa_ray.spec import PerturbSpec
from tests.perturb.kinds import DTYPES, SPECS, known_of
from tests.questions import questions
from tests.tiny import FAMILIES, random_windows, state_bits, summed_nll, tiny

DOWN = "model.layers.0.mlp.down_proj.weight"
# NaNs with payloads, quiet and signalling, infinities, both zeros, subnormals: bit patterns by width.
AWKWARD = {
    4: [0x7FC00001, 0xFFC12345, 0x7F800001, 0x7F800000, 0xFF800000, 0x80000000, 0x00000001, 0x807FFFFF],
    2: [0x7FC1, 0xFFFF, 0x7F81, 0x7F80, 0xFF80, 0x8000, 0x0001, 0x807F, 0x7C00, 0xFC00, 0x7E01],
}


class Boom(Exception):
    pass


def plant_awkward_bits(model) -> None:
    for name, parameter in model.named_parameters():
        if "mlp" in name and parameter.dim() > 1:
            width = parameter.element_size()
            patterns = np.array(AWKWARD[width], dtype=f"u{width}").view(f"i{width}")
            raw = parameter.data.view(-1).view(torch.int32 if width == 4 else torch.int16)
            raw[: len(patterns)] = torch.as_tensor(patterns)


def with_value(values: list[float], dtype: torch.dtype = torch.float32):
    """A tiny Llama whose first down-projection begins with these values."""
    model = tiny("llama", dtype=dtype)
    model.model.layers[0].mlp.down_proj.weight.data.view(-1)[: len(values)] = torch.tensor(values, dtype=dtype)
    return model, catalogue(model), {DOWN: np.arange(len(values))}


def values(model, n: int) -> torch.Tensor:
    return model.model.layers[0].mlp.down_proj.weight.data.view(-1)[:n].clone()


@pytest.mark.filterwarnings("ignore:invalid value")  # infinities among the planted weights
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
@given(data=st.data())
@settings(max_examples=25, deadline=None, phases=[Phase.generate])  # shrinking whole models takes minutes
def test_any_sequence_of_edits_broken_off_or_not_leaves_every_bit_in_place(family, dtype, data):
    model = tiny(family, dtype=dtype)
    plant_awkward_bits(model)
    found = catalogue(model)
    before = state_bits(model)
    for _ in range(data.draw(st.integers(1, 5))):
        chosen = {}
        for tensor in data.draw(st.lists(st.sampled_from(found.tensors), min_size=1, max_size=3, unique=True)):
            flat = st.lists(st.integers(0, min(tensor.size, 40) - 1), min_size=1, max_size=12, unique=True)
            chosen[tensor.name] = np.array(data.draw(flat))
        failure = data.draw(st.sampled_from([None, Boom, KeyboardInterrupt]))
        try:
            spec, seed = data.draw(st.sampled_from(SPECS)), data.draw(st.integers(0, 5))
            with perturbed(found, chosen, spec, seed, known_of(chosen)) as applied:
                assert (state_bits(model) == before) == (applied.n_changed == 0)
                if failure:
                    raise failure
        except (Boom, KeyboardInterrupt, UnchangeableError):
            pass
        assert state_bits(model) == before


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.label)
def test_the_bodys_own_exception_comes_through_and_the_weights_are_back(spec):
    model = tiny("gpt_neox")
    before = state_bits(model)
    found = catalogue(model)
    chosen, inside = {t.name: np.arange(5) for t in found.tensors}, []

    def body() -> None:
        with perturbed(found, chosen, spec, 1, known_of(chosen)):
            inside.append(state_bits(model))
            raise Boom

    with pytest.raises(Boom):
        body()
    assert inside[0] != before
    assert state_bits(model) == before


def test_nested_edits_of_the_same_weights_come_undone_in_turn():
    model, found, chosen = with_value([1.0, 2.0])
    before = state_bits(model)
    with ExitStack() as stack:
        stack.enter_context(perturbed(found, chosen, PerturbSpec(kind="sign_flip"), seed=0))
        with perturbed(found, chosen, PerturbSpec(kind="zero"), seed=0):
            assert values(model, 2).tolist() == [0.0, 0.0]
        assert values(model, 2).tolist() == [-1.0, -2.0]
    assert state_bits(model) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_chosen_weights_change_and_the_model_feels_it(family):
    model, window = tiny(family), random_windows(1)[0]
    found = catalogue(model)
    tensor = found.select(("down",))[0]
    snapshot = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        intact = float(summed_nll(model, window))
        flat = np.arange(0, tensor.size, 2)
        with perturbed(found, {tensor.name: flat}, PerturbSpec(kind="zero"), seed=0) as applied:
            damaged = float(summed_nll(model, window))
            for name, parameter in model.named_parameters():
                wanted = snapshot[name].clone()
                if name == tensor.name:
                    wanted.view(-1)[::2] = 0
                assert torch.equal(parameter, wanted), name
        assert damaged != intact
        assert float(summed_nll(model, window)) == intact
    assert (applied.n_weights, applied.n_changed) == (len(flat), len(flat))
    gone = snapshot[tensor.name].view(-1)[::2].double().numpy()
    assert applied.delta_norm == pytest.approx(np.linalg.norm(gone), rel=1e-12)


def test_an_edit_of_a_tied_weight_shows_in_both_its_uses():
    model = tiny("llama", tied=True)
    with perturbed(catalogue(model), {"model.embed_tokens.weight": np.array([5])}, PerturbSpec(kind="zero"), seed=0):
        assert float(model.lm_head.weight[0, 5]) == float(model.model.embed_tokens.weight[0, 5]) == 0.0


def test_counts_and_norm_are_taken_over_all_tensors_together():
    model = tiny("llama")
    found = catalogue(model)
    chosen = {t.name: np.arange(4) for t in found.select(("q", "down"))}
    flats = [found[name].parameter.detach().view(-1)[:4].double().numpy() for name in chosen]
    with perturbed(found, chosen, PerturbSpec(kind="sign_flip"), seed=0) as applied:
        pass
    assert (applied.n_weights, applied.n_changed) == (16, 16)
    assert applied.delta_norm == pytest.approx(2 * np.linalg.norm(np.concatenate(flats)), rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sign_flip_with_full_strength_negates_exactly(dtype):
    given_values = [1.5, -0.3, 1e-7, 6e4]
    model, found, chosen = with_value(given_values, dtype)
    before = values(model, 4)
    with perturbed(found, chosen, PerturbSpec(kind="sign_flip"), seed=0):
        assert values(model, 4).tolist() == [-v for v in before.tolist()]


@pytest.mark.parametrize("strength", [0.25, 0.5, 2.0])
def test_sign_flip_multiplies_by_one_minus_twice_its_strength(strength):
    model, found, chosen = with_value([1.0, -3.0, 0.1])
    with perturbed(found, chosen, PerturbSpec(kind="sign_flip", strength=strength), seed=0):
        wanted = [np.float32((1 - 2 * strength) * float(np.float32(v))) for v in (1.0, -3.0, 0.1)]
        assert values(model, 3).tolist() == pytest.approx([float(w) for w in wanted], rel=1e-7)


def noise(relative_to: str, sigma: float = 0.1, *, seed: int = 3, flat=None) -> tuple[np.ndarray, np.ndarray, float]:
    """(old, change, standard deviation of the tensor) of a 16 × 24 matrix under noise, float64."""
    model = tiny("llama")
    found = catalogue(model)
    old = found[DOWN].parameter.detach().view(-1).double().numpy().copy()
    flat = np.arange(384) if flat is None else flat
    spec = PerturbSpec(kind="gauss_noise", strength=sigma, relative_to=relative_to)
    with perturbed(found, {DOWN: flat}, spec, seed=seed) as applied:
        new = found[DOWN].parameter.detach().view(-1).double().numpy().copy()
    assert applied.delta_norm == pytest.approx(np.linalg.norm(new - old), rel=1e-9)
    return old[flat], (new - old)[flat], old.std()


@pytest.mark.parametrize("relative_to", ["weight", "tensor"])
def test_noise_has_the_moments_of_its_theory(relative_to):
    pooled = []
    for seed in range(40):
        old, change, std = noise(relative_to, seed=seed)
        pooled.append(change / (0.1 * (np.abs(old) if relative_to == "weight" else std)))
    epsilon = np.concatenate(pooled)
    n = len(epsilon)
    assert n == 40 * 384
    assert abs(epsilon.mean()) < 4 / math.sqrt(n)
    assert abs(epsilon.var() - 1) < 4 * math.sqrt(2 / n)
    assert stats.kstest(epsilon, "norm").pvalue > 1e-3


def test_noise_relative_to_the_tensor_is_as_large_for_small_weights_and_relative_to_the_weight_is_not():
    for relative_to, wanted in (("weight", 1.0), ("tensor", 0.0)):
        old, change, _ = noise(relative_to)
        slope = stats.linregress(np.log(np.abs(old)), np.log(np.abs(change))).slope
        assert slope == pytest.approx(wanted, abs=0.25)


def test_the_same_weight_gets_the_same_noise_in_every_set_and_at_every_strength():
    _, everything, _ = noise("weight")
    some = np.array([300, 4, 77])
    _, change, _ = noise("weight", flat=some)
    assert change.tolist() == everything[some].tolist()
    _, doubled, _ = noise("weight", 0.2, flat=some)
    assert doubled == pytest.approx(2 * change, rel=1e-4, abs=1e-7)
    _, other, _ = noise("weight", seed=4, flat=some)
    assert not np.isclose(other, change, rtol=0.05).all()


def test_different_tensors_get_different_noise():
    model = tiny("llama")
    found = catalogue(model)
    names = [f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)]
    old = [found[n].parameter.detach().clone() for n in names]
    spec = PerturbSpec(kind="gauss_noise", strength=0.1)
    with perturbed(found, {n: np.arange(384) for n in names}, spec, seed=0):
        draws = [((found[n].parameter - o) / o.abs()).flatten().numpy() for n, o in zip(names, old, strict=True)]
    assert abs(np.corrcoef(*draws)[0, 1]) < 0.2


def test_a_bit_flip_of_the_sign_bit_with_certainty_negates():
    model, found, chosen = with_value([1.5, -0.3], torch.bfloat16)
    before = values(model, 2)
    with perturbed(found, chosen, PerturbSpec(kind="bit_flip", strength=1.0, bits="sign"), seed=0):
        assert values(model, 2).tolist() == [-v for v in before.tolist()]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", ["mantissa", "exponent"])
def test_mantissa_flips_stay_within_a_factor_of_two_and_exponent_flips_do_not(dtype, bits):
    model = tiny("llama", dtype=dtype)
    found = catalogue(model)
    old = found[DOWN].parameter.detach().double().flatten()
    with perturbed(found, {DOWN: np.arange(384)}, PerturbSpec(kind="bit_flip", strength=0.5, bits=bits), seed=0):
        new = found[DOWN].parameter.detach().double().flatten()
    ratio = (new / old).abs()
    inside = ((ratio > 0.5) & (ratio < 2)).double().mean()
    assert inside == 1.0 if bits == "mantissa" else inside < 0.2
    assert (torch.sign(new) == torch.sign(old)).double().nanmean() > 0.9


def test_infinity_and_nan_are_outcomes_of_a_bit_flip_and_are_taken_back():
    model, found, chosen = with_value([1.5, 1.0], torch.float16)
    with perturbed(found, chosen, PerturbSpec(kind="bit_flip", strength=1.0, bits="exponent"), seed=0):
        # 1.5 and 1.0 have the exponent 01111: all five bits flipped it is 10000, that is 2.
        assert values(model, 2).tolist() == [3.0, 2.0]
    model, found, chosen = with_value([1.5 * 2**-14, 2.0**-14, 1.5 * 2.0**-24], torch.float16)
    before = state_bits(model)
    with perturbed(found, chosen, PerturbSpec(kind="bit_flip", strength=1.0, bits="exponent"), seed=0) as applied:
        assert not torch.isfinite(values(model, 3)[2])  # subnormal, exponent 00000 → 11111
    assert applied.n_changed == 3
    assert not math.isfinite(applied.delta_norm)
    assert state_bits(model) == before


def run_nothing(given_values, label, known=None):
    """What damage that changes nothing amounts to; the block must run, on weights that are as they were to the bit."""
    model, found, chosen = with_value(given_values)
    before, inside = state_bits(model), []
    with perturbed(found, chosen, PerturbSpec.parse(label), 0, known) as applied:
        inside.append(state_bits(model))
    assert inside == [before]
    assert state_bits(model) == before
    return applied


@pytest.mark.parametrize(
    ("given_values", "label"),
    [
        ([1.0, 2.0], "bit_flip-1e-12"),
        ([1.0, 2.0], "bit_flip-sign-1e-12"),
        ([0.0, 2.0], "bit_flip-sign-1e-12"),
        ([0.0, 0.0], "bit_flip-1e-12"),
        ([1.0, 2.0], "gauss_noise-1e-12"),
        ([0.0, -0.0], "gauss_noise-tensor-1e-60"),
        ([1e3, -0.0], "quantize-4"),
        ([1e3], "quantize-2"),
        ([1e3], "progressive-quantize-4-0.5"),
        ([1.0, -1.0], "adaptive-row-1e-12"),
        ([1.0], "correlated-1e-12"),
    ],
)
def test_a_draw_or_an_edit_that_happens_to_change_nothing_is_an_outcome(given_values, label):
    applied = run_nothing(given_values, label)
    assert (applied.n_weights, applied.n_changed, applied.delta_norm) == (len(given_values), 0, 0.0)


def test_a_mean_that_weights_have_already_is_an_outcome():
    model, found, chosen = with_value([0.0, 0.0])
    rest = model.model.layers[0].mlp.down_proj.weight.data.view(-1)
    rest[2:193] = -rest[193:384]  # values and their negatives, and two zeros: the mean is 0
    with perturbed(found, chosen, PerturbSpec(kind="set_mean"), seed=0) as applied:
        pass
    assert (applied.n_weights, applied.n_changed) == (2, 0)


@pytest.mark.parametrize(
    "label",
    ["zero", "sign_flip", "sign_flip-0.3", "scale-0.5", "gauss_noise-0.5", "correlated-0.5", "correlated-layer-0.5",
     "gradient_aligned", "gradient_opposed", "quantize-4", "quantize-tensor-2", "bit_flip-sign-1", "adaptive",
     "progressive-zero-0.5", "progressive-gauss_noise-0.5-0.3"],
)  # fmt: skip
def test_zeros_under_damage_in_proportion_to_the_weight_are_refused_and_the_body_never_runs(label):
    model, found, chosen = with_value([0.0, -0.0, 0.0])
    known = {DOWN: Known(score=np.zeros(3), gradient=np.ones(3))}
    before, ran = state_bits(model), []
    with (
        pytest.raises(UnchangeableError, match=r"can't change any of the 3 weights, as .* 0$") as refused,
        perturbed(found, chosen, PerturbSpec.parse(label), 0, known),
    ):
        ran.append(1)
    assert not ran
    assert refused.value.n_weights == 3
    assert state_bits(model) == before


@pytest.mark.parametrize("kind", ["gradient_aligned", "gradient_opposed", "progressive-gradient_aligned-0.5"])
def test_weights_without_a_gradient_cannot_follow_it(kind):
    _, found, chosen = with_value([1.0, 0.0, 3.0])
    spec = PerturbSpec.parse(kind)
    for gradient, refused in (([0.0, 5.0, 0.0], True), ([0.0, 5.0, 1e-30], False)):
        known = {DOWN: Known(gradient=np.array(gradient))}
        with ExitStack() as stack:
            if refused:
                stack.enter_context(pytest.raises(UnchangeableError, match="every one is 0 or has gradient 0"))
            applied = stack.enter_context(perturbed(found, chosen, spec, 0, known))
            assert applied.n_changed == 1


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("gauss_noise-tensor-0.5", "relative to"),
        ("correlated-tensor-0.5", "relative to"),
        ("adaptive-row-0.5", "adapted to"),
    ],
)
def test_noise_is_refused_where_its_own_measure_is_zero_and_not_where_the_weight_is(label, words):
    model, found, chosen = with_value([0.0, 0.0])
    spec = PerturbSpec.parse(label)
    with perturbed(found, chosen, spec, seed=0) as applied:
        assert applied.n_changed == 2
    model.model.layers[0].mlp.down_proj.weight.data.zero_()
    with pytest.raises(UnchangeableError, match=words), perturbed(found, chosen, spec, seed=0):
        pass


def test_choosing_no_weights_at_all_is_an_error():
    with (
        pytest.raises(UnchangeableError, match="zero has no weights to change"),
        perturbed(catalogue(tiny()), {}, PerturbSpec(kind="zero"), seed=0),
    ):
        pass


@pytest.mark.parametrize(("dtype", "mantissa"), [(torch.bfloat16, 7), (torch.float16, 10)])
def test_steps_that_are_said_to_round_away_do_for_every_number_of_the_dtype_and_larger_ones_do_not(dtype, mantissa):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    w = bits.view(dtype)
    w = w[torch.isfinite(w)]
    edge = 2.0 ** -(mantissa + 2)
    for step, stays in ((edge, True), (1.01 * edge, False)):
        for factor in (1 + step, 1 - step):
            spec = PerturbSpec(kind="scale", strength=factor)
            assert spec.step_rounds_away(mantissa) == stays
            if stays:
                assert torch.equal((w.double() * factor).to(dtype), w)
    assert not torch.equal((w.double() * (1 - 1.01 * edge)).to(dtype), w)


def test_a_step_rounds_away_only_where_it_does_in_all_dtypes_of_the_weights():
    spec = PerturbSpec.parse("progressive-sign_flip-0.001")  # 0.002 of a weight
    assert rounds_away(PerturbSpec.parse("gradient_aligned-0.001"), [torch.bfloat16])
    assert not rounds_away(spec, [torch.bfloat16])
    assert rounds_away(PerturbSpec.parse("progressive-sign_flip-0.0009"), [torch.bfloat16])
    assert not rounds_away(PerturbSpec.parse("scale-1.001"), [torch.bfloat16, torch.float32])
    for chance in ("gauss_noise-1e-30", "bit_flip-1e-30", "quantize-16", "set_mean"):
        assert not rounds_away(PerturbSpec.parse(chance), [torch.bfloat16])


def test_one_changed_weight_among_unchanged_ones_is_enough_and_is_counted():
    _, found, chosen = with_value([0.0, 5.0, 0.0])
    with perturbed(found, chosen, PerturbSpec(kind="zero"), seed=0) as applied:
        pass
    assert (applied.n_weights, applied.n_changed, applied.delta_norm) == (3, 1, 5.0)


def test_a_nan_that_no_bit_of_flips_is_not_counted_as_changed():
    _, found, chosen = with_value([math.nan, math.nan])
    with perturbed(found, chosen, PerturbSpec(kind="bit_flip", strength=1e-12), seed=0) as applied:
        pass
    assert (applied.n_weights, applied.n_changed) == (2, 0)


@pytest.mark.parametrize(
    "chosen",
    [
        {DOWN: np.array([0, 1]), "no.such.tensor": np.array([0])},
        {DOWN: np.array([0, 1, 0])},
        {DOWN: np.array([0, 384])},
        {DOWN: np.array([383, -1])},
    ],
    ids=["unknown tensor", "twice", "beyond the end", "twice by a negative index"],
)
def test_a_choice_that_makes_no_sense_is_refused_before_anything_is_written(chosen):
    model = tiny("llama")
    before, ran = state_bits(model), []
    with (
        pytest.raises((KeyError, ValueError, IndexError)),
        perturbed(catalogue(model), chosen, PerturbSpec(kind="zero"), seed=0),
    ):
        ran.append(1)
    assert not ran
    assert state_bits(model) == before


UP = DOWN.replace("down", "up")


def failing(monkeypatch, owner, name: str, error: BaseException, when) -> None:
    """Let a method raise at those of its calls, counted from 0, for which ``when(number, *arguments)`` holds."""
    real, calls = getattr(owner, name), count()

    def method(*arguments, **more):
        if when(next(calls), *arguments):
            raise error
        return real(*arguments, **more)

    monkeypatch.setattr(owner, name, method)


def two_tensors():
    model = tiny("llama")
    return model, catalogue(model), {DOWN: np.arange(4), UP: np.arange(4)}


MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def test_weights_that_do_not_come_back_are_an_error(monkeypatch):
    _, found, chosen = with_value([1.0, 2.0])
    with pytest.raises(NotRestoredError, match="bit for bit"), perturbed(found, chosen, PerturbSpec(kind="zero"), 0):
        monkeypatch.setattr(WeightTensor, "write", lambda *_: None)


def test_a_weight_that_comes_back_with_another_sign_of_zero_is_an_error(monkeypatch):
    _, found, chosen = with_value([0.0, 1.0])
    real = WeightTensor.write
    with pytest.raises(NotRestoredError, match="bit for bit"), perturbed(found, chosen, PerturbSpec(kind="zero"), 0):
        monkeypatch.setattr(
            WeightTensor, "write", lambda self, at, new: real(self, at, torch.where(new == 0, -0.0, new))
        )
    assert found[DOWN].flat_weights()[:2].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("error", [MEMORY, MemoryError(), RuntimeError("CUDA error"), KeyboardInterrupt()])
@pytest.mark.parametrize("body", [None, Boom()])
@pytest.mark.parametrize("stuck", [DOWN, UP])
def test_an_edit_that_cannot_be_written_back_is_not_restored_and_all_else_is(monkeypatch, error, body, stuck):
    model, found, chosen = two_tensors()
    before = state_bits(model)

    def cell() -> None:
        with perturbed(found, chosen, PerturbSpec(kind="sign_flip"), 0):
            failing(monkeypatch, WeightTensor, "write", error, lambda _, tensor, *__: tensor.name == stuck)
            if body:
                raise body

    with pytest.raises(NotRestoredError) as raised:
        cell()
    assert raised.value.__cause__ is error
    assert raised.value.__context__ in (error, body)
    assert [name for name, bits in state_bits(model).items() if bits != before[name]] == [stuck]


@pytest.mark.parametrize("error", [MEMORY, KeyboardInterrupt()])
def test_an_edit_whose_restoration_cannot_be_checked_is_not_restored(monkeypatch, error):
    model, found, chosen = two_tensors()
    before = state_bits(model)
    with pytest.raises(NotRestoredError) as raised, perturbed(found, chosen, PerturbSpec(kind="zero"), 0):
        failing(monkeypatch, torch, "index_select", error, lambda *_: True)
    assert raised.value.__cause__ is error
    monkeypatch.undo()
    assert state_bits(model) == before


@pytest.mark.parametrize("error", [MEMORY, KeyboardInterrupt()])
@pytest.mark.parametrize("body", [None, Boom()])
def test_originals_that_can_be_written_back_at_the_second_try_are(monkeypatch, error, body):
    model, found, chosen = two_tensors()
    before, raised = state_bits(model), None
    try:
        with perturbed(found, chosen, PerturbSpec(kind="sign_flip"), 0):
            failing(monkeypatch, WeightTensor, "write", error, lambda number, *_: number == 0)
            if body:
                raise body
    except BaseException as caught:
        raised = caught
    assert state_bits(model) == before
    assert raised is (error if isinstance(error, KeyboardInterrupt) else body)


@pytest.mark.parametrize("step", ["take_back", "_parts", "check"])
@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupt_anywhere_in_a_restoration_leaves_no_damage_unsaid(monkeypatch, step, times):
    model, found, chosen = two_tensors()
    before, error = state_bits(model), KeyboardInterrupt()
    with (
        pytest.raises(NotRestoredError if times > 1 else KeyboardInterrupt) as raised,
        perturbed(found, chosen, PerturbSpec(kind="zero"), 0),
    ):
        failing(monkeypatch, Write, step, error, lambda number, *_: number < times)
    assert raised.value is error or raised.value.__cause__ is error
    assert (state_bits(model) == before) == (times == 1 or step == "check")


@pytest.mark.parametrize("error", [MEMORY, KeyboardInterrupt()])
@pytest.mark.parametrize("at", [0, 1])
def test_an_edit_that_cannot_be_applied_is_taken_back(monkeypatch, error, at):
    model, found, chosen = two_tensors()
    before, ran = state_bits(model), []
    failing(monkeypatch, WeightTensor, "write", error, lambda number, *_: number == at)
    with pytest.raises(type(error)), perturbed(found, chosen, PerturbSpec(kind="zero"), 0):
        ran.append(1)
    assert not ran
    assert state_bits(model) == before


@pytest.mark.parametrize("dtype", DTYPES)
def test_taking_an_edit_back_asks_for_no_memory(dtype):
    model = tiny("llama", dtype=dtype)
    found, chosen = catalogue(model), {name: np.arange(300) for name in (DOWN, UP)}
    before = state_bits(model)
    with ExitStack() as stack, torch.profiler.profile(profile_memory=True) as profile:
        stack.enter_context(perturbed(found, chosen, PerturbSpec(kind="zero"), 0))
        with torch.profiler.record_function("restoring"):
            stack.close()
    assert state_bits(model) == before
    (restoring,) = [event for event in profile.events() if event.name == "restoring"]
    span, of_a_weight = restoring.time_range, sum(map(len, chosen.values()))
    asked = [e.self_cpu_memory_usage for e in profile.events() if span.start <= e.time_range.start <= span.end]
    assert len(asked) > 5
    assert max(asked) < of_a_weight  # not even a byte each


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.label)
def test_an_edit_asks_a_device_twice_however_many_tensors_it_touches(spec):
    found = catalogue(tiny("mixtral"))
    for n in (2, len(found.tensors)):
        chosen = {t.name: np.arange(6) for t in found.tensors[-n:]}
        known = {name: replace(k, weight_per_score=1.0) for name, k in known_of(chosen).items()}
        with questions() as asked, perturbed(found, chosen, spec, 0, known):
            pass
        assert asked == {"tolist": 1, "__bool__": 1}
