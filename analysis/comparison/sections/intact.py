"""Section on the intact models under protocols, side by side."""

from __future__ import annotations

from analysis.comparison.loading import Comparison, model_name
from analysis.report.parts import Section, Table
from analysis.report.sections.intact import COLUMNS, rows_of
from analysis.report.verdicts import Verdict, protocol_verdicts
from analysis.run.protocols import protocol_summary


def intact(comparison: Comparison) -> Section | None:
    """Loss, calibration and speed of every model that a protocol measured, and the criteria on them."""
    rows: list[list[str]] = []
    judged: list[tuple[str, Verdict]] = []
    for study in comparison.studies:
        model = model_name(study)
        rows += [[model, *row] for row in rows_of(protocol_summary(study))]
        judged += [(model, verdict) for verdict in protocol_verdicts(study)]
    if not rows:
        return None
    failing = sum(v.status == "fails" for _, v in judged)
    return Section(
        "intact", "How good are the intact models?",
        f"{len({row[0] for row in rows})} models under protocols; of {len(judged)} criteria {failing} fail.",
        "Every seed measures windows of its own; intervals are Student's over seeds. Perplexities of models with other "
        "tokens don't compare. Speed is of the machine that measured, beside whatever else it did.",
        [], [Table(["<model", *COLUMNS], rows),
             Table(["<model", "<id", "~criterion", "<verdict", "~evidence"],
                   [[model, v.id, v.claim, v.status, v.evidence] for model, v in judged], "Verdicts")],
    )  # fmt: skip
