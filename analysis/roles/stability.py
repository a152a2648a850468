"""Whether other seeds, other texts and other kinds of damage give the same weights the same roles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from analysis.roles.assigned import TOP
from analysis.roles.table import leading
from analysis.statistics.inference import LEVEL
from analysis.study import Study

#: Resamples of weights: counts of a few hundred pairs.
RESAMPLES = 1_999

STABILITY: dict[str, Any] = {
    "over": pl.String, "one": pl.String, "other": pl.String, "of": pl.String, "weights": pl.Int64, "pairs": pl.Int64,
    "both": pl.Int64, "only_one": pl.Int64, "only_other": pl.Int64, "jaccard": pl.Float64, "jaccard_low": pl.Float64,
    "jaccard_high": pl.Float64, "kappa": pl.Float64, "kappa_low": pl.Float64, "kappa_high": pl.Float64,
    "why_not": pl.String,
}  # fmt: skip
_PAIR = ["subject", "role"]


@lru_cache(maxsize=8)
def role_stability(*studies: Study) -> pl.DataFrame:
    """One row per two conditions that differ in the seed, the kind of damage, or the text (studies of one model; of two
    on the same text nothing is compared).

    Compared are all pairs of a role and a leading weight that both conditions damaged. ``jaccard`` is the share of the
    pairs with a role in either that have it in both, ``kappa`` Cohen's κ: agreement beyond chance over all pairs. Their
    95% intervals are a bootstrap over weights, all pairs of a weight together. ``of`` is "roles" where both conditions
    held mediators, else "necessity": which pairs are necessary.
    """
    tables = [(_text(study), leading(study).filter((pl.col("unit") == "weight") & (pl.col("rank") <= TOP)))
              for study in studies]  # fmt: skip
    rows = [row for text, table in tables for row in _within(table)]
    for (name, one), (other_name, other) in combinations(tables, 2):
        if name != other_name:
            rows.append(_row("text", name, other_name, _first(one), _first(other)))
    return pl.DataFrame(rows, schema=STABILITY)


def _text(study: Study) -> str:
    return str(study.spec["data"]["source"])


def _first(table: pl.DataFrame) -> pl.DataFrame:
    """The rows of the first kind of damage and seed of a table."""
    for _, mine in table.group_by("edit", "seed", maintain_order=True):
        return mine
    return table


def _within(table: pl.DataFrame) -> Iterator[dict[str, Any]]:
    for over, fixed in (("seed", "edit"), ("edit", "seed")):
        for (at,), mine in table.group_by(fixed, maintain_order=True):
            parts = {str(v): rows for (v,), rows in mine.group_by(over, maintain_order=True)}
            for (a, one), (b, other) in combinations(parts.items(), 2):
                yield _row(over, f"{a}, {at}" if over == "edit" else f"{at}, {a}",
                           f"{b}, {at}" if over == "edit" else f"{at}, {b}", one, other)  # fmt: skip


def _row(over: str, name: str, other_name: str, one: pl.DataFrame, other: pl.DataFrame) -> dict[str, Any]:
    held = all(part["recovered"].is_not_null().any() for part in (one, other))
    by = "holds" if held else "necessary"
    told: dict[str, Any] = {"over": over, "one": name, "other": other_name, "of": "roles" if held else "necessity"}
    both = one.drop_nulls("p").select(*_PAIR, a=by).join(other.drop_nulls("p").select(*_PAIR, b=by), on=_PAIR)
    weights = both["subject"].n_unique()
    told |= {"weights": weights, "pairs": len(both)}
    if weights < 2:
        return told | {"why_not": f"{weights} leading weight{'s' * (weights != 1)} in common"}
    counts = _counts(both)
    total = counts.sum(axis=0)
    told |= {"both": int(total[0]), "only_one": int(total[1]), "only_other": int(total[2])}
    if not total[:3].any():
        return told | {"why_not": "neither gives any weight a role"}
    draws = np.random.default_rng(0).multinomial(weights, np.full(weights, 1 / weights), size=RESAMPLES) @ counts
    for measure, value in (("jaccard", jaccard), ("kappa", kappa)):
        told[measure] = float(value(total))
        drawn = value(draws)
        drawn = drawn[np.isfinite(drawn)]
        ends = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        told[f"{measure}_low"], told[f"{measure}_high"] = map(float, ends)
    return told


def _counts(both: pl.DataFrame) -> np.ndarray:
    """(weights, 4): a weight's pairs with the role in both, in one, in the other, in neither."""
    a, b = pl.col("a"), pl.col("b")
    kinds = (a & b, a & ~b, ~a & b, ~a & ~b)
    table = both.group_by("subject", maintain_order=True).agg(*(k.sum().alias(str(i)) for i, k in enumerate(kinds)))
    return table.drop("subject").to_numpy()


def jaccard(counts: np.ndarray) -> np.ndarray:
    """Both over either, of (…, 4) counts; NaN where neither has any.

    >>> float(jaccard(np.array([2, 1, 1, 96])))
    0.5
    """
    with np.errstate(invalid="ignore"):
        return np.asarray(counts[..., 0] / counts[..., :3].sum(axis=-1))


def kappa(counts: np.ndarray) -> np.ndarray:
    """Cohen's κ = (observed − expected)/(1 − expected) agreement of (…, 4) counts; NaN where chance alone is 1.

    >>> round(float(kappa(np.array([20, 5, 10, 15]))), 3)  # observed 0.7, expected 0.5
    0.4
    """
    n = counts.sum(axis=-1)
    yes = (counts[..., 0] + counts[..., 1]) / n, (counts[..., 0] + counts[..., 2]) / n
    expected = yes[0] * yes[1] + (1 - yes[0]) * (1 - yes[1])
    observed = (counts[..., 0] + counts[..., 3]) / n
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((observed - expected) / (1 - expected))


def agreements(studies: Sequence[Study]) -> pl.DataFrame:
    """The rows of :func:`role_stability` that have a number."""
    return role_stability(*studies).drop_nulls("kappa")
