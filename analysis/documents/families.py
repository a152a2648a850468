"""The part of the document on compression that holds several models against each other."""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.compression.families import BEST, MAGNITUDE
from analysis.report import wording
from analysis.report.parts import Section, Table

#: Kind → its section's title, what the best rival is called, and who the methods are.
_WORDS = {
    "prune": ("Pruning: Is it so in other architectures?", "the best published",
              "point that isn't published"),
    "quantize": ("Quantization: Is it so in other architectures?", "the best other rule", "rule by gradients"),
}  # fmt: skip
_DOMAINS = {"in": "in domain", "out": "out of domain"}


def family_sections(table: pl.DataFrame) -> list[Section]:
    """A section a kind of compression of which several models have studies."""
    kinds = table.group_by("kind", maintain_order=True)
    return [_section(str(kind), mine) for (kind,), mine in kinds if mine["model"].n_unique() > 1]


def _section(kind: str, table: pl.DataFrame) -> Section:
    title, best, method = _WORDS[kind]
    named = {MAGNITUDE: "magnitude", BEST: best}
    columns = [(domain, against) for domain in _DOMAINS for against in named]
    rows = []
    for (model, setting, name), mine in table.group_by("model", "setting", "method", maintain_order=True):
        at = {(r["domain"], r["against"]): r for r in mine.iter_rows(named=True)}
        cells = [_cell(at.get(place), tell=place[1] == BEST) for place in columns]
        rows.append([str(model), str(setting), str(name), *cells])
    heads = [f"<{_DOMAINS[domain]}, against {named[against]}" for domain, against in columns]
    most = table["candidates"].max()
    return Section(
        f"families_{kind}", title, " ".join(_words(table, domain, named, method) for domain in _DOMAINS).strip(),
        "Change of excess NLL at the same setting, text and calibration windows, with Fieller's 95% intervals for "
        f"further calibration seeds and windows; −15% is 15% less. Of each model it is the {method} with the smallest "
        "excess NLL in domain"
        + (f", of up to {most}, which flatters it" if isinstance(most, int) and most > 1 else "")
        + f"; {best} is chosen anew on each text, which flatters that. Nothing is corrected over models and settings.",
        [], [Table(["<model", "<setting", "<method", *heads], rows)],
    )  # fmt: skip


def _cell(r: dict[str, Any] | None, *, tell: bool) -> str:
    if r is None:
        return "–"
    rival = f" ({r['rival']})" if tell else ""
    if r["saving"] is None:
        lost = "diverges" if r["diverged"] else "the rival diverges" if r["rival_diverged"] else r["why_not"]
        return f"{lost}{rival}"
    return f"{wording.share(-r['saving'])} {wording.saving(r['low'], r['high'])}{rival}"


def _words(table: pl.DataFrame, domain: str, named: dict[str, str], method: str) -> str:
    """In how many of the models and settings the method surely saves something, and in how many the opposite."""
    parts = []
    for against, name in named.items():
        mine = table.filter(pl.col("domain") == domain, pl.col("against") == against)
        if mine.is_empty():
            continue
        less, more = mine.filter(pl.col("low") > 0), mine.filter(pl.col("high") < 0)
        where = ", ".join(f"{r['model']} at {r['setting']}" for r in more.iter_rows(named=True))
        parts.append(
            f"surely less excess NLL than {name} in {len(less)} of {len(mine)} models and settings, surely more in "
            f"{len(more)}" + (f" ({where})" if where else "")
        )
    return f"{_DOMAINS[domain].capitalize()} the {method} has {', and '.join(parts)}." if parts else ""
