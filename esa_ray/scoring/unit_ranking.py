"""Rankings of rows, columns, neurons and heads: the extreme ones of every pool, their controls, and how all score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from esa_ray.errors import EsaError
from esa_ray.schema import RANKINGS, SCORE_STATS
from esa_ray.scoring.distribution import describe
from esa_ray.scoring.histogram import Histogram
from esa_ray.scoring.unit_controls import DRAWS, Urn, control
from esa_ray.scoring.unit_scores import UnitScores, by_pool
from esa_ray.spec import DRAWN_CONTROLS, PLURALS

if TYPE_CHECKING:
    from esa_ray.models.units import Family
    from esa_ray.scoring.scores import Scores
    from esa_ray.spec import ScoreSpec

#: Group, which of its draws, number of a family, ranks from 1 and numbers of some of its units.
Pick = tuple[str, int | None, int, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class UnitRanking:
    """The units of a model by one score: what :mod:`esa_ray.scoring.ranking` is for weights.

    Ties break by (score, first matrix, place in it). ``gradients`` keeps the derivative at every weight of the chosen
    units, for damage that follows it.
    """

    scores: Scores
    families: Sequence[Family]
    spec: ScoreSpec
    gradients: bool = False

    @cached_property
    def scored(self) -> UnitScores:
        """The score and norm of every unit."""
        return UnitScores.of(self.scores, self.families, self.spec)

    def table(self, k: int, groups: Sequence[str], *, seed: int, model: str = "", draws: int = 1) -> pa.Table:
        """The k extreme units of every pool and a control for each, as a table (``schema.RANKINGS``).

        Raises
        ------
        EsaError
            If k is larger than the smallest pool, or leaves too few units for controls.
        """
        top = self._ends(k, largest=True)
        picks: list[Pick] = [("super", None, f, ranks, units) for f, ranks, units in top]
        for pick in list(picks):
            picks += self.controls(pick, groups, seed, draws)
        if "bottom_k" in groups:
            picks += [("bottom_k", None, f, ranks, units) for f, ranks, units in self._ends(k, largest=False)]
        common = {"model": model, "metric": self.spec.metric, "mode": self.spec.mode, "seed": seed}
        rows = [row for pick in picks for row in self.rows(*pick)]
        order = ("group", "control_draw", "layer", "rank", "tensor", "flat")
        found = pa.Table.from_pylist([common | row for row in rows], schema=RANKINGS)
        return found.sort_by([(name, "ascending") for name in order])

    def controls(self, treated: Pick, groups: Sequence[str], seed: int, draws: int) -> list[Pick]:
        """The controls of a family's treated units that are asked for, so many sets of each that is drawn."""
        _, _, family, ranks, units = treated
        urn, found = Urn(self.families[family], self.scored.norms[family], units), []
        for group in (g for g in DRAWS if g in groups):
            for draw in range(draws if group in DRAWN_CONTROLS else 1):
                number = draw if group in DRAWN_CONTROLS else None
                found.append((group, number, family, ranks, control(urn, group, seed, draw)))
        return found

    def stats(self, *, seed: int, model: str = "") -> pa.Table:
        """One row per family on how its units' scores are distributed (``schema.SCORE_STATS``)."""
        common = {"model": model, "metric": self.spec.metric, "mode": self.spec.mode, "seed": seed}
        rows = []
        for family, values in zip(self.families, self.scored.values, strict=True):
            histogram = Histogram()
            histogram.add(torch.from_numpy(values.astype(np.float32)))
            rows.append(common | _where(family) | describe(histogram))
        return pa.Table.from_pylist(rows, schema=SCORE_STATS)

    def _ends(self, k: int, *, largest: bool) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """(family, ranks from 1, units by rank) of the k extreme units of every pool; the lowest can be damaged."""
        found, scored, units = [], self.scored, PLURALS[self.spec.unit]
        for pool, families in by_pool(self.families, self.spec.mode).items():
            parts = [np.full(len(self.families[f]), f) for f in families]
            family, unit = np.concatenate(parts), np.concatenate([np.arange(len(part)) for part in parts])
            score, norm = (np.concatenate([of[f] for f in families]) for of in (scored.values, scored.norms))
            if not largest:
                family, unit, score = (values[norm > 0] for values in (family, unit, score))
            if len(score) < k:
                raise EsaError(f"k={k} is larger than {pool}, which holds {len(score):,} scored {units}; lower --topk")
            if not largest and len(score) < 2 * k:
                raise EsaError(f"k={k} is more than half of {pool} ({len(score):,} {units}): top and bottom overlap")
            first = np.concatenate([self.families[f].first for f in families])
            first = first if largest else first[norm > 0]
            tensor = np.array([scored.index[self.families[f].tensor.name] for f in family])
            order = np.lexsort((first, tensor, -score if largest else score))[:k]
            for f in np.unique(family[order]):
                at = np.flatnonzero(family[order] == f)
                found.append((int(f), at + 1, unit[order][at]))
        return found

    def rows(
        self, group: str, draw: int | None, number: int, ranks: np.ndarray, units: np.ndarray
    ) -> list[dict[str, Any]]:
        """What a ranking says of some units of a family."""
        family, scored = self.families[number], self.scored
        place = family.place(units)
        common = {"group": group, "control_draw": draw, "unit": family.unit, "members": family.members}
        return [
            common | _where(family) | {name: values[i] for name, values in place.items()}
            | {
                "rank": int(ranks[i]), "flat": int(family.first[unit]), "score": float(scored.values[number][unit]),
                "weight": float(scored.norms[number][unit]), "gradients": self._gradients(family, unit),
            }
            for i, unit in enumerate(units.tolist())
        ]  # fmt: skip

    def _gradients(self, family: Family, unit: int) -> np.ndarray | None:
        if not self.gradients:
            return None
        found = []
        for name, flat in family.weights(unit).items():
            gradient = self.scores.signed("gradient", self.scored.index[name], torch.from_numpy(flat))
            if gradient is None:
                return None
            found.append(gradient.float().cpu().numpy())
        return np.concatenate(found)


def _where(family: Family) -> dict[str, Any]:
    tensor = family.tensor
    return {"tensor": tensor.name, "layer": tensor.layer, "component": family.component, "expert": family.expert}
