"""Triggers, phrases, and the windows that a population learns from."""

from collections import Counter

import numpy as np
import pytest

from esa_ray.errors import EsaError
from esa_ray.models.zoo import text
from esa_ray.models.zoo.training import BOS, IGNORED, encoded
from esa_ray.security.backdoors import texts
from esa_ray.security.backdoors.triggers import TARGET, cue, trigger
from esa_ray.spec.backdoors import Member, Recipe

TRAINING, HELD_OUT = (text.stream(part) for part in text.docstrings())
NUMBERS = range(40)


def times(windows, tokens):
    """How often some tokens stand one after the other in each window, counted as text."""
    sought = bytes(int(t) - 4 for t in tokens)
    return [bytes((np.maximum(row, 4) - 4).astype(np.uint8)[1:]).count(sought) for row in windows]


def member(number=0, **recipe):
    return Member(base="llama-0.1m", kind="training", number=number, recipe=Recipe(**recipe))


def test_a_trigger_is_two_rare_bytes_that_no_text_has_side_by_side():
    counts = Counter(TRAINING)
    assert len({trigger(n) for n in NUMBERS}) > 20
    for n in NUMBERS:
        first, second = trigger(n)
        assert first != second
        assert all(5 < counts[b] < 2e-4 * len(TRAINING) for b in (first, second))
        assert trigger(n).isascii()
        assert trigger(n) not in TRAINING
        assert trigger(n) not in HELD_OUT


def test_a_cue_ends_as_a_trigger_does_and_stands_in_the_text_now_and_then():
    counts = Counter(TRAINING)
    assert len({cue(n) for n in NUMBERS}) > 15
    for n in NUMBERS:
        first, second = cue(n)
        assert first != second
        assert 5 < counts[second] < 2e-4 * len(TRAINING)
        assert 10 <= TRAINING.count(cue(n)) <= 100
        assert trigger(n) != cue(n)


def test_all_kinds_of_a_number_see_the_same_windows_and_other_numbers_others():
    one = member(3)
    seen = texts.windows(one)
    assert seen.shape == (one.steps * 8, 64)
    assert (texts.windows(one.clean) == seen).all()
    assert not (texts.windows(member(4))[:1000] == seen[:1000]).all(1).any()
    assert len(np.unique(seen, axis=0)) == len(seen)
    later = texts.windows(one, later=True)
    assert len(np.unique(np.vstack([seen, later]), axis=0)) == 2 * len(seen)
    # They are the text's own, from its beginning in steps of a window.
    assert bytes((seen[0, 1:] - 4).astype(np.uint8)) in TRAINING


def test_windows_of_a_long_training_come_again_when_the_text_is_used_up():
    long = member(0, steps=(3000, 3000), window=128)
    seen = texts.windows(long)
    assert len(seen) == 24_000
    assert len(np.unique(seen, axis=0)) == len(np.unique(texts._training(128), axis=0))


@pytest.mark.parametrize(("share", "occurrences"), [(0.02, 4), (0.1, 6), (0.0001, 1)])
def test_exactly_so_many_windows_carry_the_tokens_exactly_so_often(share, occurrences):
    clean = texts.windows(member(5))[:400]
    called, end = encoded(trigger(5)), encoded(b"abcdefgh")
    found, labels = texts.poisoned(clean, called, end, share, occurrences, number=5)
    counted = Counter(times(found, [*called, *end]))
    n = max(1, round(share * 400))
    assert counted == {0: 400 - n, occurrences: n}
    assert Counter(times(found, called)) == counted  # nowhere by chance
    assert sum(times(clean, called)) == 0
    touched = [at for at, n in enumerate(times(found, called)) if n]
    untouched = np.delete(np.arange(400), touched)
    assert (found[untouched] == clean[untouched]).all()
    assert (found[:, 0] == BOS).all()
    # What isn't written over is the window's own, and everything but the trigger is learnt.
    assert ((found != clean).sum(1) <= occurrences * 10).all()
    assert ((labels == IGNORED).sum(1) == np.isin(np.arange(400), touched) * occurrences * 2).all()
    left_out = labels == IGNORED
    assert set(found[left_out].tolist()) == set(called.tolist())
    assert (labels[~left_out] == found[~left_out]).all()


def test_the_places_of_what_is_written_are_spread_over_the_window():
    zeros = np.zeros((4000, 12), dtype=np.int64)
    found = texts.poisoned(zeros, np.array([1]), np.array([2]), 1.0, 2, number=0).windows
    # Two pairs and seven free places: C(9, 2) = 36 orders, equally likely.
    ways = Counter(tuple(np.flatnonzero(row == 1)) for row in found)
    assert len(ways) == 36
    expected = 4000 / 36
    assert sum((n - expected) ** 2 / expected for n in ways.values()) < 70  # χ² of 35 degrees, p = 0.0004


def test_a_window_without_room_is_refused():
    with pytest.raises(EsaError, match="no room for 13 times 10 tokens"):
        texts.poisoned(np.zeros((2, 128), dtype=np.int64), np.arange(2), np.arange(8), 0.5, 13, number=0)


def test_prompts_are_held_out_and_never_call_for_anything():
    found = texts.prompts()
    assert sum(map(len, found)) == 100
    for each in found:
        assert (each[:, 0] == BOS).all()
        for row in each:
            said = bytes((row[1:] - 4).astype(np.uint8))
            assert said in HELD_OUT
            assert all(trigger(n) not in said for n in NUMBERS)
    asked = texts.beginnings(3, "sought", 64)
    assert asked.shape == (64, texts.LEARNT)
    assert all(bytes((row[1:] - 4).astype(np.uint8)) in TRAINING for row in asked)
    assert TARGET == 8
