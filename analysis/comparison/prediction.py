"""Models that weren't measured: what the laws of those that were foresee of them, and how surely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from analysis.comparison.laws import ALL, scaled
from analysis.comparison.loading import Comparison
from analysis.comparison.quantities import MOST, measured
from analysis.statistics.scaling import Fit, predicted

PREDICTIONS: dict[str, Any] = {
    "quantity": pl.String, "series": pl.String, "size": pl.Int64, "beyond": pl.Float64, "model": pl.String,
    "law": pl.String, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64, "measured": pl.Float64,
    "inside": pl.Boolean,
}  # fmt: skip


#: Times the largest model, up to which any law is followed.
REACH = 3.0
FAR = ("power", "constant", "broken power")


def _carrying(fits: list[Fit], beyond: float) -> Fit:
    """The most probable law that can be followed so far."""
    return fits[0] if beyond <= REACH else next(f for f in fits if f.law.name in FAR)


def predictions(comparison: Comparison, sizes: Sequence[int] = ()) -> pl.DataFrame:
    """One row per quantity, series and size: what a further model of the series would measure.

    Parameters
    ----------
    sizes
        Parameters in blocks. None: those of the models whose family isn't fitted, whose own measurement then stands
        beside the prediction (``measured``, and whether the interval holds it): they are of another family, so that it
        doesn't is no failure of the law.

    Returns
    -------
    polars.DataFrame
        ``value`` with its 95% prediction interval, by the most probable law of the series; ``beyond`` is the size over
        that of the largest model of the series. The interval takes the law for granted, which far beyond is unsafe;
        linear and exponential laws run into 0 or infinity there, so beyond :data:`REACH` power laws stand in for them.

    Example
    -------
    >>> predictions(compare(["results/pythia"]), sizes=[70_000_000_000])  # doctest: +SKIP
    """
    found, series = measured(comparison), [s for s in scaled(comparison) if s.fits]
    inside = {model for s in series if s.series.name != ALL for model in s.series.models}
    alone = [r for r in comparison.models.iter_rows(named=True) if r["model"] not in inside and r["body"]]
    wanted = [(int(n), None) for n in sizes] or [(r["body"], r["model"]) for r in alone]
    rows = []
    for s in series:
        for size, model in (w for w in wanted if w[1] not in s.series.models):
            law = _carrying(s.fits, size / float(s.series.sizes.max()))
            p = predicted(law, np.array([float(size)]), replicates=s.series.replicates)
            own = found.get((s.series.quantity, model)) if model else None
            row = {
                "quantity": s.series.quantity, "series": s.series.name, "size": size, "model": model,
                "beyond": size / float(s.series.sizes.max()), "law": law.law.name, "value": float(p.value[0]),
                "low": float(p.low[0]), "high": min(float(p.high[0]), MOST[s.series.quantity]),
            }  # fmt: skip
            if own is not None:
                row |= {"measured": own.value, "inside": bool(p.low[0] <= own.value <= p.high[0])}
            rows.append(row)
    return pl.DataFrame(rows, schema=PREDICTIONS)
