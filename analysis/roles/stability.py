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
    pairs with a role in either that have it in both, ``kappa`` Cohen's κ with chance told within each role: that some
    roles are common and others rare is no agreement (:func:`kappa`). Their 95% intervals are a bootstrap over weights,
    all pairs of a weight together. Seeds and kinds of damage share their evaluation windows, texts don't. ``of`` is
    "roles" where both conditions held mediators, else "necessity": which pairs are necessary.
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
    pairs = total.sum(axis=0)
    told |= {"both": int(pairs[0]), "only_one": int(pairs[1]), "only_other": int(pairs[2])}
    if not pairs[:3].any():
        return told | {"why_not": "neither gives any weight a role"}
    drawn_weights = np.random.default_rng(0).multinomial(weights, np.full(weights, 1 / weights), size=RESAMPLES)
    draws = np.tensordot(drawn_weights, counts, axes=1)
    for measure, value in (("jaccard", jaccard), ("kappa", kappa)):
        told[measure] = float(value(total))
        drawn = value(draws)
        drawn = drawn[np.isfinite(drawn)]
        ends = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        told[f"{measure}_low"], told[f"{measure}_high"] = map(float, ends)
    return told


def _counts(both: pl.DataFrame) -> np.ndarray:
    """(weights, roles, 4): 1 where a weight has the role in both, in one, in the other, in neither."""
    a, b = both["a"].to_numpy(), both["b"].to_numpy()
    (names, roles), kinds = (both[c].unique(maintain_order=True).to_list() for c in _PAIR), 3 - 2 * a.astype(int) - b
    counts = np.zeros((len(names), len(roles), 4))
    at = [both[c].replace_strict({v: i for i, v in enumerate(each)}).to_numpy()
          for c, each in zip(_PAIR, (names, roles), strict=True)]  # fmt: skip
    counts[at[0], at[1], kinds] = 1
    return counts


def jaccard(counts: np.ndarray) -> np.ndarray:
    """Both over either, all roles together, of (…, roles, 4) counts; NaN where neither has any.

    >>> float(jaccard(np.array([[2, 1, 1, 96]])))
    0.5
    """
    pairs = counts.sum(axis=-2)
    with np.errstate(invalid="ignore"):
        return np.asarray(pairs[..., 0] / pairs[..., :3].sum(axis=-1))


def kappa(counts: np.ndarray) -> np.ndarray:
    """Cohen's κ = 1 − Σ disagreements/Σ disagreements by chance of (…, roles, 4) counts, both summed over roles.

    Chance is that of each role by itself. Over all pairs at once, two conditions would seem to agree merely because
    both give some roles often and others never. NaN where chance can't disagree.

    >>> round(float(kappa(np.array([[20, 5, 10, 15]]))), 3)  # observed 0.7, expected 0.5
    0.4
    """
    n = counts.sum(axis=-1)
    one, other = counts[..., 0] + counts[..., 1], counts[..., 0] + counts[..., 2]
    by_chance = (one * (n - other) + (n - one) * other) / np.maximum(n, 1)
    apart = (counts[..., 1] + counts[..., 2]).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(1 - apart / by_chance.sum(axis=-1))


def agreements(studies: Sequence[Study]) -> pl.DataFrame:
    """The rows of :func:`role_stability` that have a number."""
    return role_stability(*studies).drop_nulls("kappa")
