import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esa_ray.scoring.selection import Selector, extreme

# Few values, so that ties are the rule; both zeros, a subnormal, and neighbours in float32.
SCORES = [0.0, -0.0, 1e-45, 0.5, 1.0, float(np.nextafter(np.float32(1), np.float32(2))), 3.0, 1e30]
score = st.sampled_from(SCORES)
anything = score | st.floats(width=32, allow_nan=False, allow_infinity=False)


def by_sorting(rows: list[tuple[float, int, int]], k: int, largest: bool) -> list[tuple[float, int, int]]:
    """The definition: everything sorted by (score, tensor, flat index), the first k of it."""
    return sorted(rows, key=lambda r: (-r[0] if largest else r[0], r[1], r[2]))[:k]


@given(st.lists(anything, min_size=1, max_size=40), st.integers(1, 50), st.booleans(), st.data())
@settings(max_examples=200, deadline=None)
def test_extreme_is_the_head_of_the_sorted_list_of_the_eligible(values, k, largest, data):
    mask = data.draw(st.none() | st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    scores = torch.tensor(values, dtype=torch.float32)
    rows = [(s, 0, i) for i, s in enumerate(scores.tolist()) if mask is None or mask[i]]
    eligible = None if mask is None else torch.tensor(mask)
    found = extreme(scores, k, largest=largest, eligible=eligible)
    assert found.dtype == np.int64
    assert found.tolist() == [i for _, _, i in by_sorting(rows, k, largest)]


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.lists(score, min_size=1, max_size=12)), min_size=1, max_size=6),
    st.integers(1, 20),
    st.booleans(),
    st.data(),
)
@settings(max_examples=200, deadline=None)
def test_a_selector_keeps_what_sorting_everything_would_keep(tensors, k, largest, data):
    selector = Selector(k, largest=largest)
    rows: dict[str, list[tuple[float, int, int]]] = {}
    for number, (pool, values) in enumerate(tensors):
        mask = data.draw(st.none() | st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
        scores = torch.tensor(values, dtype=torch.float32)
        selector.add(pool, number, scores, None if mask is None else torch.tensor(mask))
        mine = [(s, number, i) for i, s in enumerate(scores.tolist()) if mask is None or mask[i]]
        rows.setdefault(pool, []).extend(mine)
    assert selector.pools.keys() == rows.keys()
    for name, pool in selector.pools.items():
        wanted, (best, numbers, flat) = by_sorting(rows[name], k, largest), pool.best
        assert list(zip(numbers.tolist(), flat.tolist(), strict=True)) == [(t, f) for _, t, f in wanted]
        assert best.tolist() == [s for s, _, _ in wanted]
        assert pool.n == len(rows[name])


@given(st.lists(score, min_size=8, max_size=30), st.integers(1, 8), st.booleans())
@settings(deadline=None)
def test_a_smaller_k_is_a_prefix_of_a_larger_one(values, k, largest):
    scores = torch.tensor(values)
    assert extreme(scores, 8, largest=largest)[:k].tolist() == extreme(scores, k, largest=largest).tolist()


def test_many_equal_scores_are_taken_from_the_front():
    scores = torch.zeros(10_000)
    scores[[9_999, 5]] = 1.0
    assert extreme(scores, 5, largest=True).tolist() == [5, 9_999, 0, 1, 2]
    assert extreme(scores, 3, largest=False).tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_selection_works_in_every_dtype_of_scores(dtype):
    scores = torch.tensor([2.0, 8.0, 4.0, 8.0], dtype=dtype)
    assert extreme(scores, 3, largest=True).tolist() == [1, 3, 2]


def test_with_nothing_eligible_nothing_is_chosen():
    none = torch.zeros(4, dtype=torch.bool)
    assert extreme(torch.ones(4), 2, largest=True, eligible=none).tolist() == []
    selector = Selector(2)
    selector.add("p", 0, torch.ones(4), none)
    assert selector.pools["p"].n == 0
    assert [len(found) for found in selector.pools["p"].best] == [0, 0, 0]


@given(
    st.lists(st.lists(score, min_size=1, max_size=9), min_size=1, max_size=8),
    st.integers(1, 6),
    st.booleans(),
    st.data(),
)
@settings(max_examples=200, deadline=None)
def test_lists_of_stretches_that_began_together_give_what_sorting_everything_would(pieces, k, largest, data):
    # A stretch knows the threshold of when it began, which others that are handed over before it don't raise.
    selector, rows, start = Selector(k, largest=largest), [], 0
    waiting = []
    for values in pieces:
        found = selector.shortlist("p")
        for at, value in enumerate(values):
            if found.beaten_by(value):
                found.offer(torch.tensor([value]), 0, start + at)
        rows += [(s, 0, start + i) for i, s in enumerate(torch.tensor(values).tolist())]
        start += len(values)
        waiting.append((found, len(values)))
        while waiting and data.draw(st.booleans()):
            selector.take("p", *waiting.pop(0))
    for found, n in waiting:
        selector.take("p", found, n)
    wanted, (best, _, flat) = by_sorting(rows, k, largest), selector.pools["p"].best
    assert list(zip(best.tolist(), flat.tolist(), strict=True)) == [(s, f) for s, _, f in wanted]
    assert selector.pools["p"].n == len(rows)
    assert len(selector.pools["p"].shortlist.held[0]) < 2 * k or k == 1
