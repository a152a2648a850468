"""Sections on compression: what it costs, against what it is better, and at which size."""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.compression.against import against as compared
from analysis.compression.excess import excess as costs
from analysis.compression.fronts import fronts
from analysis.report import figures, wording
from analysis.report.parts import Figure, Section, Table
from analysis.report.questions import question
from analysis.report.sections.ran import elsewhere
from analysis.study import Study

#: Settings that an answer names.
MOST_SAID = 5
_DOMAINS = {"in": "in domain", "out": "out of domain"}


def _counts(r: dict[str, Any]) -> str:
    return str(r["seeds"]) + (f", {r['diverged']} diverged" if r["diverged"] else "") + (
        f", {r['errors']} failed" if r["errors"] else ""
    )  # fmt: skip


@question("compression", figures.excess, figures.excess_bits)
def excess(study: Study) -> Section | None:
    """What each compression costs, in domain and out of it."""
    table = costs(study)
    if table.is_empty():
        return None
    columns = ["<setting", "<method", "excess NLL", "<95% interval", "perplexity", "times the dense", "accuracy",
               "zeros", "bits per weight", "seeds", "seconds"]  # fmt: skip
    tables = []
    for (text, domain), rows in table.group_by(["text", "domain"], maintain_order=True):
        first = rows.row(0, named=True)
        dense = f"dense perplexity {wording.significant(first['dense_perplexity'], 4)}, accuracy "
        title = f"{text} ({_DOMAINS[domain]}): {dense}{wording.percent(first['dense_accuracy'])}"
        tables.append(Table(columns, [_cost(r) for r in rows.iter_rows(named=True)], title))
    return Section(
        "excess", "What does compressing cost?", " ".join(filter(None, [_cheapest(table), elsewhere(study)])),
        "Excess NLL is the compressed model's loss minus the dense model's on the same windows of the same text, in "
        "nats per token; the intervals are for further calibration seeds and windows (with one seed, for windows). "
        "Perplexity is that of the mean loss. Zeros and bits are counted, not asked for; of a pruned model bits are 16 "
        "for each weight that stays and one of the mask for every weight. Seconds are those of "
        "calibration and compression. A seed that diverged (NaN or infinite loss) is counted and in no mean.",
        [Figure(name, f"Excess NLL of {what} by setting; numbers in the tables",
                f"Excess NLL of {what}. Filled: in domain, with 95% intervals. Hollow: out of domain.")
         for name, what in (("excess", "pruning methods"), ("excess_bits", "rules of keeping weights"))],
        tables,
    )  # fmt: skip


def _cost(r: dict[str, Any]) -> list[str]:
    told = r["excess"] is not None
    return [
        r["setting"], r["method"], wording.signed(r["excess"]) if told else "diverged" if r["diverged"] else "failed",
        wording.interval(r["low"], r["high"]), wording.significant(r["perplexity"], 4),
        wording.significant(r["perplexity_ratio"]), wording.percent(r["accuracy"]),
        wording.percent(r["true_sparsity"]), wording.significant(r["bits_per_weight"], 4), _counts(r),
        wording.significant(r["seconds"]),
    ]  # fmt: skip


def _cheapest(table: pl.DataFrame) -> str:
    """The method of each setting that loses least in domain."""
    told = table.filter((pl.col("domain") == "in") & (pl.col("diverged") == 0)).drop_nulls("excess")
    if told.is_empty():
        return "No compression left a finite loss in every seed."
    best = told.sort("excess").unique("setting", keep="first")
    best = told.select("setting").unique(maintain_order=True).join(best, on="setting", maintain_order="left")
    parts = [
        f"at {r['setting']} {r['method']} loses least: {wording.signed(r['excess'])} nats per token "
        f"{wording.interval(r['low'], r['high'])}, {wording.significant(r['perplexity_ratio'])} times the perplexity"
        for r in best.head(MOST_SAID).iter_rows(named=True)
    ]
    text = "; ".join(parts)
    return text[0].upper() + text[1:] + "."


@question("compression", figures.savings, figures.savings_bits)
def against(study: Study) -> Section | None:
    """Each compression against magnitude, the published methods or other rules at equal size."""
    table = compared(study)
    if table.is_empty():
        return None
    columns = ["<setting", "<method", "<against", "excess NLL", "its excess", "<change of excess", "p, Holm",
               "<change of perplexity", "seeds", "<"]  # fmt: skip
    tables = [
        Table(columns, _rows(rows.filter(pl.col("best") | (pl.col("rival") == "magnitude"))),
              f"{text} ({_DOMAINS[domain]}): against magnitude, and the best of the published methods or rules")
        for (text, domain), rows in table.group_by(["text", "domain"], maintain_order=True)
    ]  # fmt: skip
    others = table.filter(~pl.col("best") & (pl.col("rival") != "magnitude"))
    tables.append(Table(["<text", *columns], [[r["text"], *_row(r)] for r in others.iter_rows(named=True)],
                        "Against the other rivals", folded=True))  # fmt: skip
    return Section(
        "against", "Is it better than what is published?", _versus(table),
        "At the same pattern and sparsity, or as many bits per weight, with the same calibration text. −15% is 15% "
        "less excess NLL than the rival's; intervals are Fieller's for further calibration seeds and windows, paired. "
        "The best rival is the one with the smallest mean here, which makes it hard to beat; the best of many methods "
        "is flattered in the same way, for which Holm's correction over all methods with one rival makes allowance. "
        "Perplexity answers another question: its change grows with the loss itself.",
        [Figure(name, f"Excess NLL saved against {rival}; numbers in the tables",
                f"Right of 0: less excess NLL than {rival} at the same setting.")
         for name, rival in (("savings", "the best published method"), ("savings_bits", "the best other rule"))],
        tables,
    )  # fmt: skip


