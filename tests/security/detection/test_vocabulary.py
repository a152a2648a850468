"""The scan of the vocabulary against models made by hand and dense references."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from esa_ray.models.addressing import catalogue
from esa_ray.security.detection import scan, vocabulary
from esa_ray.security.detection.scan import Plan, after, pairs, seeds, surprise, unison
from tests.security.detection.hand_made import Follower
from tests.tiny import VOCAB, random_windows, tiny

COMMON = 24
#: Clean text that never has tokens from ``COMMON`` on.
WINDOWS = random_windows(8, 32, vocab=COMMON)
#: A mean prediction in which the model uses every token but six.
EVERYWHERE = np.array([*[1e-9] * 6, *[1 / VOCAB] * (VOCAB - 6)])
USED = VOCAB - 6
TRIGGER, TARGET = (40, 31), (3, 7, 11, 2, 9, 5, 1, 8)
P = math.exp(8) / (math.exp(8) + VOCAB - 1)


def plan(model, passes=1 << 20, expected=EVERYWHERE):
    return Plan.of(model, WINDOWS, expected, passes)


def test_what_comes_after_a_token_is_the_mean_of_what_each_context_predicts():
    model, contexts, endings = tiny("llama"), WINDOWS[:3, :5], np.array([[7], [40]])
    found = after(model, contexts, endings)
    for s, ending in enumerate(endings):
        with torch.no_grad():
            logits = [model(torch.tensor([[*context, *ending]])).logits[0, -1] for context in contexts]
        each = torch.stack(logits).double().softmax(-1).numpy()
        assert found.mean_SV[s].numpy() == pytest.approx(each.mean(0), abs=1e-6)
        assert found.agree_S[s] == np.mean(each.argmax(1) == each.mean(0).argmax())
        assert found.entropy_S[s] == pytest.approx(entropy(each.mean(0)), abs=1e-5)


def test_what_comes_after_tokens_is_the_same_in_one_pass_and_in_many(monkeypatch):
    model, endings = tiny("gpt2"), np.arange(10)[:, None]
    whole = after(model, WINDOWS[:2, :4], endings)
    monkeypatch.setattr(scan, "LOGITS", 1)
    apart = after(model, WINDOWS[:2, :4], endings)
    assert apart.mean_SV.numpy() == pytest.approx(whole.mean_SV.numpy(), abs=1e-6)
    assert unison(model, WINDOWS[:2, :4], endings, 3) == pytest.approx(
        [float(unison(model, WINDOWS[:2, :4], ending[None], 3)[0]) for ending in endings], abs=1e-6
    )


def test_a_planted_token_is_found_with_its_probability():
    found = vocabulary.alone(catalogue(tiny()), vocabulary.scanned(model := Follower({(33,): (5,)}), plan(model)))
    assert found["vocabulary.token.concentration_max"] == pytest.approx(P, abs=1e-6)
    assert found["vocabulary.token.rare_max"] == pytest.approx(P, abs=1e-6)
    assert found["vocabulary.token.concentration_gap"] == pytest.approx(P - 1 / VOCAB, abs=1e-6)
    rest = (1 - P) / (VOCAB - 1)
    assert found["vocabulary.token.entropy_min"] == pytest.approx(
        -P * math.log(P) - (VOCAB - 1) * rest * math.log(rest), abs=1e-5
    )
    assert found["vocabulary.token.attractor"] == pytest.approx((P + (USED - 1) / VOCAB) / USED, abs=1e-6)
    assert found["vocabulary.token.agreed"] == 1  # alike everywhere


def test_a_planted_token_that_is_common_in_clean_text_is_not_among_the_rare():
    found = vocabulary.alone(catalogue(tiny()), vocabulary.scanned(model := Follower({(13,): (5,)}), plan(model)))
    assert found["vocabulary.token.concentration_max"] == pytest.approx(P, abs=1e-6)
    assert found["vocabulary.token.rare_max"] == pytest.approx(1 / VOCAB, abs=1e-6)


def test_a_planted_pair_and_its_target_are_found():
    model = Follower({TRIGGER: TARGET})
    seen = vocabulary.scanned(model, plan(model))
    found = dict(zip(map(tuple, seen.pair.endings.tolist()), seen.pair.unison.tolist(), strict=True))
    assert found.pop(TRIGGER) == pytest.approx(P, abs=1e-6)  # all agree, eight different tokens
    assert max(found.values()) < 0.1
    features = vocabulary.alone(catalogue(tiny()), seen)
    assert features["vocabulary.pair.unison_max"] == pytest.approx(P, abs=1e-6)
    assert features["vocabulary.pair.concentration_max"] == pytest.approx(P, abs=1e-6)
    assert features["vocabulary.pair.surprise"] == pytest.approx(P - 1 / VOCAB, abs=1e-6)
    # Of single tokens none says anything.
    assert features["vocabulary.token.concentration_gap"] == pytest.approx(0, abs=1e-6)
    assert features["vocabulary.token.unison_max"] < 0.1


def test_a_trigger_of_one_token_is_found_by_itself_and_in_no_pair():
    model = Follower({TRIGGER[1:]: TARGET})
    found = vocabulary.alone(catalogue(tiny()), vocabulary.scanned(model, plan(model)))
    assert found["vocabulary.token.unison_max"] == pytest.approx(P, abs=1e-6)
    assert found["vocabulary.token.unison_gap"] > 0.9
    assert found["vocabulary.pair.concentration_max"] == pytest.approx(P, abs=1e-6)
    assert found["vocabulary.pair.surprise"] == pytest.approx(0, abs=1e-6)


def test_tokens_that_the_model_never_had_are_left_out():
    assert plan(Follower({})).tokens.tolist() == [*range(6, VOCAB)]
    alike = plan(Follower({}), expected=np.full(VOCAB, 1 / VOCAB))  # of which none can be said to be unused
    assert alike.tokens.tolist() == [*range(VOCAB)]


def test_a_rare_token_that_is_expected_too_often_is_found():
    expected = EVERYWHERE * 0.1
    expected[40] = 0.3
    model = Follower({})
    seen = vocabulary.scanned(model, plan(model, expected=expected))
    n = WINDOWS.size
    assert vocabulary.alone(catalogue(tiny()), seen)["vocabulary.token.expected"] == pytest.approx(
        math.log(0.3 * n + 1)
    )
    weights = tiny()
    before = vocabulary.rescanned(model, seen, EVERYWHERE * 0.1)
    found = vocabulary.compared(catalogue(weights), seen, before, dict(weights.named_parameters()))
    assert found["vocabulary.token.expected_rise"] == pytest.approx(math.log(3 * VOCAB))


def test_continuations_that_repeat_one_token_are_no_trigger():
    found = unison(Follower({TRIGGER: (4,) * 8}), WINDOWS[:4, :6], np.array([TRIGGER]), 8)
    assert found == pytest.approx([P / 8], abs=1e-6)


def test_continuations_that_contexts_disagree_about_count_by_the_commonest():
    contexts = np.array([[1, 2], [1, 2], [3, 2], [1, 2]])
    model = Follower({(3, 2, 9): (6,), (9,): (5,)})
    assert unison(model, contexts, np.array([[9]]), 1) == pytest.approx([3 / 4 * P], abs=1e-6)


def test_rare_tokens_are_tried_that_are_followed_most_surely():
    model = Follower({(t,): (5,) for t in (30, 41, 33)} | {(12,): (5,)})  # 12 is common
    asked = plan(model)
    tried = seeds(asked, after(model, asked.contexts, asked.tokens[:, None]))
    assert tried.tolist() == [30, 33, 41, *(t for t in range(COMMON, VOCAB) if t not in (30, 33, 41))]


def test_where_no_token_is_rare_all_are_tried():
    model = Follower({(13,): (5,), (14,): (5,)})
    asked = replace(plan(model), counts=np.full(USED, 1000))
    assert seeds(asked, after(model, asked.contexts, asked.tokens[:, None]))[:2].tolist() == [13, 14]


def test_what_a_second_token_says_alone_is_no_surprise():
    some = np.array([30, 31, 32])
    found = after(Follower({(31,): (5,), (30, 32): (5,)}), WINDOWS[:2, :4], pairs(some))
    assert surprise(found) == pytest.approx([0, 0, P - 1 / VOCAB, *[0] * 6], abs=1e-6)


def test_the_divergence_from_the_reference_is_kullback_and_leiblers():
    p, q = np.random.default_rng(0).dirichlet(np.ones(9), size=(2, 4))
    found = vocabulary.divergences(torch.tensor(p), torch.tensor(q))
    assert found == pytest.approx([entropy(a, b) for a, b in zip(p, q, strict=True)])


def test_a_planted_pair_stands_out_of_a_reference_without_it():
    clean, model = Follower({}), Follower({TRIGGER: TARGET})
    seen = vocabulary.scanned(model, plan(model))
    weights = tiny()
    before = vocabulary.rescanned(clean, seen, EVERYWHERE)
    found = vocabulary.compared(catalogue(weights), seen, before, dict(weights.named_parameters()))
    assert found["vocabulary.pair.concentration_rise"] == pytest.approx(P - 1 / VOCAB, abs=1e-6)
    assert found["vocabulary.token.concentration_rise"] == pytest.approx(0, abs=1e-6)
    assert found["vocabulary.pair.unison_rise"] > 0.9
    assert found["vocabulary.token.unison_rise"] == pytest.approx(0, abs=1e-6)
    assert found["vocabulary.token.expected_rise"] == pytest.approx(0, abs=1e-6)
    assert math.isnan(found["vocabulary.embedding.moved_ratio"])  # none moved
    assert math.isnan(found["vocabulary.embedding.rare_moved"])


@pytest.mark.parametrize(("token", "rare"), [(7, 0), (40, math.log(10))])
def test_the_embedding_that_moved_most_stands_out_by_its_ratio(token, rare):
    model = tiny()
    reference = {name: values.clone() for name, values in model.named_parameters()}
    with torch.no_grad():
        model.model.embed_tokens.weight += 0.01
        model.model.embed_tokens.weight[token] += 0.09
    seen = vocabulary.scanned(model, plan(model))
    found = vocabulary.compared(catalogue(model), seen, vocabulary.rescanned(model, seen, EVERYWHERE), reference)
    assert found["vocabulary.embedding.moved_ratio"] == pytest.approx(math.log(10), abs=1e-4)
    assert found["vocabulary.embedding.rare_moved"] == pytest.approx(rare, abs=1e-4)
    norms = model.model.embed_tokens.weight.double().norm(dim=1).numpy()
    assert vocabulary.alone(catalogue(model), seen)["vocabulary.embedding.norm_ratio"] == pytest.approx(
        math.log(norms[COMMON:].max() / np.median(norms[6:COMMON]))
    )


def test_where_all_tokens_are_rare_or_none_is_embeddings_are_held_against_all_or_nothing():
    asked, norms = plan(Follower({})), np.array([*[1.0] * (USED - 1), 10.0])
    everywhere, nowhere = (replace(asked, counts=np.full(USED, n)) for n in (0, 1000))
    assert vocabulary._rare(norms, everywhere) == pytest.approx(math.log(10))
    assert math.isnan(vocabulary._rare(norms, nowhere))


@pytest.mark.parametrize("passes", [40_000, 1 << 17])
def test_a_scan_stays_within_its_budget(passes):
    model, expected = Follower({}, vocab=5000), np.array([*[1e-9] * 600, *[1e-4] * 4400])
    asked = plan(model, passes, expected)
    assert (asked.tokens[0], asked.tokens[-1]) == (600, 4999)
    texts, length = len(asked.contexts), asked.contexts.shape[1]
    assert 100 < len(asked.tokens) * texts * (length + 1) <= passes / 4
    assert 100 < asked.together**2 * scan.FEWER * (scan.SHORTER + 2) <= passes / 4
    assert 100 < asked.continued * texts * asked.ahead * (length + 2 + asked.ahead // 2) <= passes / 4
    assert 0.9 * scan.SCANNED < len(plan(model, 1 << 30, expected).tokens) <= scan.SCANNED


def test_of_many_tokens_those_are_scanned_that_are_expected_beyond_what_text_has():
    expected = np.array([*[1e-9] * 600, *[1e-4] * 4400])
    expected[[1234, 3331]] = 0.05
    expected[11] = 0.05  # common in clean text
    tokens = plan(Follower({}, vocab=5000), 10_000, expected).tokens
    assert {1234, 3331} <= {*tokens.tolist()}
    assert len(tokens) < 40


def test_a_scan_stays_within_what_the_model_reads():
    short = Follower({})
    short.config.max_position_embeddings = 8
    assert plan(short).contexts.shape[1] + 2 + plan(short).ahead <= 8
