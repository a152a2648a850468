"""Control groups: weights that share everything with the super weights but their score.

Each control gives one weight for each super weight, in the same tensor and component and at the same rank,
and never a super weight itself. So for every k the control has the same counts as the set that it controls
for. It does depend on the depth of the ranking, the largest k that it was drawn for: which weights are super
weights, and so left out, follows from it. The depth is therefore part of a control cell's identity.

A weight that is exactly 0 (pruned, padded) is no control for one that isn't: most damage leaves 0 where it is, and a
set that can't be damaged looks harmless. So controls are drawn among the weights that aren't 0. Only of a super weight
that is 0 itself the control is another 0, while there are others: so such damage changes as many controls as supers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.errors import EsaError
from esa_ray.randomness import stream_key, uniform
from esa_ray.scoring.neighbours import alive, neighbours
from esa_ray.scoring.pools import some_of
from esa_ray.scoring.streaming import STRETCH

if TYPE_CHECKING:
    from esa_ray.models.addressing import WeightTensor

#: A matched weight's magnitude lies among this many nearest by rank, unless these are taken.
MATCH_NEIGHBOURS = 64
#: How many ranks away weights are listed at first: where even these are taken, farther ones are.
FIRST_REACH = 128


@dataclass(frozen=True)
class Members:
    """The weights of one component of a tensor, ascending, by arithmetic: none is listed.

    >>> from esa_ray.models.addressing import FusedPart, WeightTensor
    >>> halves = (FusedPart("gate", 0, 1, 2), FusedPart("up", 1, 1, 2))
    >>> tensor = WeightTensor("w", 0, (2, 3), halves, False, False, None, ())
    >>> len(Members(tensor, 1)), Members(tensor, 1)[np.array([0, 2])].tolist()
    (3, [3, 5])
    """

    tensor: WeightTensor
    part: int | None = None

    @property
    def outputs(self) -> np.ndarray | None:
        """For every output of the tensor, whether its weights are members; None if all are."""
        return None if self.part is None else some_of(self.tensor.row_part == self.part)

    def __len__(self) -> int:
        outputs = self.outputs
        return self.tensor.size // self.tensor.rows * (self.tensor.rows if outputs is None else int(outputs.sum()))

    def __getitem__(self, at: np.ndarray) -> np.ndarray:
        """The flat indices of the members with these numbers."""
        tensor, outputs = self.tensor, self.outputs
        if outputs is None:
            return at
        mine = np.flatnonzero(outputs)
        if tensor.transposed:  # every row of storage holds all outputs of one input
            return at // len(mine) * tensor.rows + mine[at % len(mine)]
        output, col = np.divmod(at, tensor.cols)
        return (output // len(mine) * tensor.rows + mine[output % len(mine)]) * tensor.cols + col


def _check_enough(tensor: WeightTensor, n: int, wanted: int, which: str = "") -> None:
    if n < 2 * wanted:
        raise EsaError(
            f"{tensor.name} holds {n} {which}weights of a component, too few for {wanted} super weights and as many "
            "controls; lower --topk"
        )


#: What of a component's weights controls are drawn among where some are 0.
NOT_ZERO = "non-zero "

#: Draws a control after which a component's weights are all looked at, instead of drawing on.
PATIENCE = 64


class _Urn:
    """The weights of a component that no one has taken yet, to be drawn uniformly by one stream of draws."""

    def __init__(self, tensor: WeightTensor, eligible: Members | None, supers: np.ndarray, group: str, seed: int):
        among = Members(tensor) if eligible is None else eligible
        _check_enough(tensor, len(among), len(supers))
        self.tensor, self.among, self._weights = tensor, among, tensor.flat_weights()
        self.taken: set[int] = set(supers.tolist())
        self._key = stream_key(seed, group, tensor.name, int(among[np.array([0])][0]))
        # What is drawn first is looked up together with the super weights: a device is asked once.
        self._first = next(self._draws(2 * len(supers)))
        #: |w| of each super weight.
        self.magnitude, self._first_magnitude = np.split(
            self._magnitudes(np.concatenate([supers, self._first])), [len(supers)]
        )

    def _draws(self, at_once: int, start: int = 0) -> Iterator[np.ndarray]:
        """Uniform draws with replacement, without end."""
        counter = np.arange(start, start + max(1, at_once))
        while True:
            yield self.among[(uniform(self._key, counter) * len(self.among)).astype(np.int64)]
            counter += len(counter)

    def _magnitudes(self, flat: np.ndarray) -> np.ndarray:
        return self._weights[torch.as_tensor(flat)].abs().float().cpu().numpy()

    def _looked_up(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The draws, and which of them are exactly 0; −0 is, NaN isn't."""
        yield self._first, self._first_magnitude == 0
        for draws in self._draws(len(self._first), start=len(self._first)):
            yield draws, self._magnitudes(draws) == 0

    def draw(self, n: int, *, zero: bool) -> list[int]:
        """So many weights that are 0, or that aren't; fewer where there are no more."""
        chosen: list[int] = []
        looked, missed = 0, False
        for draws, zeros in self._looked_up():
            looked, missed = looked + len(draws), missed or bool((zeros != zero).any())
            for draw in draws[zeros == zero].tolist():
                if len(chosen) < n and draw not in self.taken:
                    self.taken.add(draw)
                    chosen.append(draw)
            if len(chosen) == n or (missed and looked >= PATIENCE * n):
                break
        return chosen + self._rest(n - len(chosen), zero=zero) if len(chosen) < n else chosen

    def _rest(self, n: int, *, zero: bool) -> list[int]:
        """The same of a component that hardly has such weights: all are listed, and shuffled."""
        numbers = (np.arange(i, min(i + STRETCH, len(self.among))) for i in range(0, len(self.among), STRETCH))
        listed = [flat[(self._magnitudes(flat) == 0) == zero] for flat in map(self.among.__getitem__, numbers)]
        free = np.array([i for i in np.concatenate(listed).tolist() if i not in self.taken], dtype=np.int64)
        found = free[np.argsort(uniform(stream_key(self._key, "listed"), free), kind="stable")[:n]].tolist()
        self.taken.update(found)
        return found

    def zeros(self) -> tuple[np.ndarray, np.ndarray]:
        """(controls of the super weights that are 0, which super weights are without one yet)."""
        zero = self.magnitude == 0
        chosen, left = np.empty(len(zero), np.int64), np.ones(len(zero), bool)
        if zero.any():
            found = self.draw(int(zero.sum()), zero=True)
            at = np.flatnonzero(zero)[: len(found)]
            chosen[at], left[at] = found, False
        return chosen, left