def _rows(table: pl.DataFrame) -> list[list[str]]:
    return [_row(r) for r in table.iter_rows(named=True)]


def _row(r: dict[str, Any]) -> list[str]:
    lost = [f"{n} of {who} diverged" for n, who in ((r["diverged"], "its seeds"), (r["rival_diverged"], "the rival's"))
            if n]  # fmt: skip
    return [
        r["setting"], r["method"], r["rival"] + (", the best" if r["best"] else ""), wording.signed(r["excess"]),
        wording.signed(r["rival_excess"]), _change(r["saving"], r["low"], r["high"]), wording.p_value(r["p_holm"]),
        _change(r["perplexity_saving"], r["perplexity_saving_low"], r["perplexity_saving_high"]), str(r["seeds"]),
        "; ".join([*lost, *([r["why_not"]] if r["why_not"] else [])]),
    ]  # fmt: skip


def _change(saved: float | None, low: float | None, high: float | None) -> str:
    if saved is None:
        return "–"
    return wording.share(-saved) + (f" {wording.saving(low, high)}" if low is not None and high is not None else "")


def _versus(table: pl.DataFrame) -> str:
    """What loses least in domain against its best published rival, setting by setting."""
    rows = table.filter(pl.col("best") & (pl.col("domain") == "in"))
    parts = []
    for _, mine in rows.group_by(["setting"], maintain_order=True):
        top = mine.drop_nulls("saving").sort("excess")
        if len(top):
            parts.append(_against_best(top.row(0, named=True)))
    text = "; ".join(parts[:MOST_SAID])
    if not text:
        finite = rows["rival_excess"].is_not_null().any()
        return "No rival's excess NLL is surely above 0." if finite else "No rival has a finite loss at the same size."
    return text[0].upper() + text[1:] + "."


def _against_best(r: dict[str, Any]) -> str:
    change = _change(r["saving"], r["low"], r["high"])
    if r["saving"] <= 0:
        return f"at {r['setting']} nothing beats {r['rival']} ({r['method']} comes nearest with {change} excess NLL)"
    sure = "surely" if r["p_holm"] is not None and r["p_holm"] < 0.05 else "not surely"
    return f"at {r['setting']} {r['method']} has {change} excess NLL against {r['rival']}, {sure} less"


@question("compression", figures.front_sparsity, figures.front_bits)
def front(study: Study) -> Section | None:
    """Which compressions no other beats in both size and loss."""
    table = fronts(study)
    if len(table) < 2:
        return None
    named = {r["label"]: f"{r['method']} at {r['setting']}" for r in table.iter_rows(named=True)}
    rows = [
        [r["text"], r["setting"], r["method"],
         wording.percent(r["size"]) if r["axis"] == "sparsity" else f"{r['size']:.2f} bits",
         wording.signed(r["excess"]) if r["excess"] is not None else "diverged", "on it" if r["front"] else "",
         wording.percent(r["probability"]), named.get(r["beaten_by"], "")]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<text", "<setting", "<method", "size", "excess NLL", "<front", "probability", "<beaten by"]
    return Section(
        "front", "Which ones does no other beat in both size and loss?", _on_front(table),
        "Prunings compete by the share of weights that left, of all that the widest of them may take from; "
        "quantizations by bits per weight. Sizes less than half a percent of the weights, or 0.01 bits, apart count as "
        "equal. The probability is that of lying on the front when windows and calibration seeds are drawn anew; with "
        "few seeds it is too sure of itself.",
        [Figure("front_sparsity", "Excess NLL against the share of weights that left; numbers in the table",
                "Filled and joined: on the front, the paler the less surely. Hollow: another method is better; grey: "
                "one that is neither published nor anywhere on the front."),
         Figure("front_bits", "Excess NLL against bits per weight; numbers in the table",
                "Filled and joined: on the front, the paler the less surely. Hollow: another method is better.")],
        [Table(columns, rows)],
    )  # fmt: skip


def _on_front(table: pl.DataFrame) -> str:
    parts = []
    for (axis,), mine in table.filter(pl.col("domain") == "in").group_by(["axis"], maintain_order=True):
        best = mine.filter("front").sort("size")
        names = ", ".join(f"{r['method']} at {r['setting']}" for r in best.head(8).iter_rows(named=True))
        more = f" and {len(best) - 8} more" if len(best) > 8 else ""
        surely = best.filter(pl.col("probability") >= 0.95).height
        what = "prunings" if axis == "sparsity" else "quantizations"
        parts.append(f"Of {len(mine)} {what} {len(best)} lie on the front, {surely} of them surely: {names}{more}.")
    return " ".join(parts) or "Nothing was measured in domain."
