"""Scores of rows, columns, neurons and heads: combined from their weights' scores, which stream by once.

What is kept are sums (or the largest) over the lines of each matrix, never a score a weight, so a model's units take
some 16 bytes a line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.stats import rankdata

from esa_ray.scoring.pools import pool_of
from esa_ray.scoring.streaming import Chunk, Stretch, stretches, walk
from esa_ray.spec import SCORES, ScoreSpec, members

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.models.units import Family, Lines
    from esa_ray.scoring.scores import Scores

#: How a unit's score comes of what its lines hold.
LARGEST = "largest"


def how(metric: str, combine: str) -> str:
    """One of :data:`esa_ray.spec.metrics.JOINT`: how the scores of a unit's weights make its own.

    >>> how("act_mag", "joint"), how("act_mag", "largest")
    ('norm', 'largest')
    """
    return SCORES[metric].joint if combine == "joint" else combine


class LineTotals:
    """What every row and column of some tensors holds of a quantity (a ``Watcher``), float64.

    ``quantity`` is "score", "signed" (its signed part), "square" (of the score) or "weight" (its square); ``largest``
    keeps the largest instead of the sum.
    """

    def __init__(self, quantity: str, *, largest: bool = False):
        self.quantity, self.largest = quantity, largest
        self.found: dict[tuple[int, str], np.ndarray] = {}

    def __call__(self, stretch: Stretch) -> _Totals:
        """Begin with a stretch."""
        return _Totals(self, stretch)

    def join(self, mine: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Two totals as one."""
        return np.maximum(mine, found) if self.largest else mine + found

    def reduce(self, values: Tensor, axis: int) -> Tensor:
        """The total along an axis; 0 of nothing."""
        if not values.shape[axis]:
            return values.new_zeros(values.shape[1 - axis])
        return values.amax(axis) if self.largest else values.sum(axis)

    def add(self, index: int, axis: str, size: int, start: int, values: np.ndarray) -> None:
        """Let consecutive lines of a tensor hold some more."""
        mine = self.found.setdefault((index, axis), np.zeros(size))
        mine[start : start + len(values)] = self.join(mine[start : start + len(values)], values)

    def of(self, lines: Lines, index: int) -> np.ndarray:
        """What every unit's lines hold, (units,)."""
        mine = self.found[index, lines.axis][lines.at]
        return mine.max(axis=1) if self.largest else mine.sum(axis=1)


class _Totals:
    """Those of one stretch."""

    def __init__(self, whole: LineTotals, stretch: Stretch):
        self._whole, self._stretch, tensor = whole, stretch, stretch.reading.tensor
        self._storage = tensor.shape[-2:] if len(tensor.shape) > 1 else (tensor.size, 1)
        each = self._storage[0] * self._storage[1]
        self._expert = stretch.flat.start // each
        self._first = stretch.flat.start % each // self._storage[1]
        # Along the first axis of storage (of this stretch's lines alone), and along the second, by parts of outputs.
        self._along: list[np.ndarray] = []
        self._across: np.ndarray | None = None

    def see(self, chunk: Chunk) -> None:
        """Take a chunk in."""
        tensor, whole = chunk.reading.tensor, self._whole
        values = _values(chunk, whole.quantity).view(-1, self._storage[1])
        done = sum(found.shape[-1] for found in self._along)
        masks = [tensor.row_part == p for p in range(len(tensor.parts))]
        if tensor.transposed:
            at = [torch.as_tensor(np.flatnonzero(mask), device=values.device) for mask in masks]
            along = torch.stack([whole.reduce(values.index_select(1, mine), 1) for mine in at])
            across = whole.reduce(values, 0)[None]
        else:
            start = self._first + done
            rows = [np.flatnonzero(mask[start : start + len(values)]) for mask in masks]
            along = whole.reduce(values, 1)[None]
            picked = (values.index_select(0, torch.as_tensor(mine, device=values.device)) for mine in rows)
            across = torch.stack([whole.reduce(mine, 0) for mine in picked])
        self._along.append(along.cpu().numpy())
        found = across.cpu().numpy()
        self._across = found if self._across is None else whole.join(self._across, found)

    def hand_over(self) -> None:
        """Add them to those of earlier stretches."""
        tensor, index, whole = self._stretch.reading.tensor, self._stretch.index, self._whole
        experts, parts = tensor.shape[0] if tensor.experts else 1, len(tensor.parts)
        rows, cols = experts * tensor.rows, experts * parts * tensor.cols
        along, across = np.concatenate(self._along, axis=1), self._across
        assert across is not None
        if tensor.transposed:
            whole.add(index, "row", rows, self._expert * tensor.rows, across[0])
        else:
            whole.add(index, "row", rows, self._expert * tensor.rows + self._first, along[0])
        for part in range(parts):
            start = (self._expert * parts + part) * tensor.cols
            mine = along[part] if tensor.transposed else across[part]
            whole.add(index, "col", cols, start + (self._first if tensor.transposed else 0), mine)


