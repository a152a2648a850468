"""The report: one self-contained HTML file that answers first, then shows evidence, then method."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl
import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from analysis.damage.changed import controls_hold_zeros
from analysis.damage.effects import comparisons, effects
from analysis.damage.windows import baseline
from analysis.names import about, in_question, leading, unit_name, unit_of, units
from analysis.report import latex, wording
from analysis.report.done import done_words, population_words
from analysis.report.figures import LINEAR_BELOW, charts
from analysis.report.sections import answered
from analysis.report.verdicts import verdicts
from analysis.run.applied import devices
from analysis.run.progress import progress
from analysis.scores.distribution import gaussian_product_tail, has_magnitude, scored_tensors
from analysis.scores.stability import calibration_overlap, consensus, jaccard, jaccard_summary
from analysis.statistics.inference import LEVEL, RESAMPLES
from analysis.study import Study
from esa_ray.measurements.failed import noted
from esa_ray.spec import RANDOM_KINDS, TREATED, is_data_free, is_of_activations

#: Rows of damage that are seen at once.
SHOWN = 24


@lru_cache
def environment() -> Environment:
    """Templates, with numbers worded as everywhere."""
    environment = Environment(
        loader=PackageLoader("analysis.report"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "significant": wording.significant,
        "signed": wording.signed,
        "p_value": wording.p_value,
        "percent": wording.percent,
    }
    environment.globals["interval"] = wording.interval
    return environment


def json_script(value: Any) -> str:
    """JSON that can stand inside a script element."""
    # Inside <script>, "</" could end the element and "<!--" could open a comment; in JSON both escapes mean "<".
    return json.dumps(value).replace("</", "<\\/").replace("<!--", "\\u003c!--")


def library() -> str:
    """Vega, Vega-Lite and vega-embed as one script, so that the report needs no network."""
    bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    return re.sub(r"</(script)", r"<\\/\1", bundle, flags=re.IGNORECASE)


def _headline(study: Study) -> dict[str, Any] | None:
    """The kind of damage that costs most, its super set, and the controls, the one that suffers most first."""
    table = effects(study).filter(in_question(study))
    top = table.filter(pl.col("group").is_in(TREATED)).drop_nulls("delta_nll").sort("delta_nll", descending=True)
    if top.is_empty():
        return None
    row = top.row(0, named=True)
    same = [pl.col(c).eq_missing(pl.lit(row[c])) for c in ("metric", "mode", "k", "damage")]
    controls = table.filter(*same, ~pl.col("group").is_in(TREATED)).drop_nulls("delta_nll")
    controls = controls.sort("delta_nll", descending=True)
    tests = comparisons(study)
    tested = tests.filter(*same).drop_nulls("p").to_dicts()
    scored = scored_tensors(study, leading(study)["metric"])["n"].sum() if unit_of(study) == "weight" else 0
    return {
        "super": row,
        "controls": controls.to_dicts(),
        "tests": tested,
        "share": row["n_weights"] / scored if scored else None,
    }


def _agreement(study: Study) -> dict[str, Any] | None:
    """Agreement of seeds on the first score's sets at the largest k; None of a score that looks at no text."""
    first = leading(study)
    if is_data_free(first["metric"]):
        return None
    rows = jaccard_summary(study).filter((pl.col("metric") == first["metric"]) & (pl.col("mode") == first["mode"]))
    return rows.row(-1, named=True) if len(rows) else None


def _folded(study: Study, table: pl.DataFrame) -> list[list[dict[str, Any]]]:
    """The first rows on the sets in question, and the rest, which the report folds."""
    table = table.with_columns(in_question(study).alias("first")).sort("first", descending=True, maintain_order=True)
    shown = pl.col("first") & (pl.int_range(pl.len()) < SHOWN)
    return [rows.to_dicts() for rows in (table.filter(shown), table.filter(~shown)) if len(rows)]


def _failures(study: Study) -> list[dict[str, Any]]:
    """Cells and whatever else has no result, by name, and why."""
    cells = study.cells.select(pl.col("cell_id").alias("name"), "status", "error")
    name = pl.coalesce(pl.format("{}-s{}", "label", "seed"), "label").alias("name")  # the intact model has no seed
    seeded = (study.compressions, study.tunings, study.faults, study.attacks)
    applied = [table.select(name, "status", "error") for table in seeded]
    applied += [
        study.backdoors.select(pl.col("label").alias("name"), "status", "error"),
        study.mitigations.select(pl.format("{} {}", "label", "mitigation").alias("name"), "status", "error"),
        study.facts.select(pl.col("fact").alias("name"), "status", "error"),
    ]
    subject = pl.format("{}-s{}-{}", "subject", "seed", "edit").alias("name")
    applied += [t.select(subject, "status", "error") for t in (study.roles, study.mediations, study.attention)]
    rows = pl.concat([cells, *applied]).filter(pl.col("status") == "error").unique(maintain_order=True).to_dicts()
    others = [{"name": f"{each['measurement']} {each['unit']}", "status": "error", "error": each["error"]}
              for each in noted(study.location)]  # fmt: skip
    return rows + others


