"""Single-weight edits as arrays, and how it is resampled.

Legend: a sample has n weights and W evaluation windows; ``delta`` and ``tokens`` have shape (n, W).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import polars as pl

from analysis.statistics.inference import LEVEL, Interval
from analysis.study import Study

NULL_EDIT = "null_edit"
ORDERS = ["first_order", "second_order"]
RESAMPLES = 400


@dataclass(frozen=True, eq=False)
class SingleWeights:
    """What one kind of edit did to each sampled weight, for one seed and one stratifying score."""

    seed: int
    sampled_by: str
    edit: str
    delta: np.ndarray
    tokens: np.ndarray
    metrics: list[str]
    scores: np.ndarray
    inclusion: np.ndarray
    stratum: np.ndarray
    predicted: dict[str, np.ndarray]
    component: list[str]
    layer: list[int | None]
    diverged: int

    def __len__(self) -> int:
        return len(self.delta)

    @property
    def what(self) -> dict[str, object]:
        """The columns that name this sample in a table."""
        return {"seed": self.seed, "sampled_by": self.sampled_by, "edit": self.edit}

    def measured(self, windows: np.ndarray | None = None) -> np.ndarray:
        """ΔNLL of each weight in nats per token, if window j counts ``windows[j]`` times; (n,)."""
        counts = np.ones(self.delta.shape[1]) if windows is None else windows
        return (self.delta @ counts) / (self.tokens @ counts)

    def draw_windows(self, rng: np.random.Generator) -> np.ndarray:
        """How often each window stands in one bootstrap sample of windows, (W,)."""
        w = self.delta.shape[1]
        return rng.multinomial(w, np.full(w, 1 / w)).astype(float)

    def draw_weights(self, rng: np.random.Generator) -> np.ndarray:
        """How often each weight stands in one bootstrap sample drawn within strata, (n,).

        A stratum that was taken whole (inclusion 1) is no sample and stays as it is.
        """
        counts = np.ones(len(self))
        for number in range(self.stratum.max(initial=-1) + 1):
            mine = np.flatnonzero((self.stratum == number) & (self.inclusion < 1))
            if len(mine):
                counts[mine] = rng.multinomial(len(mine), np.full(len(mine), 1 / len(mine)))
        return counts


def _matrix(column: pl.Series) -> np.ndarray:
    return np.array(column.to_list(), dtype=float)


def _census(key: tuple[int, str, str], rows: pl.DataFrame) -> SingleWeights:
    delta = _matrix(rows["delta_nll"])
    fine = np.isfinite(delta).all(axis=1)
    rows, delta = rows.filter(fine), delta[fine]
    seed, metric, edit = key
    return SingleWeights(
        seed, metric, edit, delta, _matrix(rows["tokens"]),
        metrics=rows["metrics"][0].to_list() if len(rows) else [],
        scores=_matrix(rows["scores"]),
        inclusion=rows["inclusion"].to_numpy(),
        stratum=rows.select(pl.struct("component", "stratum").rank("dense") - 1).to_series().to_numpy().astype(int),
        predicted={o: rows[o].cast(pl.Float64).fill_null(float("nan")).to_numpy() for o in ORDERS},
        component=rows["component"].to_list(),
        layer=rows["layer"].to_list(),
        diverged=int((~fine).sum()),
    )  # fmt: skip


@lru_cache(maxsize=8)
def _all(study: Study) -> tuple[SingleWeights, ...]:
    rows = study.fidelity.drop_nulls(["delta_nll", "inclusion"])
    keys = ["seed", "metric", "edit"]
    groups = rows.sort("tensor", "flat").group_by(keys, maintain_order=True)
    found = [_census((seed, metric, edit), mine) for (seed, metric, edit), mine in groups]
    order = {seed: i for i, seed in enumerate(study.spec["seeds"])}
    return tuple(sorted(found, key=lambda c: (order.get(c.seed, len(order)), c.sampled_by, c.edit != "zero", c.edit)))


def single_weight_samples(study: Study) -> Iterator[SingleWeights]:
    """Every sample of real edits, first seed first, that has at least three weights with a finite loss."""
    return (c for c in _all(study) if c.edit != NULL_EDIT and len(c) > 2)


def noise_floor_of(study: Study, sample: SingleWeights) -> tuple[float | None, int]:
    """(95% quantile of |ΔNLL| per token of the null edits of the same seed, how many there are).

    A null edit changes no weight and draws roundings anew: what it measures is arithmetic.
    """
    null = [c for c in _all(study) if c.edit == NULL_EDIT and c.seed == sample.seed]
    values = np.concatenate([np.abs(c.measured()) for c in null]) if null else np.array([])
    return (float(np.quantile(values, LEVEL)), len(values)) if len(values) else (None, 0)


def percentile(boots: np.ndarray, level: float = LEVEL) -> Interval:
    """Percentile interval of bootstrap values; undefined where none is finite."""
    boots = boots[np.isfinite(boots)]
    if not len(boots):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(boots, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def centred(estimate: float, boots: np.ndarray, correlation: bool = False) -> Interval:
    """Percentile interval moved so that its median is the estimate; for statistics that noise pulls to one side.

    Noise of the windows lowers a correlation in the data once, and every resample adds as much again: plain
    percentiles then lie beside the estimate, and for ρ near 1 cover it less than half of the time. Moved on Fisher's
    z they cover ρ as measured on so many windows (simulated: 91–99%). Without ``correlation``, of a share, they are
    moved as they are and cut at 0 and 1.
    """
    boots = boots[np.isfinite(boots)]
    if not len(boots) or not np.isfinite(estimate):
        return Interval(float("nan"), float("nan"))
    if correlation:
        z = np.arctanh(np.clip(np.append(boots, estimate), -0.99999, 0.99999))
        i = percentile(z[:-1] + z[-1] - np.median(z[:-1]))
        return Interval(float(np.tanh(i.low)), float(np.tanh(i.high)))
    return percentile(np.clip(boots + estimate - np.median(boots), 0, 1))