def _values(chunk: Chunk, quantity: str) -> Tensor:
    if quantity == "weight":
        return chunk.reading.weights[chunk.flat].double().square()
    _ = chunk.ends  # refuses what is NaN or infinite
    if quantity == "signed":
        return chunk.reading.signed(chunk.flat).double()  # type: ignore[union-attr]  # of scores, not of ensembles
    return chunk.scores.double().square() if quantity == "square" else chunk.scores.double()


#: How a unit's score is made → the quantity that its lines hold.
_QUANTITY = {"sum": "score", LARGEST: "score", "norm": "square", "signed": "signed"}


@dataclass(frozen=True)
class UnitScores:
    """The scores of all units, family by family, and the Euclidean norms of their weights."""

    families: Sequence[Family]
    index: Mapping[str, int]
    values: list[np.ndarray]
    norms: list[np.ndarray]

    @classmethod
    def of(cls, scores: Scores, families: Sequence[Family], spec: ScoreSpec) -> UnitScores:
        """Score all units in one pass over the weights, or of an ensemble in one for each of its members.

        Raises
        ------
        EsaError
            If a score is NaN or infinite.
        """
        index = {tensor.name: i for i, tensor in enumerate(scores.tensors)}
        used = sorted({index[lines.tensor.name] for family in families for lines in family.lines})
        squares = LineTotals("weight")
        found: list[list[np.ndarray]] = []
        for metric in members(spec.metric):
            kind = how(metric, spec.combine)
            totals = LineTotals(_QUANTITY[kind], largest=kind == LARGEST)
            every = [part.component for i in used for part in scores.tensors[i].parts]
            walk(stretches(scores, metric, every, used), [totals, squares] if not found else [totals])
            found.append([_finished(family, totals, index, kind) for family in families])
        norms = [_finished(family, squares, index, "norm") for family in families]
        values = found[0] if len(found) == 1 else _ensemble(found, families, spec.mode)
        return cls(families, index, values, norms)


def _finished(family: Family, totals: LineTotals, index: Mapping[str, int], kind: str) -> np.ndarray:
    held = np.stack([totals.of(lines, index[lines.tensor.name]) for lines in family.lines])
    if kind == LARGEST:
        return held.max(axis=0)
    total = held.sum(axis=0)
    return np.sqrt(total) if kind == "norm" else np.abs(total) if kind == "signed" else total


def by_pool(families: Sequence[Family], mode: str) -> dict[str, list[int]]:
    """The families of every pool, by number; a unit is in the pool of its first matrix."""
    found: dict[str, list[int]] = {}
    for number, family in enumerate(families):
        found.setdefault(pool_of(family.tensor, mode), []).append(number)
    return found


def _ensemble(by_member: Iterable[list[np.ndarray]], families: Sequence[Family], mode: str) -> list[np.ndarray]:
    """Rank products as :class:`esa_ray.scoring.ensemble.RankEnsemble` has them, all ranks exact."""
    total = [np.zeros(len(family)) for family in families]
    by_member = list(by_member)
    for values in by_member:
        for mine in by_pool(families, mode).values():
            ranks = rankdata(-np.concatenate([values[i] for i in mine]))
            logs = -np.log(ranks / (len(ranks) + 1)) / len(by_member)
            for i, piece in zip(mine, np.split(logs, np.cumsum([len(families[i]) for i in mine])[:-1]), strict=True):
                total[i] += piece
    return total