def _unfinished(counts: dict[str, int]) -> str:
    """What is missing or failed, in words; empty if nothing."""
    said = []
    if counts["missing"] or counts["error"]:
        said.append(f"{counts['missing']} of {counts['cells']} cells are missing and {counts['error']} failed")
    lacking = {name.removesuffix(" missing"): n for name, n in counts.items() if name.endswith(" missing") and n}
    return "; ".join([*said, *(f"{n} {name.replace('_', ' ')} missing" for name, n in lacking.items())])


def _harms(study: Study) -> str:
    """Which of faults, attacks and backdoors the study asks for."""
    told = {"faults": "faults", "attacks": "attacks", "population": "backdoors"}
    return " and ".join(name for field, name in told.items() if study.spec.get(field))


#: The sections on roles and facts whose answers stand at the top.
LEADING = ("roles_held", "role_cards", "false_positives", "facts_known", "facts_traced", "fact_stores")


def context(study: Study) -> dict[str, Any]:
    """Everything that the report says, as plain values."""
    with ThreadPoolExecutor(1) as beside:  # a second of another library's work, which needs nothing of ours
        bundle = beside.submit(library)
        said = _said(study)
        return said | {"vega": bundle.result() if said["charts"] else ""}


def _said(study: Study) -> dict[str, Any]:
    measured = not study.baselines.is_empty()
    damaged = measured and not study.cells.is_empty()
    tests = comparisons(study) if damaged else pl.DataFrame()
    drawn, counts = charts(study), progress(study)
    on_roles = answered(study, set(drawn), "roles")
    return {
        "study": study,
        "spec": study.spec,
        "resolved": study.resolved,
        "versions": study.record["versions"],
        "progress": counts,
        "unfinished": _unfinished(counts),
        "baseline": baseline(study) if measured else None,
        "headline": _headline(study) if damaged else None,
        "effects": _folded(study, effects(study)) if damaged else [],
        "charted": effects(study).filter(in_question(study))["chosen"].unique().to_list() if damaged else [],
        "controls_hold_zeros": controls_hold_zeros(study),
        "has_kl": damaged and effects(study)["kl"].is_not_null().any(),
        "has_loops": damaged and effects(study)["loop_rate"].is_not_null().any(),
        "tests": _folded(study, tests) if damaged else [],
        "sets": damaged and effects(study)["chosen"].n_unique() > 1,
        "jaccard": jaccard(study).to_dicts(),
        "jaccard_summary": jaccard_summary(study).to_dicts(),
        "agreement": _agreement(study),
        "calibration_overlap": calibration_overlap(study),
        "about": about(study),
        "consensus": [] if about(study) != "sensitivity" else consensus(study).to_dicts(),
        "unit": unit_of(study),
        "units": units(study),
        "named": unit_name,
        "verdicts": verdicts(study),
        "on_damage": answered(study, set(drawn), "damage"),
        "on_compression": answered(study, set(drawn), "compression"),
        "on_tuning": answered(study, set(drawn), "tuning"),
        "on_security": answered(study, set(drawn), "security"),
        "on_roles": on_roles,
        "lead_roles": [s for s in on_roles if s.id in LEADING],
        "on_weights": [] if about(study) != "sensitivity" else answered(study, set(drawn), "weights"),
        "on_run": answered(study, set(drawn), "run"),
        "of_activations": sorted({s["metric"] for s in study.spec["scores"] if is_of_activations(s["metric"])}),
        "leading": next((s["metric"] for s in study.spec["scores"] if has_magnitude(s["metric"])), None),
        "failures": _failures(study),
        "devices": devices(study),
        "applied": done_words(study, counts),
        "harms": _harms(study),
        "population": population_words(study),
        "noisy": any(p["kind"] in RANDOM_KINDS for p in study.spec["perturbations"]),
        "ranks": about(study) == "sensitivity" and (damaged or bool(study.spec["scores"])),
        "compute_seconds": float(study.cells["seconds"].sum() or 0),
        "gaussian_tail": gaussian_product_tail(),
        "linear_below": LINEAR_BELOW,
        "level": LEVEL,
        "resamples": RESAMPLES,
        "charts": {name: json_script(chart.to_dict()) for name, chart in drawn.items()},
    }


def write_report(study: Study) -> Path | str:
    """Write ``report.html`` into the study's place and return where it is."""
    html = environment().get_template("report.html.j2").render(context(study))
    study.location.write("report.html", html.encode())
    return study.location.at("report.html")


def save_tables(study: Study) -> Path | str:
    """Write the tables of the report's sections as LaTeX into ``tables/``; returns where that is."""
    return latex.save(answered(study, set()), study.location)
