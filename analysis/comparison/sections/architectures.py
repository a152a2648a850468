"""Sections on architecture: attention against FFN, kinds of models, experts."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from analysis.comparison.architecture import kinds_compared, over_families, within_models
from analysis.comparison.experts import expert_use, experts
from analysis.comparison.loading import Comparison
from analysis.comparison.quantities import quantities
from analysis.comparison.sections.words import (
    LEVEL,
    Columns,
    capital,
    correlation,
    listed,
    number,
    p,
    quantity,
    ranged,
    text,
)
from analysis.report import wording
from analysis.report.parts import Figure, Section

WITHIN: Columns = {
    "<model": text("model"),
    "blocks": text("blocks"),
    "attention": lambda r: number(r["attention"]),
    "ffn": lambda r: number(r["ffn"]),
    "<attention − ffn": lambda r: f"{wording.signed(r['difference'])} {wording.interval(r['low'], r['high'])}",
    "<g": lambda r: ranged(r["g"], r["g_low"], r["g_high"]),
    "p (Holm)": p("p_holm"),
    "ρ with depth: attention": lambda r: correlation(r["rho_attention"]),
    "ffn's": lambda r: correlation(r["rho_ffn"]),
    "blocks left out": lambda r: str(r["left_out"] or ""),
}
#: How large an effect is and how sure, or why that can't be said.
TESTED: Columns = {
    "g": lambda r: number(r["g"]),
    "p": p("p"),
    "p (Holm)": p("p_holm"),
    "~": text("why_not"),
}
OVER: Columns = {
    "<question": text("question"),
    "families": text("families"),
    "<mean": lambda r: ranged(r["mean"], r["low"], r["high"]),
} | TESTED


def sublayers(comparison: Comparison) -> Section | None:
    """Attention against FFN, and depth."""
    table, over = within_models(comparison), over_families(comparison)
    if table.is_empty():
        return None
    sure = table.filter(pl.col("p_holm") < LEVEL)
    ffn, attention = sure.filter(pl.col("difference") < 0).height, sure.filter(pl.col("difference") > 0).height
    answer = (
        f"Silencing the FFN costs surely more than silencing attention in {ffn} of {len(table)} models, attention more "
        f"in {attention}. " + " ".join(filter(None, map(_over_words, over.iter_rows(named=True))))
    )
    # Signs of W windows can be flipped in 2^W ways, and the smallest p is corrected by as many models.
    windows = len(comparison.studies[0].baselines["nll"][0])
    if (least := len(table) * 2.0 ** (1 - windows)) >= LEVEL:
        answer += f" With {windows} windows, no p of {len(table)} models can be below {wording.significant(least, 2)}."
    return Section(
        "sublayers", "Attention or FFN, early or late?", answer.strip(),
        "One sub-layer of one block adds nothing to the residual stream; ΔNLL in nats per token, the mean over blocks. "
        "Within a model p and intervals are over windows, and blocks are no sample; over families the unit is the "
        "family, the mean over its base models, since sizes of one recipe aren't independent.",
        [Figure("depth", "Cost of silencing attention and FFN by relative depth; numbers in the table below",
                "What silencing attention (solid) and FFN (dashed) of one block costs, in each series' largest.")],
        [listed(table.iter_rows(named=True), WITHIN, "Within models"),
         listed(over.iter_rows(named=True), OVER, "Over families")],
    )  # fmt: skip


def _over_words(r: dict[str, Any]) -> str:
    if r["why_not"] or r["p_holm"] is None:
        return ""
    sure = wording.p_value(r["p_holm"])
    if r["question"].startswith("log"):
        ratio = wording.significant(float(np.exp(r["mean"])), 2)
        return f"Over {r['families']} families attention costs {ratio} times what the FFN costs (p {sure})."
    if r["p_holm"] >= LEVEL:
        return ""
    part = "The FFN" if "ffn" in r["question"] else "Attention"
    return f"{part} costs more the {'later' if r['mean'] > 0 else 'earlier'} it stands (p {sure})."


KINDS: Columns = {
    "~quantity": quantity,
    "<series": text("second"),
    "<against": text("first"),
    "pairs": text("pairs"),
    "<ratio": lambda r: ranged(r["ratio"], r["low"], r["high"]),
} | TESTED


def kinds(comparison: Comparison) -> Section | None:
    """Dense against mixture of experts, base against instruct."""
    table = kinds_compared(comparison, quantities(comparison))
    if table.is_empty():
        return None
    told = table.drop_nulls("p_holm")
    sure = told.filter(pl.col("p_holm") < LEVEL)
    if told.is_empty():
        answer = f"This can't be said: {table['why_not'].drop_nulls()[0]}."
    elif sure.is_empty():
        answer = "No quantity surely differs between dense models and mixtures of one size, or before and after tuning."
    else:
        answer = " ".join(
            f"{capital(quantity(r))}: {r['second']} {wording.significant(r['ratio'], 2)} times that of {r['first']}."
            for r in sure.head(6).iter_rows(named=True)
        )
    rows = table.sort("p_holm", nulls_last=True, maintain_order=True).iter_rows(named=True)
    return Section(
        "kinds", "Dense, mixture of experts, instruction-tuned", answer,
        "Pairs of models of one size (in blocks). p is of the paired t test over sizes; with five pairs it leans on "
        "normal logarithms, and the signed-rank test couldn't fall below 0.06 at all. Corrected over the whole table.",
        [], [listed(rows, KINDS)],
    )  # fmt: skip


USE: Columns = {
    "<model": text("model"),
    "experts × blocks": lambda r: f"{r['experts']} × {r['blocks']}",
    "balance": lambda r: number(r["balance"]),
    "<ρ of use and cost": lambda r: correlation(r["rho"], r["rho_low"], r["rho_high"]),
    "ρ of use and score": lambda r: correlation(r["rho_score"]),
    "specialisation": lambda r: number(r["information"]),
    "score a weight: experts": lambda r: number(r["expert_score"]),
    "others": lambda r: number(r["shared_score"]),
    "experts' share of score": lambda r: wording.percent(r["expert_share"]),
    "of weights": lambda r: wording.percent(r["expert_weights"]),
    "super": text("super"),
}
EACH: Columns = {
    "<model": text("model"),
    "block": text("layer"),
    "expert": text("expert"),
    "<ΔNLL silenced": lambda r: ranged(r["delta_nll"], r["low"], r["high"]),
    "share of positions": lambda r: wording.percent(r["share"]),
    "routing weight": lambda r: number(r["weight"]),
    "specialisation": lambda r: number(r["information"]),
    "largest output": lambda r: number(r["peak"]),
    "z": lambda r: number(r["z"]),
    "p (Holm)": p("p_holm"),
    "super": lambda r: "yes" if r["super"] else "",
    "by output": lambda r: {True: "yes", False: "", None: "–"}[r["peaks"]],
}


def mixtures(comparison: Comparison) -> Section | None:
    """Experts."""
    table = expert_use(comparison)
    if table.is_empty():
        return None
    every = pl.concat([experts(comparison.by_name(m)) for m in table["model"].to_list()])
    largest = table.row(-1, named=True)
    rho = correlation(largest["rho"], largest["rho_low"], largest["rho_high"])
    answer = (
        f"{_supers(every.filter(pl.col('super')), len(table))} In {largest['model']}, how often an expert is used and "
        f"what silencing it costs go together with ρ {rho}."
    )
    rows = every.sort("delta_nll", descending=True, nulls_last=False).iter_rows(named=True)
    return Section(
        "experts", "Experts", answer,
        "Balance: entropy of the experts' shares of positions, 1 all alike. Specialisation: how far the tokens of an "
        "expert are from all tokens, D_KL in nats less its bias, weighted by use. A super expert costs far more than "
        "the median expert (modified z of the logarithm above 3.5, and a tenth of a collapse) and surely more (p over "
        "windows, corrected over such experts); “by output” is the published criterion on activations "
        "(arXiv:2507.23279), which needs 200 experts. Experts of a model are no sample of experts.",
        [Figure("experts", "Cost of silencing each expert; numbers in the table below",
                "What silencing each expert of the largest mixture costs; written in: its share of positions.")],
        [listed(table.iter_rows(named=True), USE), listed(rows, EACH, "Each expert", folded=True)],
    )  # fmt: skip


def _supers(found: pl.DataFrame, models: int) -> str:
    if found.is_empty():
        return f"No expert of {models} model{'s' if models != 1 else ''} stands out as one that carries it."
    named = [
        f"{r['model']} block {r['layer']} expert {r['expert']} ({wording.signed(r['delta_nll'], 2)})"
        for r in found.head(5).iter_rows(named=True)
    ]
    more = " …" if len(found) > len(named) else ""
    return f"{len(found)} super experts in {found['model'].n_unique()} of {models} models: {', '.join(named)}{more}."
