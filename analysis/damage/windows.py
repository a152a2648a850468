"""What damage costs in each window, by seed: each stored cell is read once, whichever table asks for it.

Legend: a cell costs ΔNLL in nats per token in each of W evaluation windows, (W,). A cell that was stopped early has
fewer windows, always the first ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from analysis.names import DAMAGE, GROUP_ORDER
from analysis.study import Study
from esa_ray.spec import TREATED


def baseline(study: Study) -> dict[str, Any]:
    """The intact model: nats per token, perplexity, accuracy, and its windows' sums."""
    if study.baselines.is_empty():
        raise ValueError("the baseline is not measured yet")
    row = study.baselines.row(0, named=True)
    nll, tokens = np.array(row["nll"]), np.array(row["tokens"])
    rate = float(nll.sum() / tokens.sum())
    return {
        "nll": nll,
        "tokens": tokens,
        "nll_per_token": rate,
        "perplexity": math.exp(rate),
        "accuracy": sum(row["hits"]) / int(tokens.sum()),
    }


def damage_by_window(rows: pl.DataFrame, base: dict[str, Any]) -> list[np.ndarray]:
    """ΔNLL of each window in nats per token, of each row of cells or ablations.

    A row is compared with the intact loss where it was computed: its own ``intact_nll``, or the baseline where that is
    the same. Hardware of another kind rounds otherwise, which can be as much as a control costs. A cell that was
    stopped early has only the first windows.
    """
    return [
        (np.array(nll) - (base["nll"] if own is None else np.array(own))[: len(nll)]) / base["tokens"][: len(nll)]
        for nll, own in rows.select("nll", "intact_nll").iter_rows()
    ]


class Cell(NamedTuple):
    """A cell of a whole set: its seed, which of a control's draws it is, its status, and what it costs if it is ok."""

    seed: int
    draw: int | None
    status: str
    cost: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Damaged:
    """One kind of damage to one kind of set (the columns DAMAGE by name), and the cells of each group."""

    what: dict[str, Any]
    groups: dict[str, list[Cell]]

    @property
    def key(self) -> tuple:
        """What names it, as a key of tables."""
        return tuple(self.what.values())

    @property
    def treated(self) -> str | None:
        """The group of which the others are controls."""
        return next((g for g in self.groups if g in TREATED), None)

    @property
    def seeds(self) -> int:
        """How many seeds have a cell, with a result or not."""
        return len({cell.seed for cells in self.groups.values() for cell in cells})

    def by_draw(self, group: str) -> dict[int, list[np.ndarray]]:
        """seed → what each of its cells costs: one, or one a set of a drawn control.

        A seed is left out unless all of its sets have a finite loss: a mean of those that have would be conditional
        on it.
        """
        return self._by_draw.get(group, {})

    @cached_property
    def _by_draw(self) -> dict[str, dict[int, list[np.ndarray]]]:
        return {group: _finite(cells) for group, cells in self.groups.items()}

    def costs(self, group: str) -> dict[int, np.ndarray]:
        """seed → what its cells cost, the mean over its sets; for seeds of which all have a finite loss."""
        return self._costs.get(group, {})

    @cached_property
    def _costs(self) -> dict[str, dict[int, np.ndarray]]:
        return {group: {s: _mean(x) for s, x in sets.items()} for group, sets in self._by_draw.items()}

    def paired(
        self, control: str, scale: Callable[[np.ndarray], np.ndarray] = lambda x: x
    ) -> tuple[dict[int, np.ndarray], int]:
        """(seed → treated − control per window, where neither diverged; on how many of the first windows).

        ``scale`` is applied to the damage of each set before means and differences. Of several control sets a seed it
        is their mean that the treated set is compared with. All seeds are cut to the windows that every one of their
        cells has; 0 windows where no seed has both.
        """
        treated, others = self.by_draw(self.treated or ""), self.by_draw(control)
        seeds = sorted(treated.keys() & others.keys())
        windows = min((len(d) for x in (treated, others) for s in seeds for d in x[s]), default=0)

        def cost(sets: list[np.ndarray]) -> np.ndarray:
            return _mean([scale(d[:windows]) for d in sets])

        return {s: cost(treated[s]) - cost(others[s]) for s in seeds}, windows


def _finite(cells: list[Cell]) -> dict[int, list[np.ndarray]]:
    found: dict[int, list[np.ndarray]] = {}
    lost = {cell.seed for cell in cells if cell.status != "ok"}
    for cell in sorted(cells, key=lambda cell: cell.seed):
        if cell.seed not in lost and cell.cost is not None:
            found.setdefault(cell.seed, []).append(cell.cost)
    return found


def kinds_of_damage(cells: pl.DataFrame, base: dict[str, Any]) -> Iterator[Damaged]:
    """Each kind of damage that was done to these cells, in a fixed order."""
    cells = cells.sort(DAMAGE, nulls_last=True, maintain_order=True)
    costs = iter(damage_by_window(cells.filter(pl.col("status") == "ok"), base))
    kinds: dict[tuple, dict[str, list[Cell]]] = {}
    for *key, group, seed, draw, status in cells.select(*DAMAGE, "group", "seed", "control_draw", "status").iter_rows():
        cell = Cell(seed, draw, status, next(costs) if status == "ok" else None)
        kinds.setdefault(tuple(key), {}).setdefault(group, []).append(cell)
    for names, groups in kinds.items():
        ordered = {group: groups[group] for group in GROUP_ORDER if group in groups}
        yield Damaged(dict(zip(DAMAGE, names, strict=True)), ordered)


@lru_cache(maxsize=8)
def damaged(study: Study) -> tuple[Damaged, ...]:
    """Each kind of damage to each kind of whole set of a study, in a fixed order."""
    return tuple(kinds_of_damage(study.whole, baseline(study)))


def differences(rows: pl.DataFrame, base: dict[str, Any]) -> dict[int, np.ndarray]:
    """seed → ΔNLL of each window in nats per token, for cells that have a finite loss; the mean over a seed's sets."""
    ok = rows.filter(pl.col("status") == "ok")
    cells = [Cell(s, None, "ok", d) for s, d in zip(ok["seed"].to_list(), damage_by_window(ok, base), strict=True)]
    cells += [Cell(s, None, "", None) for s in rows.filter(pl.col("status") != "ok")["seed"].to_list()]
    return {seed: _mean(sets) for seed, sets in _finite(cells).items()}


def _mean(sets: list[np.ndarray]) -> np.ndarray:
    return sets[0] if len(sets) == 1 else common_windows(sets).mean(axis=0)


def costs(rows: pl.DataFrame, base: dict[str, Any]) -> dict[int, np.ndarray]:
    """As :func:`differences`, with 0 for a part of a set that has no weights which the damage can change.

    Such a part is the intact model: leaving it out would make sums and shares those of the other seeds.
    """
    nothing = np.zeros(len(base["nll"]))
    return dict.fromkeys(rows.filter(pl.col("status") == "empty")["seed"].to_list(), nothing) | differences(rows, base)


def common_windows(rows: Iterable[np.ndarray]) -> np.ndarray:
    """D, (S, W): rows of windows, all cut to the first W that the shortest of them has."""
    rows = list(rows)
    shortest = min(map(len, rows))
    return np.array([x[:shortest] for x in rows])
