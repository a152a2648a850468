"""Attention against feed-forward layers, and how damage moves with depth: within models, and over models.

What a sub-layer is worth is what silencing it costs (:mod:`esa_ray.evaluation.sublayers`). Blocks of a model are no
replications of it: within a model the unit is the window, over models it is the family.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import permutations
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from analysis.comparison.laws import named
from analysis.comparison.loading import Comparison
from analysis.comparison.quantities import survivors
from analysis.damage.windows import baseline, damage_by_window
from analysis.statistics.inference import LEVEL, bootstrap_means, corrected, standardised_mean, t_interval
from analysis.statistics.paired import hedges_g, paired_p
from analysis.statistics.scaling import NEAR
from analysis.study import Study
from esa_ray.statistics.intervals import expanded

#: Families from which on a signed-rank test can come below 0.05 at all (2 · 2⁻⁶ = 0.03).
FEWEST_FAMILIES = 6

SUBLAYERS: dict[str, Any] = {
    "model": pl.String, "layer": pl.Int64, "relative_depth": pl.Float64, "part": pl.String, "expert": pl.Int64,
    "delta_nll": pl.Float64, "low": pl.Float64, "high": pl.Float64, "share": pl.Float64, "weight": pl.Float64,
    "information": pl.Float64, "peak": pl.Float64,
}  # fmt: skip
WITHIN: dict[str, Any] = {
    "model": pl.String, "family": pl.String, "kind": pl.String, "blocks": pl.Int64, "attention": pl.Float64,
    "ffn": pl.Float64, "difference": pl.Float64, "low": pl.Float64, "high": pl.Float64, "g": pl.Float64,
    "g_low": pl.Float64, "g_high": pl.Float64, "p": pl.Float64, "p_holm": pl.Float64, "rho_attention": pl.Float64,
    "rho_ffn": pl.Float64, "left_out": pl.Int64,
}  # fmt: skip
OVER: dict[str, Any] = {
    "question": pl.String, "families": pl.Int64, "mean": pl.Float64, "low": pl.Float64, "high": pl.Float64,
    "g": pl.Float64, "p": pl.Float64, "p_holm": pl.Float64, "why_not": pl.String,
}  # fmt: skip


def by_window(study: Study, rows: pl.DataFrame) -> np.ndarray:
    """ΔNLL of each silenced part and window, nats per token, (rows, W)."""
    return np.array(damage_by_window(rows, baseline(study)))


@lru_cache(maxsize=64)
def sublayers(study: Study) -> pl.DataFrame:
    """One row a silenced sub-layer or expert: what it costs, nats per token, with a bootstrap interval over windows.

    ``share`` of the positions that an expert is given (each position goes to several), ``weight`` its mean routing
    weight there. Diverged ones have no ``delta_nll``.
    """
    rows, layers = study.ablations.sort("layer", "part", "expert"), study.resolved["layers"]
    if rows.is_empty():
        return pl.DataFrame(schema=SUBLAYERS)
    rng, found = np.random.default_rng(0), []
    positions = sum(baseline(study)["tokens"]) + len(baseline(study)["tokens"])
    for row in rows.iter_rows(named=True):
        told = {name: row[name] for name in ("model", "layer", "part", "expert", "information", "peak")}
        told["relative_depth"] = row["layer"] / max(layers - 1, 1)
        if row["positions"] is not None:
            seen = sum(row["positions"])
            told |= {"share": seen / positions, "weight": sum(row["routed"]) / seen if seen else None}
        if row["status"] == "ok":
            d = by_window(study, pl.DataFrame([row], schema=rows.schema))
            means = bootstrap_means(d, rng)
            tail = expanded(LEVEL, d.shape[1])
            low, high = np.quantile(means, [tail, 1 - tail])
            told |= {"delta_nll": float(d.mean()), "low": float(low), "high": float(high)}
        found.append(told)
    return pl.DataFrame(found, schema=SUBLAYERS)


@lru_cache(maxsize=4)
def within_models(comparison: Comparison) -> pl.DataFrame:
    """One row a model: silencing attention against silencing the FFN of the same block, the mean over blocks.

    ``difference`` is attention − ffn in nats per token with its bootstrap interval, ``g`` Hedges' g and ``p`` the
    permutation p, over windows; ``p_holm`` corrects over models. ``rho_…`` is Spearman's correlation of damage with
    depth over blocks, a description of the model. Blocks in which one of the two diverges are left out and counted.
    """
    found = []
    for fact, study in zip(comparison.models.iter_rows(named=True), comparison.studies, strict=True):
        rows = study.ablations.filter(pl.col("part").is_in(["attention", "ffn"]))
        sound = (
            rows.group_by("layer")
            .agg(pl.len(), (pl.col("status") == "ok").all().alias("ok"))
            .filter(pl.col("ok") & (pl.col("len") == 2))
        )
        both = rows.filter(pl.col("layer").is_in(sound["layer"].to_list())).sort("layer")
        if both.is_empty():
            continue
        d = {part: by_window(study, both.filter(pl.col("part") == part)) for part in ("attention", "ffn")}
        gap = (d["attention"] - d["ffn"]).mean(axis=0, keepdims=True)
        tail = expanded(LEVEL, gap.shape[1])
        low, high = np.quantile(bootstrap_means(gap, np.random.default_rng(0)), [tail, 1 - tail])
        g, g_interval = hedges_g(gap)
        found.append(
            {name: fact[name] for name in ("model", "family", "kind")}
            | {part: float(x.mean()) for part, x in d.items()}
            | {f"rho_{part}": _rho(x.mean(axis=1)) for part, x in d.items()}
            | {"blocks": len(sound), "left_out": rows["layer"].n_unique() - len(sound), "difference": float(gap.mean()),
               "low": float(low), "high": float(high), "g": g, "g_low": g_interval.low, "g_high": g_interval.high,
               "p": paired_p(gap)}
        )  # fmt: skip
    return corrected(pl.DataFrame(found, schema=WITHIN), p_holm="holm")


def _rho(damage: np.ndarray) -> float | None:
    """Spearman's correlation of damage with depth; none of fewer than four blocks."""
    if len(damage) < 4 or np.ptp(damage) == 0:
        return None
    return float(stats.spearmanr(np.arange(len(damage)), damage).statistic)


