"""Sections on architecture: attention against FFN, kinds of models, experts."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from analysis import wording
from analysis.comparison.architecture import kinds_compared, over_models, within_models
from analysis.comparison.experts import expert_use, experts
from analysis.comparison.loading import Comparison
from analysis.comparison.quantities import WORDS, quantities
from analysis.comparison.sections.words import LEVEL, number, ranged
from analysis.sections.parts import Figure, Section, Table


def sublayers(comparison: Comparison) -> Section | None:
    """Attention against FFN, and depth."""
    table = within_models(comparison)
    if table.is_empty():
        return None
    sure = table.filter(pl.col("p_holm") < LEVEL)
    ffn, attention = (sure.filter(pl.col("difference") < 0).height, sure.filter(pl.col("difference") > 0).height)
    over = over_models(comparison)
    answer = (
        f"Silencing the FFN costs surely more than silencing attention in {ffn} of {len(table)} models, attention "
        f"more in {attention}. " + " ".join(_over_words(r) for r in over.iter_rows(named=True))
    )
    rows = [
        [r["model"], str(r["blocks"]), number(r["attention"]), number(r["ffn"]),
         f"{wording.signed(r['difference'])} {wording.interval(r['low'], r['high'])}", ranged(r["g"], r["g_low"],
         r["g_high"]),
         wording.p_value(r["p_holm"]), wording.within(r["rho_attention"], None, None), wording.within(r["rho_ffn"],
         None, None),
         str(r["left_out"] or "")]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    columns = [
        "<model",
        "blocks",
        "attention",
        "ffn",
        "<attention − ffn",
        "<g",
        "p (Holm)",
        "ρ with depth, attention",
        "ffn",
        "left out",
    ]
    second = [
        [r["question"], str(r["models"]), ranged(r["mean"], r["low"], r["high"]), number(r["g"]),
         wording.p_value(r["p"]), wording.p_value(r["p_holm"]), r["why_not"] or ""]
        for r in over.iter_rows(named=True)
    ]  # fmt: skip
    return Section(
        "sublayers", "Attention or FFN, early or late?", answer,
        "One sub-layer of one block adds nothing to the residual stream; ΔNLL in nats per token, the mean over blocks. "
        "Within a model p and intervals are over windows, and blocks are no sample; over models the unit is the model. "
        "Models of one zoo are alike in text and training, so they say little of others.",
        [Figure("depth", "Cost of silencing attention and FFN by relative depth; numbers in the table below",
                "What silencing attention (solid) and FFN (dashed) of one block costs, in the largest model of each "
                "series.")],
        [Table(columns, rows, "Within models"), Table(["<question", "models", "<mean", "g", "p", "p (Holm)", "~"],
         second, "Over "
            "models")],
    )  # fmt: skip


def _over_words(r: dict[str, Any]) -> str:
    if r["why_not"] or r["p_holm"] is None:
        return ""
    if r["question"].startswith("log"):
        ratio = wording.significant(float(np.exp(r["mean"])), 2)
        sure = wording.p_value(r["p_holm"])
        return f"Over {r['models']} models attention costs {ratio} times what the FFN costs (p {sure})."
    goes = "costs more the later it stands" if r["mean"] > 0 else "costs more the earlier it stands"
    part = r["question"].split()[2]
    return (
        f"{part.capitalize() if part != 'ffn' else 'The FFN'} {goes} (p {wording.p_value(r['p_holm'])})."
        if r["p_holm"] < LEVEL
        else ""
    )


def kinds(comparison: Comparison) -> Section | None:
    """Dense against mixture of experts, base against instruct."""
    table = kinds_compared(comparison, quantities(comparison))
    if table.is_empty():
        return None
    told = table.filter(pl.col("p_holm").is_not_null())
    sure = told.filter(pl.col("p_holm") < LEVEL)
    if told.is_empty():
        answer = "This can't be said: " + table["why_not"].drop_nulls().to_list()[0] + "."
    elif sure.is_empty():
        answer = (
            "No quantity surely differs between models of one size of a dense and a mixture family, or before and "
            "after tuning."
        )
    else:
        answer = " ".join(
            f"{WORDS[r['quantity']][0].upper()}{WORDS[r['quantity']][1:]}: {r['second']} has "
            f"{wording.significant(r['ratio'], 2)} times that of {r['first']}."
            for r in sure.head(6).iter_rows(named=True)
        )
    rows = [
        [WORDS[r["quantity"]], r["second"], r["first"], str(r["pairs"]), ranged(r["ratio"], r["low"], r["high"]),
         number(r["g"]),
         wording.p_value(r["p"]), wording.p_value(r["p_holm"]), r["why_not"] or ""]
        for r in table.sort("p_holm", nulls_last=True, maintain_order=True).iter_rows(named=True)
    ]  # fmt: skip
    columns = ["~quantity", "<series", "<against", "pairs", "<ratio", "g", "p", "p (Holm)", "~"]
    return Section(
        "kinds", "Dense, mixture of experts, instruction-tuned", answer,
        "Pairs of models of one size (in blocks). p is of the paired t test over sizes; with five pairs it leans on "
        "normal "
        "logarithms, and the signed-rank test couldn't fall below 0.06 at all. Corrected over the whole table.",
        [], [Table(columns, rows)],
    )  # fmt: skip


def mixtures(comparison: Comparison) -> Section | None:
    """Experts."""
    table = expert_use(comparison)
    if table.is_empty():
        return None
    found = [(m, experts(comparison.by_name(m))) for m in table["model"].to_list()]
    supers = [(m, r) for m, t in found for r in t.filter(pl.col("super")).iter_rows(named=True)]
    largest = table.row(-1, named=True)
    answer = (
        (f"{len(supers)} super experts in {len({m for m, _ in supers})} of {len(found)} models: "
         + ", ".join(f"{m} block {r['layer']} expert {r['expert']} (+{wording.significant(r['delta_nll'], 2)})"
         for m, r in supers[:5])
         + (" …" if len(supers) > 5 else "") + "." if supers else f"No expert of {len(found)} models stands out as "
             "one that carries it.")
        + f" In {largest['model']}, how often an expert is used and what silencing it costs go together with ρ "
        + f"{wording.within(largest['rho'], largest['rho_low'], largest['rho_high'])}."
    )  # fmt: skip
    rows = [
        [r["model"], f"{r['experts']} × {r['blocks']}", number(r["balance"]), wording.within(r["rho"], r["rho_low"],
         r["rho_high"]),
         number(r["information"]), number(r["expert_score"]), number(r["shared_score"]),
         wording.percent(r["expert_share"]),
         wording.percent(r["expert_weights"]), str(r["super"])]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<model", "experts × blocks", "balance", "<ρ of use and cost", "specialisation", "score a weight: "
        "experts", "others",
               "experts' share of score", "of weights", "super"]  # fmt: skip
    each = [
        [m, str(r["layer"]), str(r["expert"]), ranged(r["delta_nll"], r["low"], r["high"]),
         wording.percent(r["share"]), number(r["weight"]),
         number(r["information"]), number(r["peak"]), number(r["z"]), wording.p_value(r["p_holm"]), "yes"
         if r["super"] else "", "yes" if r["peaks"] else ""]
        for m, t in found for r in t.sort("delta_nll", descending=True, nulls_last=False).iter_rows(named=True)
    ]  # fmt: skip
    many = ["<model", "block", "expert", "<ΔNLL silenced", "share of positions", "routing weight", "specialisation",
    "largest output",
            "z", "p (Holm)", "super", "by output"]  # fmt: skip
    return Section(
        "experts", "Experts", answer,
        "Balance: entropy of the experts' shares of positions, 1 all alike. Specialisation: how far the tokens of "
        "an expert "
        "are from all tokens, D_KL in nats less its bias, weighted by use. A super expert costs far more than the "
        "median "
        "expert (modified z of the logarithm above 3.5) and surely more (p over windows, corrected over experts); "
        "“by output” "
        "is the published criterion on activations (arXiv:2507.23279). Experts of a model are no sample of experts.",
        [Figure("experts", "Cost of silencing each expert; numbers in the table below",
                "What silencing each expert of the largest mixture costs; written in: its share of positions.")],
        [Table(columns, rows), Table(many, each, "Each expert", folded=True)],
    )  # fmt: skip
