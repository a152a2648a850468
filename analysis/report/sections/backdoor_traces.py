"""The section on which statistics betray a backdoor, and what those of sensitivity add."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from analysis.report import figures, wording
from analysis.report.parts import Figure, Section, Table
from analysis.report.questions import question
from analysis.report.sections.backdoors import DIGITS, SEEN, area, both, known, without_number
from analysis.security.detection.columns import ALL, SENSITIVITY, TARGETS
from analysis.security.detection.nested import PLAIN, nested
from analysis.security.detection.ranked import ranked
from analysis.study import Study

#: Features that an answer names.
MOST_SAID = 3
#: q below which a feature surely differs.
SURE = 0.05


@question("security", figures.ranked_features)
def traces(study: Study) -> Section | None:
    """Which statistics betray a backdoor, and what those of sensitivity add to those of spectra."""
    if study.backdoors.is_empty() or (table := ranked(study)).is_empty():
        return None
    columns = ["<insertion", "<statistic", "<family", "<model before", "<AUROC alone", "p", "q (BH)", "<models"]
    return Section(
        "traces", "Which statistics betray it?", " ".join([*_best(table), *_adds(study)]),
        "A statistic alone is its own score, without a detector: above 0.5 models with a backdoor have larger values, "
        "below 0.5 smaller ones. p is of 0.5, corrected by Benjamini and Hochberg over the statistics of an insertion "
        f"(q). Sensitivity is the families {' and '.join(SENSITIVITY)}; what it adds is the AUROC of a detector that "
        "sees them and the spectra less that of one that sees the spectra alone, paired by model, with a 95% interval "
        "and Holm's correction over all such pairs.",
        [Figure("ranked_features", "AUROC of the best statistics alone; numbers in the table",
                "The statistics that tell most over all insertions, with 95% intervals, and each insertion alone.")],
        [Table(columns, [_statistic(r) for r in table.drop_nulls("auroc").iter_rows(named=True)],
               "Each statistic alone"),
         *families(study), without_number(table, lambda r: f"{r['insertion']}, {r['feature']}")],
    )  # fmt: skip


def _statistic(r: dict[str, Any]) -> list[str]:
    return [r["insertion"], r["feature"], r["family"], "needed" if r["with_reference"] else "", area(r),
            wording.p_value(r["p"]), wording.p_value(r["q"]), both(r)]  # fmt: skip


def _best(table: pl.DataFrame) -> Iterator[str]:
    told = table.drop_nulls("auroc")
    every = told.filter(pl.col("insertion") == ALL)
    if every.is_empty():
        yield f"Nothing can be said: {next(iter(table['why_not'].drop_nulls()), 'no statistic was measured')}."
        return
    sure, n = every.filter(pl.col("q") < SURE).height, len(every)
    best = "; ".join(_named(r) for r in every.sort("rank").head(MOST_SAID).iter_rows(named=True))
    yield f"{sure or 'None'} of {n} statistics surely differ{'s' * (sure == 1)} over all insertions; most: {best}."
    first = told.filter(pl.col("insertion") != ALL).sort("rank").unique("insertion", keep="first", maintain_order=True)
    if len(first):
        yield f"Most by insertion: {'; '.join(_of(r) for r in first.iter_rows(named=True))}."


def _of(r: dict[str, Any]) -> str:
    return f"of {r['insertion']} {_named(r)}"


def _named(r: dict[str, Any]) -> str:
    return f"{r['feature']} ({area(r)}{', with the model before' if r['with_reference'] else ''})"


def _of_schemes(study: Study) -> pl.DataFrame:
    """What families tell by schemes that one base allows."""
    return nested(study).filter(pl.col("scheme").is_in([*TARGETS]))


def _adds(study: Study) -> Iterator[str]:
    """What sensitivity adds to spectra, on insertions never seen."""
    told = _of_schemes(study).drop_nulls(["difference", "low"]).filter(
        (pl.col("scheme") == "unseen insertion") & (pl.col("fewer") == PLAIN)
    )  # fmt: skip
    words = [
        f"{'with' if r['reference'] else 'without'} the model before {_difference(r)} to {r['auroc_fewer']:.{DIGITS}f} "
        f"(p {wording.p_value(r['p_holm'])}, Holm)" for r in told.sort("reference", descending=True).to_dicts()
    ]  # fmt: skip
    if words:
        yield f"On unseen insertions sensitivity adds to the AUROC of spectra alone {', '.join(words)}."


def _difference(r: dict[str, Any]) -> str:
    return f"{wording.signed(r['difference'])} {wording.interval(r['low'], r['high'])}"


def families(study: Study) -> list[Table]:
    """Families of statistics alone, and what one adds to another."""
    told = _of_schemes(study).drop_nulls("auroc_more")
    alone = [
        [SEEN[r["scheme"]], known(r), r["more"], str(r["n_features"]), area(r, "auroc_more"), both(r)]
        for r in told.filter(pl.col("fewer").is_null()).iter_rows(named=True)
    ]  # fmt: skip
    more = [
        [SEEN[r["scheme"]], known(r), r["more"], r["fewer"], f"{r['auroc_more']:.{DIGITS}f}",
         f"{r['auroc_fewer']:.{DIGITS}f}", _difference(r) if r["low"] is not None else "none can be told",
         wording.p_value(r["p_holm"]), both(r)]
        for r in told.drop_nulls(["fewer", "difference"]).iter_rows(named=True)
    ]  # fmt: skip
    return [
        Table(["<insertion", "<model before", "<statistics", "<against", "AUROC", "against", "<difference", "p, Holm",
               "<models"], more, "What a family adds"),
        Table(["<insertion", "<model before", "<statistics", "how many", "<AUROC", "<models"], alone,
              "Detectors of one family", folded=True),
    ]  # fmt: skip