def over_families(comparison: Comparison) -> pl.DataFrame:
    """Is it so in models at large? One row a question.

    log(attention/ffn): the logarithm of what silencing one costs over the other; depth: Fisher's z of each model's
    correlation with depth. The unit is the family, the mean over its base models: sizes of one recipe are no
    independent models, nor is one that was tuned from another. ``p`` is Wilcoxon's signed-rank p, ``low`` and ``high``
    Student's interval of the mean, ``g`` the mean in standard deviations of a family, corrected for few. Too few
    families: ``why_not`` says so, and there is no p.
    """
    tuned = comparison.models.filter(pl.col("tuning") == "instruct")["model"].to_list()
    table = within_models(comparison).filter(~pl.col("model").is_in(tuned))
    ratio = pl.when((pl.col("attention") > 0) & (pl.col("ffn") > 0)).then((pl.col("attention") / pl.col("ffn")).log())
    questions = {
        "log(attention / ffn)": ratio,
        "depth of attention (Fisher z)": _fisher("rho_attention"),
        "depth of ffn (Fisher z)": _fisher("rho_ffn"),
    }
    means = table.group_by("family", maintain_order=True).agg(x.mean().alias(q) for q, x in questions.items())
    rows = [_over(q, means[q].drop_nulls().to_numpy()) for q in questions]
    return corrected(pl.DataFrame(rows, schema=OVER), p_holm="holm")


def _fisher(rho: str) -> pl.Expr:
    return pl.col(rho).clip(-0.999, 0.999).arctanh()


def _over(question: str, x: np.ndarray) -> dict[str, Any]:
    """A mean over families and whether it is zero."""
    told: dict[str, Any] = {"question": question, "families": len(x)}
    if len(x) < 2:
        return told | {"why_not": f"{len(x)} families: how they vary can't be seen"}
    interval = t_interval(x)
    told |= {"mean": float(x.mean()), "low": interval.low, "high": interval.high}
    told["g"] = standardised_mean(x)
    if len(x) < FEWEST_FAMILIES:
        return told | {
            "why_not": f"of {len(x)} families no signed-rank p can be below 0.05; {FEWEST_FAMILIES} are needed"
        }
    return told | {"p": float(stats.wilcoxon(x).pvalue)}


