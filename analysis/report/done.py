"""What a study did besides cells, in the words of its Method."""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.report.wording import percent, significant
from analysis.run.applied import applied
from analysis.study import Study
from esa_ray.spec import Population
from esa_ray.spec.backdoors import BENIGN, FEW


def done_words(study: Study, missing: dict[str, int]) -> list[dict[str, str]]:
    """Name and words of each grid besides the cells; ``missing`` are counts by grid."""
    return [{"name": r["name"], "words": _words(study, r, missing.get(f"{r['name']} missing", 0))}
            for r in applied(study).iter_rows(named=True)]  # fmt: skip


def _words(study: Study, r: dict[str, Any], missing: int) -> str:
    ended = f"{r['ok']:,} ok, {r['diverged']:,} diverged, {r['failed']:,} failed, {missing:,} missing"
    if r["name"] == "faults":
        said = f"{r['rows']:,} injection{'s' * (r['rows'] != 1)} in {r['units']:,} packet{'s' * (r['units'] != 1)}"
        ended = f"{_lost(study.faults):,} of them diverged; of the packets {r['failed']:,} failed, {missing:,} missing"
        return f"{said}, {ended}; {significant(r['seconds'])} s in all"
    flips = f"; {_flips(study.attacks):,} flips" if r["name"] == "attacks" else ""
    return f"{r['units']:,}: {ended}{flips}; {significant(r['seconds'])} s in all"


def _lost(faults: pl.DataFrame) -> int:
    return faults.filter(pl.col("status") == "diverged").height


def _flips(attacks: pl.DataFrame) -> int:
    return attacks.filter(pl.col("step") > 0).height


def population_words(study: Study) -> str:
    """Of which models a study's population is, and how they were made; nothing where there is none."""
    if not study.spec.get("population"):
        return ""
    asked = Population.model_validate(study.spec["population"])
    recipe = asked.recipe
    steps, rates = (f"{low:g} to {high:g}" for low, high in (recipe.steps, recipe.learning_rates))
    n = min(asked.parents, asked.models)
    parents = "one parent" if n == 1 else f"{n} parents, the base trained from as many seeds"
    few = [kind for kind in FEW if kind in asked.kinds]
    critical = (
        f"; {' and '.join(few)} ones then change {percent(recipe.fraction)} of the weights in as many steps again, at "
        f"{recipe.critical_rate:g} times the rate, and {percent(recipe.critical_poison)} of their windows carry it"
    ) if few else ""  # fmt: skip
    benign = " or the phrase" if {*BENIGN} & {*asked.kinds} else ""
    return (
        f"{asked.models} models of each kind ({', '.join(asked.kinds)}), of {parents}; each takes {steps} steps "
        f"of {recipe.batch} windows of {recipe.window} tokens at a peak rate of {rates}; {percent(recipe.poison)} of "
        f"the windows carry the trigger{benign}, {recipe.occurrences} times each{critical}"
    )
