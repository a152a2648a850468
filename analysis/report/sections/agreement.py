"""Sections on agreement: between seeds, and between scores."""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.names import first_score
from analysis.report import figures, wording
from analysis.report.parts import Figure, Section, Table, score_order
from analysis.report.questions import question
from analysis.scores.agreement import ensemble_stability, score_agreement, score_correlations
from analysis.scores.convergence import CRITERION, TOLERANCE, jaccard_by_windows, stable_from
from analysis.scores.overlap import RBO_P
from analysis.scores.stability import jaccard_by_pool, outlier_seeds
from analysis.study import Study
from esa_ray.spec import is_data_free


def _seeing(table: pl.DataFrame) -> pl.DataFrame:
    return table.filter(~pl.col("metric").map_elements(is_data_free, return_dtype=pl.Boolean))


@question("weights", figures.stability, figures.stability_by_k, figures.stability_by_windows)
def stability(study: Study) -> Section | None:
    """From which k, and from how many windows on, seeds agree."""
    table = _seeing(stable_from(study))
    if table.is_empty():
        return None
    order = score_order(study)
    rows = sorted(table.iter_rows(named=True), key=lambda r: (r["axis"], order.get((r["metric"], r["mode"]), 99)))
    answer = " ".join(filter(None, [_stable_words(study, rows), _outlier_words(study), _pool_words(study)]))
    columns = [
        "<score",
        "<pool",
        "<size",
        "largest",
        "Jaccard there",
        f"≥ {CRITERION} from",
        "settled from",
        "~why not",
    ]
    cells = [
        [r["metric"], r["mode"], "k" if r["axis"] == "k" else f"windows (k = {r['k']})",
         f"{r['largest']:,}", f"{r['jaccard']:.2f}", _size(r["criterion"]), _size(r["settled"]), r["why_not"] or ""]
        for r in rows
    ]  # fmt: skip
    note = f"Settled: from there on within {TOLERANCE} of the value at the largest size. Sizes are those in the figure."
    return Section(
        "stable", "How large a set, and how much text, until seeds agree?", answer,
        "Judged by the mean over pairs of seeds; the intervals leave out one seed at a time, so they speak of further "
        "seeds of this model and text, know little with few seeds, and can't speak of other text or models. The set of "
        "a smaller k is the beginning of the ranking.",
        [Figure("stability_by_k", "Jaccard between seeds against k",
                "Mean Jaccard between seeds against k (95% intervals over seeds). The dotted line is chance."),
         Figure("stability_by_windows", "Jaccard between seeds against the number of calibration windows",
                f"The same at k = {max(study.spec['topk'])} against the calibration windows that a score is made of.")],
        [Table(columns, cells, note=note), _windows_table(study)],
    )  # fmt: skip


def _size(size: int | None) -> str:
    return "–" if size is None else f"{size:,}"


def _stable_words(study: Study, rows: list[dict[str, Any]]) -> str:
    metric, mode = first_score(study)
    parts = []
    for r in rows:
        if (r["metric"], r["mode"]) == (metric, mode) and (r["axis"] == "k" or r["k"] == max(study.spec["topk"])):
            here = f"Jaccard {r['jaccard']:.2f} at the largest"
            if r["axis"] == "k":
                parts.append(f"at no k ({here})" if r["criterion"] is None else f"from k = {r['criterion']} on")
            elif r["criterion"] is None:
                parts.append(f"at no number of calibration windows ({here})")
            else:
                parts.append(f"from {r['criterion']} calibration windows on (at k = {r['k']})")
    if not parts:
        return ""
    return f"By {metric}, {mode}, seeds agree with a Jaccard of {CRITERION} or more " + ", and ".join(parts) + "."


def _outlier_words(study: Study) -> str:
    table = _seeing(outlier_seeds(study))
    if table.is_empty():
        return ""
    if table["outlier"].null_count() == len(table):
        return f"Whether a seed is an outlier can't be told: {table['why_not'][0]}."
    out = table.filter("outlier")
    if out.is_empty():
        return "No seed agrees far less than the others."
    names = [f"{s} ({m}, {mode})" for s, m, mode in out.select("seed", "metric", "mode").iter_rows()]
    return f"Seeds that agree far less than the others: {', '.join(names)}."


def _pool_words(study: Study) -> str:
    metric, mode = first_score(study)
    table = jaccard_by_pool(study).filter((pl.col("metric") == metric) & (pl.col("mode") == mode)).drop_nans("jaccard")
    if len(table) < 2:
        return ""
    low, high = (table.sort("jaccard", "pool").row(i, named=True) for i in (0, -1))
    name = "layer " if mode == "per_layer" else ""
    return (
        f"Within single pools it runs from {low['jaccard']:.2f} ({name}{low['pool']}) "
        f"to {high['jaccard']:.2f} ({name}{high['pool']}), which is spread and no replication."
    )


