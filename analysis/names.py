"""What damage, sets and scores are called in tables and reports."""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.study import Study
from esa_ray.spec import CONTROLS, LISTED, PLURALS, TREATED, is_data_free
from esa_ray.spec import label as label_of

#: Fields of a spec by which a study is about security.
SECURITY = ("faults", "attacks", "population")
#: Groups in the order in which tables and figures show them.
GROUP_ORDER = (*TREATED, *CONTROLS)
#: What names one way of damaging: rows that agree in these differ only in group and seed.
DAMAGE = ["metric", "mode", "k", "perturbation", "strength", "variant"]
#: What names one way of damaging one choice of weights, as the tables on damage begin.
WHAT: dict[str, Any] = {
    "metric": pl.String, "mode": pl.String, "k": pl.Int64, "perturbation": pl.String, "strength": pl.Float64,
    "variant": pl.String, "damage": pl.String, "chosen": pl.String,
}  # fmt: skip


def label(row: dict[str, Any]) -> str:
    """A row's damage as ``--perturb`` takes it: ``gauss_noise-0.02``, ``bit_flip-mantissa-0.05``."""
    return label_of(row["perturbation"], row["strength"], row["variant"])


def chosen(study: Study, what: dict[str, Any]) -> str:
    """Which sets were damaged: ``k=50``, with score and pool before it where the study has several."""
    if what["metric"] == LISTED:
        return f"list {what['mode']}"
    several = len(study.spec["scores"]) > 1
    of = "" if unit_of(study) == "weight" else f" {units(study)}"
    return (f"{what['metric']} {what['mode']} " if several else "") + f"k={what['k']}{of}"


def unit_of(study: Study) -> str:
    """What the study's scores rank: weight, row, col, neuron or head."""
    first: dict[str, Any] = next(iter(study.spec["scores"]), {})  # older studies, and those that rank nothing, say none
    return first.get("unit", "weight")


def about(study: Study) -> str:
    """What a study is about: roles, if it asks for them and damages nothing else; compression, tuning, security or
    facts, if it damages nothing and no score looks at text.

    Else it is about sensitivity; a study of several of these is about the first.
    """
    if study.spec.get("roles") and not study.spec["perturbations"]:
        return "roles"
    looks = any(not is_data_free(score["metric"]) for score in study.spec["scores"])
    if looks or study.spec["perturbations"]:
        return "sensitivity"
    kinds = {"compressions": "compression", "tunings": "tuning"} | dict.fromkeys(SECURITY, "security")
    kinds |= {"facts": "facts"}
    return next((kind for table, kind in kinds.items() if study.spec.get(table)), "sensitivity")


def units(study: Study) -> str:
    """The same in the plural, as reports say it."""
    return PLURALS[unit_of(study)]


def unit_name(row: dict[str, Any]) -> str:
    """Where a row of a ranking is, in words.

    >>> unit_name({"layer": 2, "component": "down", "expert": None, "row": 5, "col": 7, "unit": "weight"})
    'down [5, 7] in block 2'
    >>> unit_name({"layer": 0, "component": "gate", "expert": 3, "unit": "neuron", "number": 9})
    'neuron 9 of expert 3 in block 0'
    """
    unit, component = row.get("unit") or "weight", row["component"]
    match unit:
        case "weight":
            name = f"{component} [{row['row']}, {row['col']}]"
        case "row" | "col":
            name = f"{component} {'row' if unit == 'row' else 'column'} {row['number']}"
        case _:
            name = f"{unit} {row['number']}"
    expert = "" if row["expert"] is None else f" of expert {row['expert']}"
    return f"{name}{expert}" + ("" if row["layer"] is None else f" in block {row['layer']}")


def leading(study: Study) -> dict[str, Any]:
    """A study's first score; of a study of compressions, which has none, one that no row names."""
    return dict(study.spec["scores"][0]) if study.spec["scores"] else {"metric": "", "mode": ""}


def in_question(study: Study, *, lists: bool = True) -> pl.Expr:
    """The rows that a study is first of all about: its first list, or else its first score at the largest k."""
    if lists and (given := study.spec.get("lists")):
        return (pl.col("metric") == LISTED) & (pl.col("mode") == given[0]["name"])
    first = leading(study)
    chosen_by = (pl.col("metric") == first["metric"]) & (pl.col("mode") == first["mode"])
    return chosen_by & (pl.col("k") == max(study.spec["topk"]))


def first_score(study: Study) -> tuple[str, str]:
    """(metric, mode) of the first score that looks at text, else of the first; of none, two empty words."""
    scores = [(s["metric"], s["mode"]) for s in study.spec["scores"]]
    return next((s for s in scores if not is_data_free(s[0])), scores[0] if scores else ("", ""))
