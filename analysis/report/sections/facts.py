"""Sections on facts: which the model knows, where they come back, and whether the weights it hangs on are there."""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.report import wording
from analysis.report.figures.facts import NAMES, TRACING_MAPS, traced_places
from analysis.report.parts import Figure, Section, Table
from analysis.report.questions import question
from analysis.report.sections.roles import ends
from analysis.roles.goals import fact_goals
from analysis.roles.tracing import consistency, known_facts, traced, traced_sensitivity
from analysis.study import Study
from esa_ray.spec.roles import CORRUPTIONS

#: Places that a table of tracing shows of each arm and sub-layer.
TOP = 3
CALLED = {"residual": "of the residual stream", "attention": "of attention", "ffn": "of a feed-forward layer"}
CORRUPTED = {"subject": "another subject of the same type in its place", "noise": "noise on the subject's embeddings"}


@question("roles")
def facts_known(study: Study) -> Section | None:
    """How many of the facts asked about the model knows."""
    table = known_facts(study)
    if table.is_empty():
        return None
    known, asked = int(table["known"].sum()), int(table["facts"].sum())
    rows = [
        [r["source"], f"{r['known']} of {r['facts']}", f"{r['known_prompts']} of {r['prompts']}",
         wording.signed(r["clean"]), wording.signed(r["corrupted"])]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    little = " All that follows is about these alone." if known else " There is nothing to trace."
    return Section(
        "facts_known", "Which facts does the model know?",
        f"It knows {known} of {asked} facts that it was asked about, in at least one way of asking.{little}",
        "A fact is known if the model prefers the answer to its alternative, and to every other answer to the same "
        "question. The logit of the answer less that of the alternative is of known prompts: intact, and with the "
        "subject corrupted (mean over kinds).",
        [], [Table(["<source", "facts known", "prompts known", "intact, logits", "corrupted"], rows)],
    )  # fmt: skip


@question("roles", *TRACING_MAPS)
def facts_traced(study: Study) -> Section | None:
    """Where restoring one state of the corrupted run brings the answer back."""
    table = traced(study).drop_nulls("share")
    if table.is_empty():
        return None
    rows = [
        [r["corruption"], str(r["restored"]), r["sublayer"], NAMES.get(r["position"], r["position"]), str(r["block"]),
         f"{wording.percent(r['share'])} {ends(r['low'], r['high'])}".replace("-", "−"), wording.signed(r["effect"]),
         str(r["facts"])]
        for r in _highest(table)
    ]  # fmt: skip
    columns = [
        "<corruption",
        "restored blocks",
        "<sub-layer",
        "<position",
        "block",
        "<share given back",
        "logits",
        "facts",
    ]
    return Section(
        "facts_traced", "Where do facts come back?", _where(table),
        "Causal tracing (Meng et al. 2022): the subject of a prompt is corrupted, by another subject of the same type "
        "and length or by noise, and one state is put back to what it was. The share is the sum over facts of what "
        "that gives back of the answer's logit over the alternative's, over the sum of what the corruption took; 95% "
        "intervals are a bootstrap over facts, paraphrases averaged. Restoring several neighbouring blocks at once is "
        "another measurement and stands apart. That a state brings a fact back doesn't show that the fact is stored "
        "there, nor that editing there works (Hase et al. 2023).",
        [Figure(f"tracing_{name}", "Share given back by block and position, a map a sub-layer; numbers in the table",
                f"With {CORRUPTED[name]}, one block restored: the share of the answer that comes back, by block and "
                "position.")
         for name in CORRUPTIONS],
        [Table(columns, rows, f"The {TOP} highest places of each")],
    )  # fmt: skip


def _highest(table: pl.DataFrame) -> list[dict[str, Any]]:
    arm = ["corruption", "restored", "sublayer"]
    return [r for _, mine in table.group_by(arm, maintain_order=True)
            for r in mine.sort("share", descending=True).head(TOP).to_dicts()]  # fmt: skip


def _where(table: pl.DataFrame) -> str:
    words = []
    few = table.filter(pl.col("restored") == table["restored"].min())
    for (corruption,), mine in few.group_by("corruption", maintain_order=True):
        best = {name: part.sort("share", descending=True).row(0, named=True)
                for (name,), part in mine.group_by("sublayer", maintain_order=True)}  # fmt: skip
        said = ", ".join(
            f"{CALLED[name]} {wording.percent(r['share'])} {ends(r['low'], r['high'])} ("
            f"{NAMES.get(r['position'], r['position'])}; block {r['block']})" for name, r in best.items()
        )  # fmt: skip
        words.append(f"With {CORRUPTED[str(corruption)]}, one restored state gives back at most: {said} of the answer.")
    return " ".join(words)


@question("roles")
def facts_consistent(study: Study) -> Section | None:
    """Whether ways of asking for one fact agree on where it is."""
    table = consistency(study)
    if table.is_empty():
        return None
    rows = [
        [r["corruption"], str(r["restored"]), r["sublayer"], str(r["facts"]), str(r["pairs"]),
         wording.within(r["rho"], r["low"], r["high"]), wording.within(r["others"], None, None),
         wording.within(r["difference"], r["difference_low"], r["difference_high"]),
         wording.percent(r["same_peak"])]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    r = table.row(0, named=True)
    return Section(
        "facts_consistent", "Do ways of asking agree on where a fact is?",
        "Two ways of asking for one fact have maps that correlate with ρ "
        f"{wording.within(r['rho'], r['low'], r['high'])} "
        f"({r['sublayer']}, {r['facts']} facts){_against(r)}.",
        "ρ is Spearman's over places (position × block), of two paraphrases that the model both knows, averaged over "
        "facts; 95% intervals are a bootstrap over facts. Different facts are all pairs of one relation, asked for in "
        "different ways, too: what their maps have in common is no fact's own. The difference has the same bootstrap. "
        "Same peak: the largest effect at the same position and within one block.",
        [], [Table(["<corruption", "restored blocks", "<sub-layer", "facts", "pairs", "<ρ", "different facts",
                    "<difference", "same peak"], rows)],
    )  # fmt: skip


def _against(r: dict[str, Any]) -> str:
    if r["others"] is None:
        return "; no relation has two known facts to compare them with"
    return (
        f"; ways of asking for different facts of a relation with {wording.within(r['others'], None, None)}, that is "
        f"{wording.within(r['difference'], r['difference_low'], r['difference_high'])} less: {_own(r)}"
    )


def _own(r: dict[str, Any]) -> str:
    if r["difference_low"] > 0:
        return "a map is the fact's own, beyond what all prompts have in common"
    return "what the maps have in common is mostly that of any prompt"


@question("roles", traced_places)
def fact_stores(study: Study) -> Section | None:
    """Whether the model is most sensitive where tracing finds facts."""
    table = traced_sensitivity(study)
    if table.is_empty():
        return None
    rows = [
        [r["corruption"], str(r["restored"]), r["sublayer"], NAMES.get(r["position"], "where it gives back most"),
         str(r["places"]), str(r["facts"]), wording.within(r["rho"], r["low"], r["high"])]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    return Section(
        "fact_stores", "Does the model hang on the weights where its facts are?", _stores(study),
        "Over places (block × sub-layer): Spearman's ρ of the sensitivity Σ|g·w| of the place's last matrix on the "
        "study's calibration text with what restoring the place gives back. 95% intervals are a bootstrap over facts "
        "and blocks at once. Neighbouring blocks resemble each other, so that the interval is rather too narrow. It is "
        "judged within attention and within feed-forward layers: of both together ρ also says that their matrices "
        "differ in size, and with it in Σ|g·w|.",
        [Figure("traced_places", "Sensitivity against what restoring gives back, a point a place; ρ in the table",
                "Every block's attention and feed-forward layer: its sensitivity against what restoring it gives back, "
                "at "
                "the position where that is most.")],
        [Table(["<corruption", "restored blocks", "<sub-layer", "<position", "places", "facts", "<ρ"], rows)],
    )  # fmt: skip


def _stores(study: Study) -> str:
    r = next(r for r in fact_goals(study).to_dicts() if r["goal"] == "stores")
    if r["estimate"] is None:
        return f"Nothing can be said: {r['why_not']}."
    said = {
        "holds": "if sensitivity goes with where facts return at all, then hardly",
        "fails": "the model is more sensitive where its facts return",
        "open": "whether sensitivity goes with where facts return can’t be told",
    }[r["status"]]  # fmt: skip
    return f"Within sub-layers ρ of sensitivity and of what restoring gives back is: {r['evidence']}. So {said}."
