"""Sections on why one compression costs more than another: its factors, and the errors of its blocks."""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.compression.factors import factors as shares
from analysis.compression.layers import block_errors as errors
from analysis.compression.layers import error_correlations
from analysis.report import figures, wording
from analysis.report.parts import Figure, Section, Table
from analysis.report.questions import question
from analysis.study import Study


def _share(r: dict[str, Any], value: str = "share", low: str = "low", high: str = "high") -> str:
    text = wording.percent(r[value])
    return text if r[low] is None else f"{text} [{wording.percent(r[low])}, {wording.percent(r[high])}]"


@question("compression", figures.factors)
def factors(study: Study) -> Section | None:
    """Which choice explains how much compressing costs."""
    table = shares(study)
    if table.is_empty() or table["compressions"].max() == 0:
        return None
    rows = [
        [r["kind"], r["text"], r["term"], r["role"], "–" if r["df"] is None else str(r["df"]), _share(r),
         _share(r, "beyond_size", "beyond_low", "beyond_high"), wording.percent(r["alone"])]
        for r in table.drop_nulls("share").sort("share", descending=True, maintain_order=True).iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<kind", "<text", "<term", "<role", "levels − 1", "<share of variance", "<of what size leaves",
               "when entered last"]  # fmt: skip
    left = sum(r["left_out"] for r in table.select("kind", "text", "left_out").unique().to_dicts())
    return Section(
        "factors", "Which choice explains the cost?", " ".join(_explained(table)),
        "Shares of the variance of ln excess NLL over compressions and seeds; they add up to 100%. Grids like these "
        "aren't balanced, so a share is the mean over all orders in which terms may enter (Lindeman, Merenda and "
        "Gold; Shapley), factors before interactions; in a balanced grid that is the analysis of variance. Where "
        "entering last adds much less than the share, other factors come along with this one and the grid can't tell "
        "them apart. Size is sparsity, pattern, bits, group size and share kept. A share also depends on which levels "
        "were tried. Intervals resample windows and seeds."
        + (f" Left out, as a seed diverged or has no positive excess: {left}." if left else ""),
        [Figure("factors", "Shares of factors and interactions in the variance; numbers in the table",
                "Shares of the variance that size leaves, in domain, with 95% intervals.")],
        [Table(columns, rows)],
    )  # fmt: skip


def _explained(table: pl.DataFrame) -> list[str]:
    words = []
    for (kind,), mine in table.filter(pl.col("domain") == "in").group_by(["kind"], maintain_order=True):
        if why := mine["why_not"].drop_nulls().to_list():
            words.append(f"Of {kind}: {why[0]}.")
            continue
        top = mine.filter(pl.col("role") == "main").sort("share", descending=True)
        how = mine.drop_nulls("beyond_size")
        size = 1 - float(how["share"].sum())
        best = how.filter(pl.col("role") == "main").sort("beyond_size", descending=True)
        named = [f"{r['term']} {wording.percent(r['beyond_size'])}" for r in best.head(4).iter_rows(named=True)]
        pairs = float(how.filter(pl.col("role") == "interaction")["beyond_size"].sum())
        words.append(
            f"In {mine['compressions'][0]} ways to {kind}, how far one goes explains {wording.percent(size)} of the "
            f"variance of ln excess NLL. Of the rest: {', '.join(named)}, pairs of factors together "
            f"{wording.percent(pairs)}."
        )
        unsure = top.filter((pl.col("share") > 0.02) & (pl.col("alone") < 0.1 * pl.col("share")))["term"].to_list()
        if unsure:
            words.append(f"Not told apart from the others by this grid: {', '.join(unsure)}.")
    return words


@question("compression", figures.block_errors)
def block_errors(study: Study) -> Section | None:
    """Errors of blocks by depth, and whether their sum tells the cost."""
    table, found = errors(study), error_correlations(study)
    if table.is_empty():
        return None
    ids = ["setting", "method", "label"]
    depth = table.group_by(ids, maintain_order=True).agg(
        pl.col("error").sum().alias("sum"), pl.col("error").first().alias("first"),
        pl.col("error").last().alias("last"), pl.col("error").max().alias("most"),
        pl.col("layer").sort_by("error").last().alias("where"), pl.col("sparsity").min().alias("low"),
        pl.col("sparsity").max().alias("high"),
    )  # fmt: skip
    rows = [
        [r["setting"], r["method"], wording.significant(r["sum"]), wording.significant(r["first"]),
         wording.significant(r["last"]), f"{wording.significant(r['most'])} (block {r['where']})",
         f"{wording.percent(r['low'])} to {wording.percent(r['high'])}"]
        for r in depth.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<setting", "<method", "summed error", "first block", "last block", "largest", "<zeros by block"]
    ranks = [
        [r["kind"], r["text"], r["speaks_of"], str(r["compressions"]),
         wording.within(r["spearman"], r["low"], r["high"]) if r["spearman"] is not None else r["why_not"],
         wording.p_value(r["p"])]
        for r in found.iter_rows(named=True)
    ]  # fmt: skip
    names = ["<kind", "<text", "<over", "compressions", "<Spearman's ρ", "p"]
    return Section(
        "block_errors", "Does the error of the blocks tell the cost?", _told(found),
        "A block's error is the change of its outputs on calibration text relative to their size, tensor by tensor on "
        "the inputs that they saw: it knows nothing of what later blocks do with it. Over all settings it is easy to "
        "rank, as removing more costs more; at equal size ranks are compared within each setting, as one would to "
        "choose a method without measuring its loss. Intervals are Fisher's over compressions.",
        [Figure("block_errors", "Relative error of each block by method; sums in the table",
                "Relative error of each block's outputs, at the setting that most methods have.")],
        [Table(names, ranks, "Rank correlation of summed block errors with excess NLL"),
         Table(columns, rows, "Errors of blocks")],
    )  # fmt: skip


def _told(found: pl.DataFrame) -> str:
    rows = found.filter(pl.col("domain") == "in")
    words = [
        f"{r['kind'].capitalize()}, {'over all settings' if r['speaks_of'] == 'all' else 'at equal size'}: ρ "
        f"{wording.within(r['spearman'], r['low'], r['high'])} (p {wording.p_value(r['p'])}, {r['compressions']} "
        "compressions)."
        for r in rows.drop_nulls("spearman").iter_rows(named=True)
    ]
    return " ".join(words) or "Too few compressions have block errors to say."
