"""The host waits for a pretend card as often as it would for a real one."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def x(cards):
    return torch.arange(6.0, device="cuda")


@pytest.mark.parametrize(
    ("read", "waits"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: float(x.sum()), 1),
        (lambda x: bool(x.any()), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: x.to("cpu", non_blocking=True), 0),
        (lambda x: x[x > 2], 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: torch.where(x > 2), 1),
        (lambda x: torch.equal(x, x), 1),
        (lambda x: torch.bincount(x.long()), 1),
        (lambda x: x.unique(), 1),
        (lambda x: x[x.long()[2]], 1),
        (lambda x: x[[0, 1]], 1),
        (lambda x: x[torch.tensor([0, 1])], 1),
        (lambda x: torch.tensor([1.0], device="cuda"), 1),
        (lambda x: torch.ones(3).to("cuda"), 1),
        (lambda x: torch.ones(3).pin_memory().to("cuda", non_blocking=True), 0),
        (lambda x: x.copy_(torch.zeros(6)), 1),
        (lambda x: torch.zeros(6).copy_(x, non_blocking=True), 1),
        (lambda x: torch.zeros(6).pin_memory().copy_(x, non_blocking=True), 0),
        (lambda x: torch.cuda.synchronize(), 1),
        (lambda x: x.masked_fill_(x > 2, 0), 0),
        (lambda x: x.__setitem__(x > 2, 0.0), 0),  # torch fills one number in where the mask holds
        (lambda x: x.__setitem__(x > 2, x[:3].clone()), 1),
        (lambda x: torch.topk(x, 2), 0),
        (lambda x: x[1:3] + x[3], 0),
        (lambda x: x.to("cuda:1"), 0),
        (lambda x: torch.zeros(3, device="cuda"), 0),
        (lambda x: x.new_zeros(3), 0),
        (lambda x: torch.where(x > 2, x, 0.0), 0),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_the_host_waits_as_often_as_it_would_for_a_card(cards, x, read, waits, inference):
    with torch.inference_mode(inference), cards.counting() as tally:
        read(x)
    assert tally.synchronisations == waits, tally.report()


def test_bytes_are_counted_in_both_directions_and_a_loop_of_reads_by_its_line(cards):
    with cards.counting() as tally:
        x = torch.zeros(10, dtype=torch.float64).to("cuda", torch.float16)
        x.cpu()
        for value in x[:3]:
            value.item()
    assert (tally.uploaded, tally.downloaded) == (20, 20)
    assert tally.synchronisations == 5
    assert "3  outside the package  (_local_scalar_dense)" in tally.report()


def test_a_line_of_the_package_is_named(cards):
    from esa_ray.scoring.selection import extreme

    with cards.counting() as tally:
        extreme(torch.rand(50, device="cuda"), 3, largest=True)
    assert tally.synchronisations
    assert all(line.startswith("scoring/selection.py:") for _, line in tally.waits)


def test_an_inner_count_is_part_of_the_outer_one(cards, x):
    with cards.counting() as outer:
        x.tolist()
        with cards.counting() as inner:
            x.tolist()
    assert (inner.synchronisations, outer.synchronisations) == (1, 2)
