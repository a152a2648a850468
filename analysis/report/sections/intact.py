"""Section on the intact model under protocols."""

from __future__ import annotations

import polars as pl

from analysis.report import figures, wording
from analysis.report.parts import Figure, Section, Table
from analysis.report.questions import question
from analysis.run.protocols import protocol_summary, shared_windows
from analysis.study import Study

COLUMNS = ["<protocol", "context", "seeds", "windows", "<nats per token", "perplexity", "spread over seeds", "accuracy",
           "<calibration error", "NaN or infinite", "tokens/s", "peak GB"]  # fmt: skip


def rows_of(table: pl.DataFrame) -> list[list[str]]:
    """The rows of :func:`analysis.run.protocols.protocol_summary` in words, under :data:`COLUMNS`."""
    return [
        [r["protocol"], str(r["context"]),
         str(r["seeds"]) + (f", {r['diverged']} diverged" if r["diverged"] else ""), str(r["windows"] or 0),
         wording.within(r["nll"], r["nll_low"], r["nll_high"], 3) if r["nll"] is not None else r["why_not"],
         wording.significant(r["perplexity"], 4), wording.percent(r["spread"]), wording.percent(r["accuracy"]),
         wording.within(r["ece"], r["ece_low"], r["ece_high"], 3),
         "–" if r["nonfinite"] is None else str(r["nonfinite"]), wording.significant(r["tokens_per_second"]),
         wording.significant(r["peak_memory"] and r["peak_memory"] / 1e9)]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip


@question("damage", figures.reliability)
def intact(study: Study) -> Section | None:
    """Loss, calibration, speed and memory of the intact model."""
    table = protocol_summary(study)
    if table.is_empty():
        return None
    told = table.drop_nulls("nll")
    answer = " ".join(
        f"{r['protocol'].capitalize()}, {r['context']} tokens: perplexity {wording.significant(r['perplexity'])}, "
        f"accuracy {wording.percent(r['accuracy'])}, calibration error {wording.percent(r['ece'])}."
        for r in told.iter_rows(named=True)
    )
    asked = [
        [r["protocol"], r["task"], r["task_metric"], wording.significant(r["value"]),
         wording.significant(r["std_error"]),
         str(r["examples"] or "–"), r["harness"]]
        for r in study.tasks.iter_rows(named=True)
    ]  # fmt: skip
    names = ["<protocol", "<task", "<metric", "value", "standard error", "examples", "lm-eval"]
    shared = wording.percent(shared_windows(study))
    return Section(
        "intact", "How good is the intact model?", answer or "It could not be measured.",
        f"Every seed draws windows of its own (of so short a text two seeds share up to {shared} of them, and "
        "intervals are too narrow by that); intervals are Student's over seeds. Calibration error: ECE of the first "
        "choice over 15 bins of its probability. Speed counts the loss and confidences, and not loading; peak memory "
        "is the GPU's, or on a CPU the process's since its start. Perplexities of models with other tokens don't "
        "compare.",
        [Figure("reliability", "How often the model's first choice is right, by its probability; numbers in the table",
                "Reliability: a calibrated model lies on the dashed line. Areas are shares of tokens.")],
        [Table(COLUMNS, rows_of(table)), Table(names, asked, "Zero-shot tasks")],
    )  # fmt: skip
