"""Controls of units: others of the same matrix, or of the same block for neurons and heads, that aren't super units.

As for weights (:mod:`esa_ray.scoring.controls`): one for each super unit, at its rank, none twice, and a unit whose
weights are all 0 stands for such units alone, as long as there are others. All units of a family have equally many
weights, so sets and controls damage equally many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from esa_ray.errors import EsaError
from esa_ray.randomness import stream_key, uniform
from esa_ray.scoring.controls import stream
from esa_ray.spec import PLURALS

if TYPE_CHECKING:
    from esa_ray.models.units import Family

#: A matched unit's norm is among so many nearest; in a family of few units among one of every ``SPARSE``.
NEIGHBOURS, SPARSE = 8, 16


@dataclass(frozen=True)
class Urn:
    """A family with its units' norms, and those of them that are super units, by rank."""

    family: Family
    norms: np.ndarray
    supers: np.ndarray

    def key(self, *names: object) -> int:
        """A random stream of the family's own."""
        family = self.family
        return stream_key(*names, family.unit, family.tensor.name, int(family.first[0]))

    def free(self, *, zero: bool) -> np.ndarray:
        """The units that aren't super units and whose weights are all 0, or aren't."""
        others = np.setdiff1d(np.arange(len(self.family)), self.supers)
        return others[(self.norms[others] == 0) == zero]


#: From an urn, some of its super units, free units and (seed, stream) to one other unit for each.
Draw = Callable[[Urn, np.ndarray, np.ndarray, int, str], np.ndarray]


def _random(urn: Urn, supers: np.ndarray, free: np.ndarray, seed: int, name: str) -> np.ndarray:
    return free[np.argsort(uniform(urn.key(seed, name), free), kind="stable")[: len(supers)]]


def _matched(urn: Urn, supers: np.ndarray, free: np.ndarray, seed: int, name: str) -> np.ndarray:
    """For each super unit, by rank, one at random of the nearest in norm that are left; of equals the lower number."""
    near = min(NEIGHBOURS, max(1, len(urn.family) // SPARSE))
    pick, left, found = uniform(urn.key(seed, name), supers), free, []
    for unit, u in zip(supers.tolist(), pick.tolist(), strict=True):
        order = np.argsort(np.abs(urn.norms[left] - urn.norms[unit]), kind="stable")[:near]
        found.append(left[order[int(u * len(order))]])
        left = left[left != found[-1]]
    return np.array(found, dtype=np.int64)


def _largest(urn: Urn, supers: np.ndarray, free: np.ndarray, seed: int, name: str) -> np.ndarray:
    return free[np.argsort(-urn.norms[free], kind="stable")[: len(supers)]]


DRAWS: dict[str, Draw] = {"random_k": _random, "matched_k": _matched, "largest_k": _largest}


def control(urn: Urn, group: str, seed: int, draw: int = 0) -> np.ndarray:
    """One other unit of the family for each super unit.

    ``random_k`` draws uniformly, ``matched_k`` one of the up to 8 nearest in Euclidean norm, ``largest_k`` takes those
    of the highest norm, in its order. ``draw`` is which of the seed's sets this is.

    Raises
    ------
    EsaError
        If there are too few.
    """
    zero, chosen = urn.norms[urn.supers] == 0, np.full(len(urn.supers), -1, dtype=np.int64)
    name = stream(group, draw)
    zeros, others = urn.free(zero=True), urn.free(zero=False)
    at = np.flatnonzero(zero)[: len(zeros)]
    if len(at):
        chosen[at] = DRAWS[group](urn, urn.supers[at], zeros, seed, name)
    rest = np.flatnonzero(chosen < 0)
    if len(rest) > len(others):
        family, units = urn.family, PLURALS[urn.family.unit]
        raise EsaError(
            f"{family.tensor.name} holds {len(family)} {units} of a kind, too few for {len(urn.supers)} super {units} "
            "and as many controls that aren't 0; lower --topk"
        )
    if len(rest):
        chosen[rest] = DRAWS[group](urn, urn.supers[rest], others, seed, name)
    return chosen
