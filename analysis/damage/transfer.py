"""Does a given set, say another model's, break this model as its own super weights do?"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.damage.paired import aligned, bounds
from analysis.damage.recovery import NO_DAMAGE
from analysis.damage.windows import baseline, differences, kinds_of_damage
from analysis.names import first_score, label
from analysis.scores.overlap import PLACE
from analysis.scores.overlap import pool as pool_of
from analysis.scores.stability import pools
from analysis.statistics.crossed import crossed_interval, crossed_p, damage_interval, signed_log
from analysis.statistics.inference import corrected
from analysis.statistics.ratios import ratio
from analysis.study import Study

#: What names one damage, whatever weights it is done to.
KIND = ["perturbation", "strength", "variant"]

#: Controls of a list, as the columns' prefixes.
LIST_CONTROLS = {"random": "random_k", "matched": "matched_k"}

TRANSFER: dict[str, Any] = {
    "list": pl.String, "k": pl.Int64, "perturbation": pl.String, "strength": pl.Float64, "variant": pl.String,
    "damage": pl.String, "seeds": pl.Int64, "diverged": pl.Int64, "windows": pl.Int64, "listed": pl.Float64,
    "listed_low": pl.Float64, "listed_high": pl.Float64, "own_metric": pl.String, "own_mode": pl.String,
    "own_k": pl.Int64, "own_n_weights": pl.Int64, "own_diverged": pl.Int64, "own": pl.Float64, "own_low": pl.Float64,
    "own_high": pl.Float64, "ratio": pl.Float64, "ratio_low": pl.Float64, "ratio_high": pl.Float64,
    "ratio_why_not": pl.String, "random": pl.Float64, "minus_random": pl.Float64, "minus_random_low": pl.Float64,
    "minus_random_high": pl.Float64, "p": pl.Float64, "p_holm": pl.Float64, "matched": pl.Float64,
    "minus_matched": pl.Float64, "minus_matched_low": pl.Float64, "minus_matched_high": pl.Float64,
    "p_matched": pl.Float64, "jaccard": pl.Float64, "jaccard_low": pl.Float64, "jaccard_high": pl.Float64,
    "chance": pl.Float64,
}  # fmt: skip


@lru_cache(maxsize=8)
def transfer(study: Study) -> pl.DataFrame:
    """One row per list and kind of damage: what damaging the listed weights costs, beside the model's own and controls.

    ``listed`` and ``own`` are ΔNLL in nats per token with 95% intervals for further windows and seeds. The own set is
    the super set (``own_metric``, ``own_mode``, ``own_k``) whose number of weights is nearest to the list's, of those
    that were damaged in this way; of equally near ones, the score that looks at text and comes first in the study.
    ``ratio`` = listed/own, paired by seed and window, with Fieller's interval
    (:func:`analysis.damage.recovery.ratio`); the sets' sizes may differ, and nothing is divided by size, as damage
    isn't proportional to it. ``minus_random`` is listed − random weights of the same tensors, ``p`` its
    test (as in :func:`analysis.damage.effects.comparisons`) and ``p_holm`` corrects over the table;
    ``minus_matched`` likewise against others of similar magnitude.

    ``jaccard`` is the Jaccard index of the list with the own sets, averaged over seeds (``low`` and ``high`` the
    smallest and largest), ``chance`` what a random set of the own set's size per pool would have. It compares places
    (tensor, index into its memory), so it is about models of one shape.
    """
    cells = study.whole.filter(pl.col("metric") == "listed")
    if study.baselines.is_empty() or cells.filter(pl.col("group") == "listed").is_empty():
        return pl.DataFrame(schema=TRANSFER)
    base, rows = baseline(study), []
    keys = ["mode", *KIND]
    for key, mine in cells.sort(keys, nulls_last=True).group_by(keys, maintain_order=True):
        what = dict(zip(keys, key, strict=True))
        listed = mine.filter(pl.col("group") == "listed")
        if listed.is_empty():
            continue
        name = what.pop("mode")
        row = {"list": name, "k": listed["k"][0], **what, "damage": label(what), **_cost(listed, base, "listed")}
        row |= _against_controls(listed, mine, base)
        if (own := _nearest(study, what, listed)) is not None:
            row |= _against_own(listed, own, base) | _agreement(study, name, own)
        rows.append(row)
    return corrected(pl.DataFrame(rows, schema=TRANSFER), p_holm="holm")


def _cost(rows: pl.DataFrame, base: dict[str, Any], name: str) -> dict[str, Any]:
    """A set's ΔNLL with its interval, and how many of its cells diverged."""
    seeds, d = aligned([differences(rows, base)])
    diverged = rows.filter(pl.col("status") == "diverged").height
    row: dict[str, Any] = {"own_diverged" if name == "own" else "diverged": diverged}
    if name == "listed":
        row |= {"seeds": len(seeds), "windows": d.shape[2] if seeds else None}
    if seeds:
        row[name] = float(d.mean())
        row[f"{name}_low"], row[f"{name}_high"] = bounds(damage_interval(d[0]))
    return row


