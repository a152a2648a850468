"""Resumed losses against full forward passes and against a float64 twin, for every kind of architecture."""

import copy
import math

import numpy as np
import pytest
import torch

from esa_ray.errors import EsaError
from esa_ray.evaluation import evaluate
from esa_ray.models.addressing import catalogue
from esa_ray.perturb.edit import perturbed
from esa_ray.resume import HEAD_TOLERANCE, LinearHead, Resumable
from esa_ray.spec import PerturbSpec
from tests.families import CAPPED, MODELS, _patched, build
from tests.questions import questions
from tests.tiny import random_windows, state_bits, summed_nll, tiny

WINDOWS = random_windows(3, 10)
TOKENS = 9


def truth(twin) -> np.ndarray:
    return np.array([float(summed_nll(twin, window)) for window in WINDOWS])


def double(model):
    twin = copy.deepcopy(model).double()
    if twin.config.model_type == "mixtral":
        twin.config._experts_implementation = "eager"
    return twin


def edits(weights):
    """One weight of every component of every tensor, by name, tensor and index."""
    for tensor in weights.tensors:
        for part in range(len(tensor.parts)):
            mine = tensor.weights_of(part) if len(tensor.parts) > 1 else np.arange(tensor.size)
            yield tensor, int(mine[len(mine) // 3])


@pytest.mark.parametrize("family", MODELS)
def test_every_edit_is_measured_as_full_forwards_measure_it(family):
    model = build(family)
    weights, rivals = catalogue(model), [Resumable(model, WINDOWS, 2, head_shortcut=s) for s in (True, False)]
    twin = double(model)
    theirs, intact, exact = catalogue(twin), np.array(evaluate(model, WINDOWS, 2).nll), truth(twin)
    assert rivals[0].intact == pytest.approx(exact, abs=1e-6 * TOKENS)
    for spec in (PerturbSpec(kind="zero"), PerturbSpec(kind="sign_flip", strength=100.0)):
        for tensor, flat in edits(weights):
            where = {tensor.name: np.array([flat])}
            if float(tensor.flat_weights()[flat]) == 0:
                continue  # Gemma's norms begin at 0
            with perturbed(weights, where, spec, 0):
                both = [r.delta_nll(r.starts_at(tensor)) for r in rivals]
                full = np.array(evaluate(model, WINDOWS, 2).nll) - intact
            with perturbed(theirs, where, spec, 0):
                right = truth(twin) - exact
            scale = 1 + np.abs(right)  # a change of 100 nats is known to fewer decimals than one of 0.01
            for found in both:
                assert (np.abs(found - full) < 3e-6 * TOKENS * scale).all(), tensor.name
                assert (np.abs(found - right) < 3e-6 * TOKENS * scale).all(), tensor.name


@pytest.mark.parametrize("family", MODELS)
def test_the_head_is_skipped_where_it_is_linear_and_only_there(family):
    model = build(family)
    weights, resumable = catalogue(model), Resumable(model, WINDOWS)
    tensor = next(t for t in weights.tensors if t.layer == 1)
    with perturbed(weights, {tensor.name: np.array([1])}, PerturbSpec(kind="gauss_noise", strength=1e-3), 0):
        resumable.delta_nll(1)
    assert (resumable.head_share == 1.0) == (family in CAPPED)
    assert family in CAPPED or resumable.head_share < 0.2


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("strength", [1e-4, 1e-2, 1.0, 1e3])
def test_small_and_large_damage_to_many_weights_is_that_of_a_float64_twin(family, strength):
    model = build(family)
    weights, resumable, twin = catalogue(model), Resumable(model, WINDOWS), double(model)
    last = resumable.depth - 1
    where = {t.name: np.arange(0, t.size, 7) for t in weights.tensors if t.layer == last and len(t.shape) > 1}
    before, spec = truth(twin), PerturbSpec(kind="gauss_noise", strength=strength)
    with perturbed(weights, where, spec, 3):
        found = resumable.delta_nll(last)
        damaged = double(model)
    right = truth(damaged) - before
    assert np.abs(found - right).max() < 1e-6 * TOKENS + 1e-5 * np.abs(right).max()


@pytest.mark.parametrize("family", MODELS)
def test_what_lies_outside_the_blocks_is_resumed_as_far_as_that_is_right(family):
    model = build(family)
    weights, resumable = catalogue(model), Resumable(model, WINDOWS)
    outside = [t for t in weights.tensors if t.layer is None]
    starts = {t.parts[0].component: resumable.starts_at(t) for t in outside if "embeddings" not in t.name}
    assert resumable.starts_at(weights.tensors[0]) is None
    assert starts.get("head", resumable.depth) == starts["norm"] == resumable.depth
    assert starts.get("embed") is None
    for tensor in outside:
        intact = np.array(evaluate(model, WINDOWS).nll)
        with torch.no_grad():
            tensor.flat_weights()[::3] += 0.5
        full = np.array(evaluate(model, WINDOWS).nll) - intact
        assert resumable.delta_nll(resumable.starts_at(tensor)) == pytest.approx(full, abs=1e-5), tensor.name
        with torch.no_grad():
            tensor.flat_weights()[::3] -= 0.5
        resumable = Resumable(model, WINDOWS)


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_of_a_tied_model_starts_at_the_embedding(tied):
    model = tiny("llama", tied=tied)
    weights, resumable = catalogue(model), Resumable(model, WINDOWS)
    starts = {t.name: resumable.starts_at(t) for t in weights.tensors if t.layer is None}
    heads = {} if tied else {"lm_head.weight": resumable.depth}
    assert starts == {"model.embed_tokens.weight": None, "model.norm.weight": resumable.depth} | heads


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])
def test_damage_that_diverges_is_not_finite_and_nothing_sticks(poison):
    model = tiny("llama")
    resumable = Resumable(model, WINDOWS)
    weight = model.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        old = weight[3, 4].clone()
        weight[3, 4] = poison
    found, full = resumable.delta_nll(1), np.array(evaluate(model, WINDOWS).nll) - resumable.intact
    assert np.array_equal(np.isfinite(found), np.isfinite(full))
    assert np.isfinite(found).all() == (poison == 1e30)
    np.testing.assert_allclose(found, full, rtol=1e-5)
    with torch.no_grad():
        weight[3, 4] = old
    assert np.array_equal(resumable.delta_nll(1), np.zeros(len(WINDOWS)))