PAIRS: dict[str, Any] = {
    "quantity": pl.String, "first": pl.String, "second": pl.String, "pairs": pl.Int64, "ratio": pl.Float64,
    "low": pl.Float64, "high": pl.Float64, "g": pl.Float64, "p": pl.Float64, "p_holm": pl.Float64, "why_not": pl.String,
}  # fmt: skip

#: Pairs from which on Student's t is computed: with fewer its interval says nothing.
FEWEST_PAIRS = 3


def kinds_compared(comparison: Comparison, table: pl.DataFrame) -> pl.DataFrame:
    """Dense against mixture of experts, and base against instruction-tuned: pairs of models of one size.

    One row per quantity and pair of series. Models of one size in one series count as one, their mean; ``pairs`` are
    the sizes in common, of which three are needed. ``ratio`` is the geometric mean of second/first with Student's
    interval over pairs, ``p`` of the paired t test on logarithms: with few sizes it
    leans on their normality, which can't be checked. ``p_holm`` corrects over the whole table.

    Parameters
    ----------
    table
        :func:`analysis.comparison.quantities.quantities`.
    """
    series = comparison.models.with_columns(series=named())
    found = []
    names = series["series"].unique(maintain_order=True).to_list()
    for a, b in permutations(names, 2):
        if _contrast(series, a, b):
            found += _pairs(comparison, table, series, a, b)
    return corrected(pl.DataFrame(found, schema=PAIRS), p_holm="holm")


def _contrast(series: pl.DataFrame, a: str, b: str) -> bool:
    """Whether two series are a question: base → instruct of a family, or dense → moe, both base, of one vocabulary."""
    one, two = (series.filter(pl.col("series") == s).row(0, named=True) for s in (a, b))
    tuned = one["family"] == two["family"] and one["tuning"] != "instruct" and two["tuning"] == "instruct"
    base = one["tuning"] != "instruct" and two["tuning"] != "instruct" and one["vocabulary"] == two["vocabulary"]
    return tuned or (base and one["kind"] == "dense" and two["kind"] == "moe")


def _pairs(comparison: Comparison, table: pl.DataFrame, series: pl.DataFrame, a: str, b: str) -> list[dict[str, Any]]:
    found = []
    members = {s: series.filter(pl.col("series") == s)["model"].to_list() for s in (a, b)}
    for (name,), rows in table.group_by("quantity", maintain_order=True):
        told = {"quantity": name, "first": a, "second": b}
        if why := survivors(comparison, name, members[a] + members[b]):
            found.append(told | {"pairs": 0, "why_not": why})
            continue
        one, two = (_by_size(rows.filter(pl.col("model").is_in(members[s]))) for s in (a, b))
        x = np.array([
            two[n] - one[m] for m in one for n in two if 1 / NEAR <= n / m <= NEAR
        ])  # fmt: skip
        told |= {"pairs": len(x)}
        if len(x) < FEWEST_PAIRS:
            found.append(told | {"why_not": f"{len(x)} sizes in common; {FEWEST_PAIRS} are needed"})
            continue
        interval, g = t_interval(x), standardised_mean(x)
        told |= {
            "ratio": float(np.exp(x.mean())),
            "low": float(np.exp(interval.low)),
            "high": float(np.exp(interval.high)),
        }
        if g is not None:
            told |= {"g": g, "p": float(stats.ttest_1samp(x, 0).pvalue)}
        found.append(told)
    return found


def _by_size(rows: pl.DataFrame) -> dict[float, float]:
    """Size → mean logarithm of the models of that size, which count as one; the size is their first's."""
    found: dict[float, list[float]] = {}
    for row in rows.drop_nulls("body").sort("body").iter_rows(named=True):
        size = next((n for n in found if row["body"] / n <= NEAR), float(row["body"]))
        found.setdefault(size, []).append(math.log(row["value"]))
    return {size: float(np.mean(logs)) for size, logs in found.items()}