def _against_controls(listed: pl.DataFrame, cells: pl.DataFrame, base: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, group in LIST_CONTROLS.items():
        seeds, d = aligned([differences(rows, base) for rows in (listed, cells.filter(pl.col("group") == group))])
        if not seeds:
            continue
        row |= {name: float(d[1].mean()), f"minus_{name}": float((d[0] - d[1]).mean())}
        row[f"minus_{name}_low"], row[f"minus_{name}_high"] = bounds(crossed_interval(d[0] - d[1]))
        if d.shape[2] > 1:
            # As comparisons does: each set on the scale of the test.
            scaled, _ = next(kinds_of_damage(cells, base)).paired(group, signed_log)
            row["p" if name == "random" else f"p_{name}"] = crossed_p(np.array(list(scaled.values())))
    return row


def _nearest(study: Study, what: dict[str, Any], listed: pl.DataFrame) -> pl.DataFrame | None:
    """The cells of the super set nearest in size that was damaged in the same way; None if there is none."""
    same = [pl.col(name).eq_missing(pl.lit(what[name])) for name in KIND]
    own = study.whole.filter(*same, pl.col("group") == "super").drop_nulls("n_weights")
    if own.is_empty():
        return None
    size, first = listed["n_weights"].max() or listed["k"][0], first_score(study)
    order = [first, *((s["metric"], s["mode"]) for s in study.spec["scores"])]
    sizes = own.group_by("metric", "mode", "k").agg(pl.col("n_weights").max())
    near = min(
        sizes.iter_rows(),
        key=lambda r: (abs(r[3] - size), order.index(r[:2]) if r[:2] in order else len(order), r[2]),
    )
    return own.filter(*(pl.col(n) == v for n, v in zip(("metric", "mode", "k"), near, strict=False)))


def _against_own(listed: pl.DataFrame, own: pl.DataFrame, base: dict[str, Any]) -> dict[str, Any]:
    row = {f"own_{name}": own[name][0] for name in ("metric", "mode", "k")}
    row |= {"own_n_weights": own["n_weights"].max(), **_cost(own, base, "own")}
    seeds, d = aligned([differences(listed, base), differences(own, base)])
    found = ratio(d[0], d[1])
    if found is None:
        why = NO_DAMAGE.replace("whole", "own") if seeds else "no seed has both sets with a finite loss"
        return row | {"ratio_why_not": why}
    row["ratio_low"], row["ratio_high"] = bounds(found[1])
    return row | {"ratio": found[0]}


def _agreement(study: Study, name: str, own: pl.DataFrame) -> dict[str, Any]:
    """Jaccard of a list with the super set of each seed, and its chance level."""
    metric, mode, k = (own[column][0] for column in ("metric", "mode", "k"))
    ranked = study.rankings.filter((pl.col("rank") <= k) | (pl.col("group") == "listed"))
    # The list is the same for every seed.
    listed = ranked.filter((pl.col("group") == "listed") & (pl.col("mode") == name)).unique(PLACE, maintain_order=True)
    supers = ranked.filter((pl.col("group") == "super") & (pl.col("metric") == metric) & (pl.col("mode") == mode))
    if listed.is_empty() or supers.is_empty():
        return {}
    values = []
    for _, mine in supers.group_by("seed"):
        both = mine.join(listed, on=PLACE, how="semi").height
        values.append(both / (mine.height + listed.height - both))
    sizes = pools(study, metric, mode)
    counts = dict(listed.group_by(pool_of(mode).alias("pool")).len().iter_rows())
    return {
        "jaccard": sum(values) / len(values),
        "jaccard_low": min(values),
        "jaccard_high": max(values),
        "chance": expected_jaccard(counts, sizes, k) if sizes else None,
    }


def expected_jaccard(listed: dict[str, int], sizes: dict[str, int], k: int) -> float:
    """Expected overlap over expected union of a given set and k random weights of each pool.

    ``listed`` and ``sizes`` are, by pool, how many weights the given set has there and how many there are. With one
    pool of N and m given ones it is (mk/N)/(m + k − mk/N).

    >>> expected_jaccard({"all": 5}, {"all": 100}, 10) == 0.5 / 14.5
    True
    """
    shared = sum(m * min(k, sizes[pool]) / sizes[pool] for pool, m in listed.items() if pool in sizes)
    union = sum(listed.values()) + sum(min(k, n) for n in sizes.values()) - shared
    return shared / union if union else float("nan")
