import math

import numpy as np
import pytest
import torch

from esa_ray.evaluation import Intact, Outcome, evaluate
from esa_ray.evaluation import tokens as tokens_module
from esa_ray.evaluation.tokens import pieces
from tests.questions import questions
from tests.tiny import FAMILIES, random_windows, state_bits, tiny


def reference(model, windows: np.ndarray) -> tuple[list[float], list[int]]:
    """NLL and hits a window from a float64 log-softmax in numpy of the logits of that window alone."""
    nll, hits = [], []
    for window in windows:
        with torch.no_grad():
            logits = model(torch.as_tensor(window)[None]).logits[0].double().numpy()
        total, right = [], 0
        for t, token in enumerate(window[1:]):
            row = logits[t] - logits[t].max()
            total.append(math.log(math.fsum(np.exp(row))) - row[token])
            right += int(max(range(len(row)), key=row.__getitem__) == token)
        nll.append(math.fsum(total))
        hits.append(right)
    return nll, hits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_loss_and_hits_are_those_of_a_float64_log_softmax(family, batch_size):
    model, windows = tiny(family), random_windows(5, 12)
    outcome = evaluate(model, windows, batch_size)
    nll, hits = reference(model, windows)
    assert outcome.nll == pytest.approx(nll, rel=2e-6)
    assert outcome.hits == hits


def test_hits_count_the_tokens_that_the_model_would_have_chosen():
    model = tiny("llama")
    window = [5]
    for _ in range(9):
        with torch.no_grad():
            window.append(int(model(torch.tensor([window])).logits[0, -1].argmax()))
    spoiled = [*window[:-1], (window[-1] + 1) % 48]
    outcome = evaluate(model, np.array([window, spoiled]))
    assert outcome.hits == [9, 8]


def test_each_window_scores_one_token_less_than_it_has():
    assert evaluate(tiny(), random_windows(3, 12)).tokens == [11, 11, 11]


def test_the_first_token_is_context_and_is_not_scored():
    model = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()  # every next token has probability 1/48, wherever it stands
    assert evaluate(model, random_windows(2, 7)).nll == pytest.approx([6 * math.log(48)] * 2, rel=1e-6)


def test_a_bf16_model_is_scored_from_its_own_logits_in_full_precision():
    model, windows = tiny("llama", dtype=torch.bfloat16), random_windows(3, 12)
    nll, hits = reference(model, windows)
    outcome = evaluate(model, windows, batch_size=1)
    assert outcome.nll == pytest.approx(nll, rel=1e-6)
    assert outcome.hits == hits


def test_evaluating_leaves_the_model_as_it_was():
    model = tiny("mixtral")
    before = state_bits(model)
    evaluate(model, random_windows(2))
    assert state_bits(model) == before


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_model_that_gives_nan_has_diverged_and_the_others_have_not(poison):
    model, windows = tiny("llama"), random_windows(3)
    windows[windows == 7] = 8
    windows[1, 3] = 7
    assert not evaluate(model, windows).diverged
    with torch.no_grad():
        model.model.embed_tokens.weight[7, 0] = poison
    outcome = evaluate(model, windows)
    assert outcome.diverged
    assert [math.isfinite(x) for x in outcome.nll] == [True, False, True]


def test_ratios_are_sums_before_division():
    outcome = Outcome(nll=[1.0, 10.0], tokens=[1, 4], hits=[0, 0])
    assert outcome.nll_per_token == pytest.approx(11 / 5)
    assert outcome.perplexity == pytest.approx(math.exp(11 / 5))


def test_perplexity_beyond_floats_is_infinite():
    assert Outcome(nll=[1e6], tokens=[1], hits=[0]).perplexity == math.inf


def window_by_window(model, windows: np.ndarray, batch_size: int) -> tuple[list[float], list[int]]:
    """Loss and hits from whole windows of a batch's logits, one after the other."""
    nll, hits = [], []
    with torch.inference_mode():
        for batch in torch.from_numpy(windows).split(batch_size):
            for logits, tokens in zip(model(batch, use_cache=False).logits, batch, strict=True):
                scores, target = logits[:-1].float(), tokens[1:]
                partition = scores.logsumexp(-1).double()
                nll.append(float((partition - scores.gather(-1, target[:, None])[:, 0].double()).sum()))
                hits.append(int((scores.argmax(-1) == target).sum()))
    return nll, hits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [2, 3, 12, 40])
@pytest.mark.parametrize("chunk", [1, 48 * 7, 48 * 30, 1 << 19])
def test_losses_are_to_the_bit_those_of_whole_windows_however_they_are_cut(dtype, length, chunk, monkeypatch):
    monkeypatch.setattr(tokens_module, "ON_CPU", chunk)
    model, windows = tiny("llama", dtype=dtype), random_windows(7, length)
    outcome = evaluate(model, windows, 3)
    assert (outcome.nll, outcome.hits) == window_by_window(model, windows, 3)


@pytest.mark.parametrize(
    ("windows", "positions", "vocabulary"), [(1, 1, 9), (3, 127, 49152), (8, 11, 48), (2, 5, 10**6)]
)
def test_pieces_are_all_of_a_batch_and_never_single_rows_of_a_long_window(windows, positions, vocabulary):
    for device in (torch.device("cpu"), torch.device("cuda")):
        seen = np.zeros((windows, positions), int)
        for b, t in pieces(windows, positions, vocabulary, device):
            seen[b, t] += 1
            assert min(2, positions) <= seen[b, t].shape[1]
            assert seen[b, t].size <= max(7, tokens_module.ELSEWHERE // vocabulary)
        assert (seen == 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_device_is_asked_once_however_many_windows_there_are(dtype):
    model = tiny("gpt_neox", dtype=dtype)
    counts = []
    for n in (2, 12):
        windows = random_windows(n)
        intact = Intact(model, windows, n)
        with questions() as asked:
            evaluate(model, windows, n, intact=intact)
        counts.append(asked)
    assert counts == [{"tolist": 1}] * 2