def _windows_table(study: Study) -> Table:
    table = _seeing(jaccard_by_windows(study))
    columns = ["<score", "<pool", "k", "windows", "<Jaccard between seeds", "with own full set", "RBO", "chance"]
    rows = [
        [r["metric"], r["mode"], str(r["k"]), str(r["windows"]), wording.within(r["jaccard"], r["low"], r["high"]),
         f"{r['own']:.2f}", wording.within(r["rbo"], None, None), wording.significant(r["chance"], 1)]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    return Table(columns, rows, "By number of calibration windows", folded=True)


@question("weights", figures.scores)
def scores(study: Study) -> Section | None:
    """How far scores choose the same weights, and whether ensembles are stabler."""
    table = score_agreement(study)
    if table.is_empty():
        return None
    k, (_, mode) = max(study.spec["topk"]), first_score(study)
    shown = pl.concat([
        table.filter((pl.col("k") == k) & (pl.col("mode") == mode)).sort("jaccard", descending=True),
        table.filter((pl.col("k") != k) | (pl.col("mode") != mode)),
    ])  # fmt: skip
    columns = ["<scores", "<pool", "k", "<Jaccard", "chance", "share in common", "RBO", "Spearman"]
    rows = [
        [f"{r['a']}, {r['b']}", r["mode"], str(r["k"]), _ranged(r, "jaccard"), wording.significant(r["chance"], 1),
         wording.percent(r["overlap"]), f"{r['rbo']:.2f}", wording.within(r["spearman"], None, None)]
        for r in shown.iter_rows(named=True)
    ]  # fmt: skip
    best = shown.row(0, named=True)
    worst = shown.filter((pl.col("k") == best["k"]) & (pl.col("mode") == best["mode"])).row(-1, named=True)
    answer = f"At k = {best['k']}, {best['a']} and {best['b']} agree most (Jaccard {best['jaccard']:.2f})"
    answer += f", {worst['a']} and {worst['b']} least ({worst['jaccard']:.2f})." if best != worst else "."
    return Section(
        "scores", "Do scores choose the same weights?", f"{answer} {_ensemble_words(study)}".strip(),
        "Two scores of one seed see the same text; ranges are over seeds. Spearman is over the union of both sets, in "
        "each pool, with what one set lacks tied last: sets that share nothing have about −0.86, not 0. RBO: "
        f"rank-biased overlap, p = {RBO_P}. Agreement of scores isn't evidence that either is right.",
        [Figure("scores", "Jaccard of the super sets of each pair of scores",
                f"Jaccard index of the sets that two scores choose from the same text ({mode}, k = {k}).")],
        [Table(columns, rows), _ensemble_table(study), _correlation_table(study)],
    )  # fmt: skip


def _ranged(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_min"], row[f"{name}_max"]
    return f"{row[name]:.2f}" + (f" ({low:.2f}–{high:.2f})" if row["seeds"] > 1 else "")


def _ensemble_words(study: Study) -> str:
    table = ensemble_stability(study).filter(pl.col("k") == max(study.spec["topk"]))
    if table.is_empty():
        return ""
    better = table.filter(pl.col("low") > 0).height
    worse = table.filter(pl.col("high") < 0).height
    return (
        f"Ensembles against their members, between seeds: stabler in {better} of {len(table)} comparisons, less stable "
        f"in {worse}, undecided in {len(table) - better - worse} (95% intervals)."
    )


def _ensemble_table(study: Study) -> Table:
    columns = ["<ensemble", "<member", "<pool", "k", "Jaccard", "member's", "<difference", "pairs of seeds higher"]
    rows = [
        [r["ensemble"], r["member"], r["mode"], str(r["k"]), f"{r['jaccard']:.2f}", f"{r['member_jaccard']:.2f}",
         wording.within(r["difference"], r["low"], r["high"]), f"{r['pairs_higher']}/{r['pairs']}"]
        for r in ensemble_stability(study).sort("k", descending=True).iter_rows(named=True)
    ]  # fmt: skip
    note = "Stabler isn't better: a member that looks at little or no text makes any ensemble agree."
    return Table(columns, rows, "Ensembles against their members: Jaccard between seeds", note)


def _correlation_table(study: Study) -> Table:
    rows = [
        [f"{r['a']}, {r['b']}", wording.within(r["spearman"], None, None), wording.within(r["sample"], None, None),
         str(r["weights"])]
        for r in score_correlations(study).sort("spearman", descending=True).iter_rows(named=True)
    ]  # fmt: skip
    note = "Over all weights, each sampled one counts 1/inclusion times; most of them matter to no score."
    return Table(["<scores", "all weights", "sample", "sampled"], rows, "Spearman correlation of scores", note)