def test_a_model_that_passes_one_window_at_a_time_diverges_for_that_window_alone():
    model, windows = tiny("llama"), random_windows(3)
    windows[windows == 7] = 8
    windows[1, 3] = 7
    with torch.no_grad():
        model.model.embed_tokens.weight[7] *= 1e4
    resumable = Resumable(model, windows)
    with torch.no_grad():
        model.model.embed_tokens.weight[7, 0] = math.nan
    assert np.isnan(resumable.delta_nll(None)).tolist() == [False, True, False]


def test_blocks_before_the_damage_are_not_run():
    model, ran = tiny("gpt_neox"), []
    resumable = Resumable(model, WINDOWS)
    for number, block in enumerate(model.gpt_neox.layers):
        block.mlp.register_forward_hook(lambda *_, number=number: ran.append(number))
    resumable.delta_nll(1)
    assert ran == [1]
    resumable.delta_nll(resumable.depth)
    assert ran == [1]
    resumable.delta_nll(None)
    assert ran == [1, 0, 1]


def test_the_model_is_as_it_was_after_results_and_after_exceptions(monkeypatch):
    model = build("qwen2").train()
    before = state_bits(model)
    resumable = Resumable(model, WINDOWS)
    for layer in (0, 2, 4, None):
        resumable.delta_nll(layer)
    assert not _patched(model)
    monkeypatch.setattr(type(model.model.norm), "forward", lambda *_: 1 / 0)
    for attempt in (lambda: resumable.delta_nll(2), lambda: Resumable(model, WINDOWS)):
        with pytest.raises(ZeroDivisionError):
            attempt()
        assert not _patched(model)
    monkeypatch.undo()
    assert state_bits(model) == before
    assert model.training
    assert resumable.delta_nll(1) == pytest.approx(np.zeros(len(WINDOWS)))


def test_a_forward_that_someone_else_put_there_is_kept():
    model = tiny("llama")
    block, calls = model.model.layers[1], []
    inner = block.forward
    block.forward = lambda *args, **kwargs: calls.append(1) or inner(*args, **kwargs)
    wrapped = block.forward
    resumable = Resumable(model, WINDOWS)
    calls.clear()
    resumable.delta_nll(1)
    assert calls == [1]
    resumable.delta_nll(2)
    assert calls == [1]
    assert block.forward is wrapped


def test_a_model_whose_blocks_read_more_than_the_hidden_state_is_refused():
    model, seen = tiny("llama"), []
    first, last = model.model.layers[0], model.model.layers[1]
    first.register_forward_hook(lambda _, __, output: seen.append(output))
    last.register_forward_hook(lambda _, __, output: output + seen[-1])
    with pytest.raises(EsaError, match="more of earlier ones than the hidden state"):
        Resumable(model, WINDOWS)