def stream(group: str, draw: int) -> str:
    """What names a control's random stream; the first of a seed's sets is what it is where there is one."""
    return f"{group} {draw}" if draw else group


def random_k(
    tensor: WeightTensor, supers: np.ndarray, eligible: Members | None, seed: int, draw: int = 0
) -> np.ndarray:
    """One uniformly drawn other weight for each super weight, without replacement; 0 just where that is 0.

    ``supers`` are flat indices by rank, ``eligible`` the weights to draw from (None: the whole tensor). ``draw`` is
    which of the seed's sets this is: each is drawn by itself, and two may share weights.

    Raises
    ------
    EsaError
        If there are too few.
    """
    return _with_zeros(_Urn(tensor, eligible, supers, stream("random_k", draw), seed), _unmatched)


def _with_zeros(urn: _Urn, others: Callable[[_Urn, np.ndarray], list[int]]) -> np.ndarray:
    """Controls of all super weights: 0 where these are, as long as there are such; ``others`` gives the rest."""
    chosen, left = urn.zeros()
    if left.any():
        chosen[left] = others(urn, left)
    return chosen


def _unmatched(urn: _Urn, left: np.ndarray) -> list[int]:
    found = urn.draw(wanted := int(left.sum()), zero=False)
    if len(found) < wanted:
        _check_enough(urn.tensor, len(found) + int((urn.magnitude != 0).sum()), wanted, NOT_ZERO)
    return found


def control_sets(
    group: str, tensor: WeightTensor, supers: np.ndarray, eligible: Members | None, seed: int, draws: int
) -> list[np.ndarray]:
    """So many sets of a drawn control, :func:`random_k` or :func:`matched_k`, for the same super weights."""
    draw_set = random_k if group == "random_k" else partial(matched_k, near=Near())
    return [draw_set(tensor, supers, eligible, seed, draw) for draw in range(draws)]


class Near:
    """What lies near the super weights of one component in magnitude: looked for once, for all sets drawn for them."""

    def __init__(self) -> None:
        self._magnitudes, self._reach = np.empty(0, np.float32), 0
        self._known = np.empty(0, np.float32), np.empty(0, np.int64)

    def to(self, urn: _Urn, magnitudes: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
        """Magnitudes and flat indices of all non-zero weights within so many ranks, in order of magnitude."""
        if reach > self._reach or not np.array_equal(self._magnitudes, magnitudes):
            self._magnitudes, self._reach = magnitudes, reach
            self._known = neighbours(urn.among, magnitudes, reach)
            if len(self._known[0]) < 2 * len(magnitudes):
                _check_enough(urn.tensor, alive(urn.among), len(magnitudes), NOT_ZERO)
        return self._known


def matched_k(
    tensor: WeightTensor,
    supers: np.ndarray,
    eligible: Members | None,
    seed: int,
    draw: int = 0,
    near: Near | None = None,
) -> np.ndarray:
    """For each super weight a random other one of similar magnitude: among its nearest neighbours in rank of |w|.

    Where the set is the very largest weights of a tensor nothing larger is left, so a match can be smaller. Of
    equal magnitudes the lower flat index ranks lower. A weight that is 0 matches those that are 0, and no others.
    ``near`` is what other sets for the same super weights have looked up.

    Raises
    ------
    EsaError
        If there are too few.
    """
    name = stream("matched_k", draw)
    pick = uniform(stream_key(seed, name, tensor.name), supers)
    return _with_zeros(
        _Urn(tensor, eligible, supers, name, seed),
        lambda urn, left: _matched(urn, near or Near(), urn.magnitude[left], pick[left]),
    )


def _matched(urn: _Urn, near_by: Near, magnitude: np.ndarray, pick: np.ndarray) -> list[int]:
    reach = min(FIRST_REACH, farthest := _reach(len(magnitude)))
    ordered, candidates = near_by.to(urn, magnitude, reach)
    chosen: list[int] = []
    for m, u in zip(magnitude, pick.tolist(), strict=True):
        width = MATCH_NEIGHBOURS // 2
        near: list[int] = []
        while not near:
            if width > reach and reach < farthest:
                reach = farthest
                ordered, candidates = near_by.to(urn, magnitude, reach)
            centre = int(np.searchsorted(ordered, m))
            among = candidates[max(0, centre - width) : centre + width].tolist()
            near = [i for i in among if i not in urn.taken]
            width *= 2
        chosen.append(near[int(u * len(near))])
        urn.taken.add(chosen[-1])
    return chosen


def _reach(supers: int) -> int:
    """How many ranks away a match can be: in twice as many as there are supers and matches, one is free."""
    reach = MATCH_NEIGHBOURS // 2
    while reach < 2 * supers:
        reach *= 2
    return reach