def test_a_model_whose_blocks_need_what_earlier_ones_leave_is_refused():
    model, left = tiny("llama"), {}
    first, last = model.model.layers[0], model.model.layers[1]
    first.self_attn.register_forward_hook(lambda *_: left.update(there=1))
    last.register_forward_pre_hook(lambda *_: left.pop("there") and None)
    with pytest.raises(EsaError, match=r"more of earlier ones than the hidden state.*there"):
        Resumable(model, WINDOWS)


def test_a_block_must_be_one_and_the_intact_loss_finite():
    model = tiny("llama")
    resumable = Resumable(model, WINDOWS)
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match="from 0 to 2"):
            resumable.delta_nll(wrong)
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    with pytest.raises(EsaError, match="NaN or infinite"):
        Resumable(model, WINDOWS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_give_exactly_what_full_forwards_give(dtype):
    model = tiny("llama", dtype=dtype)
    weights, resumable = catalogue(model), Resumable(model, WINDOWS)
    intact = np.array(evaluate(model, WINDOWS).nll)
    with perturbed(weights, {"model.layers.1.mlp.down_proj.weight": np.array([5])}, PerturbSpec(kind="zero"), 0):
        full = np.array(evaluate(model, WINDOWS).nll) - intact
        assert resumable.delta_nll(1) == pytest.approx(full, abs=1e-9)
    assert resumable.head_share == 1.0


def exact_change(head, hidden_MH, change_MH, target_M):
    """By definition, in float64."""
    hidden, head = hidden_MH.double(), copy.deepcopy(head).double()
    after, before = head(hidden + change_MH.double()), head(hidden)
    return (torch.log_softmax(before, -1) - torch.log_softmax(after, -1)).gather(-1, target_M[:, None])[:, 0]


@pytest.mark.parametrize("scale", [1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 1.0, 30.0])
@torch.inference_mode()
def test_a_head_s_change_is_within_its_tolerance_at_every_scale(scale):
    torch.manual_seed(1)
    head, hidden, target = torch.nn.Linear(24, 200), 2 * torch.randn(300, 24), torch.randint(200, (300,))
    mine = LinearHead(head, hidden, target)
    damaged = hidden + scale * torch.randn(300, 24)
    found, exact = mine.delta(damaged)
    error = (found - exact_change(head, hidden, damaged - hidden, target)).abs()
    assert error.max() < 6 * HEAD_TOLERANCE * max(1.0, scale)
    assert error.mean() < HEAD_TOLERANCE * max(0.5, scale)
    # Tiny changes are known to more digits than a float32 loss has.
    assert scale > 1e-4 or error.max() < HEAD_TOLERANCE / 2
    assert (exact == 0) == (scale <= 1e-3)
    assert (exact == 300) == (scale >= 1e-2)


@torch.inference_mode()
def test_second_order_is_estimated_without_bias():
    torch.manual_seed(2)
    head, hidden, target = torch.nn.Linear(24, 200, bias=False), torch.randn(2000, 24), torch.randint(200, (2000,))
    head.weight += 0.3 * torch.randn(24)  # moves all logits alike: no part of the variance
    change = 1e-3 * torch.randn(24).expand(2000, 24)
    mine, weight = LinearHead(head, hidden, target), head.weight.double()
    second, exact = mine.delta(hidden + change)
    assert exact == 0
    second -= (mine._gradient_MH * (hidden + change - hidden)).sum(-1, dtype=torch.float64)
    p, delta = (hidden.double() @ weight.T).softmax(-1), change.double() @ weight.T
    variance = (p * delta**2).sum(-1) - (p * delta).sum(-1) ** 2
    ratio = 2 * second / variance
    assert float(ratio.mean()) == pytest.approx(1.0, abs=5 * 0.5 / 2000**0.5)
    assert float(ratio.std()) == pytest.approx(0.5, abs=0.05)


@torch.inference_mode()
def test_two_tokens_that_share_all_of_p_are_not_missed():
    # Random signs would give two opposite vectors the same sign in all rows, for one token in 128.
    head = torch.nn.Linear(2, 50, bias=False)
    head.weight.copy_(torch.zeros(50, 2))
    head.weight[0], head.weight[1] = torch.tensor([30.0, 1.0]), torch.tensor([30.0, -1.0])
    hidden = torch.tensor([1.0, 0.0]).expand(3000, 2)
    mine = LinearHead(head, hidden, torch.zeros(3000, dtype=torch.long))
    change = torch.tensor([0.0, 0.3]).expand(3000, 2)
    found, exact = mine.delta(hidden + change)
    assert exact == 3000
    assert found == pytest.approx(exact_change(head, hidden, change, torch.zeros(3000, dtype=torch.long)))


@torch.inference_mode()
def test_a_word_that_is_unlikely_now_and_certain_after_is_not_missed():
    # Its variance is 1e-9 · 25², which looks small enough.
    head = torch.nn.Linear(2, 20, bias=False)
    head.weight.zero_()
    head.weight[0, 0], head.weight[1, 1], head.weight[2:, 0] = 1.0, 1.0, -1.0
    hidden, target = torch.tensor([[20.7, 0.0]]), torch.zeros(1, dtype=torch.long)
    found, exact = LinearHead(head, hidden, target).delta(hidden + torch.tensor([[0.0, 25.0]]))
    assert exact == 1
    assert float(found) == pytest.approx(math.log1p(math.exp(25 - 20.7)), abs=1e-4)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@torch.inference_mode()
def test_a_token_that_is_not_finite_passes_through_the_head_alone(poison):
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(8, 20), torch.randn(6, 8)
    mine, damaged = LinearHead(head, hidden, torch.arange(6)), hidden + 1e-6
    damaged[2, 1] = poison
    found, exact = mine.delta(damaged)
    assert exact == 1
    assert torch.isfinite(found).tolist() == [True, True, False, True, True, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_jitter_moves_every_number_of_a_state_by_one_unit_and_takes_it_back(dtype):
    model = tiny("llama", dtype=dtype)
    resumable = Resumable(model, random_windows(3))
    before = [state.clone() for states in resumable._states for state in states]
    seen = []
    for stream in ("a", "a", "b"):
        with resumable.jittered(1, stream):
            moved = resumable._states[0][1]
            seen.append(resumable.delta_nll(1))
            infinity = torch.full_like(moved, torch.inf)
            up, down = (torch.nextafter(before[1], s * infinity) for s in (1, -1))
            assert ((moved == up) | (moved == down) | (before[1] == 0)).all()
            assert 0.4 < float((moved == up).float().mean()) < 0.6
    after = [state for states in resumable._states for state in states]
    assert all(map(torch.equal, before, after))
    assert (seen[0] == seen[1]).all()
    assert (seen[0] != seen[2]).any()
    assert (resumable.delta_nll(1) == 0).all()


def test_jitter_is_as_large_as_the_rounding_that_float64_shows():
    model, windows = tiny("llama"), random_windows(40, 12)
    resumable = Resumable(model, windows)
    noise = []
    for stream in range(30):
        with resumable.jittered(0, stream):
            noise.append(resumable.delta_nll(0))
    twin = tiny("llama").double()
    with torch.no_grad():
        rounding = resumable.intact - np.array([float(summed_nll(twin, window)) for window in windows])
    assert 1 / 4 < np.std(noise) / np.std(rounding) < 4


@pytest.mark.parametrize("head_shortcut", [True, False])
def test_a_device_is_asked_for_all_windows_at_once(head_shortcut):
    model, counts = tiny("gpt_neox"), []
    for n in (2, 12):
        resumable = Resumable(model, random_windows(n), 1, head_shortcut=head_shortcut)
        with perturbed(
            catalogue(model), {"gpt_neox.layers.1.mlp.dense_4h_to_h.weight": [3]}, PerturbSpec(kind="zero"), 0
        ):
            with questions() as asked:
                resumable.delta_nll(1)
            counts.append(asked)
    assert counts[0] == counts[1]
    assert counts[0] == {"cpu": 1, "numpy": 1, **({"tolist": 1} if head_shortcut else {})}
    assert resumable.through_head > 0


def test_changes_past_the_head_are_to_the_bit_those_of_each_batch_by_itself():
    model = tiny("llama")
    resumable = Resumable(model, random_windows(7), 2)
    with perturbed(catalogue(model), {"model.layers.1.mlp.down_proj.weight": [3]}, PerturbSpec(kind="zero"), 0):
        found, wanted = resumable.delta_nll(1), []
        for number, head in enumerate(resumable._heads):
            final = []
            hook = model.lm_head.register_forward_pre_hook(lambda _, args, final=final: final.append(args[0]))
            resumable.logits(1, number)
            hook.remove()
            with torch.inference_mode():
                delta, _ = head.delta(final[0][:, :-1].flatten(0, 1))
            wanted += delta.view(-1, 9).sum(-1).tolist()
    assert found.tolist() == wanted


@pytest.mark.parametrize(
    ("error", "raised"),
    [(torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError), (KeyError(1), EsaError)],
)
def test_a_check_that_runs_out_of_memory_says_nothing_of_the_model(monkeypatch, error, raised):
    def logits(*_):
        raise error

    monkeypatch.setattr(Resumable, "logits", logits)
    with pytest.raises(raised):
        Resumable(tiny("llama"), WINDOWS)
