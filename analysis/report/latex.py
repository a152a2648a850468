"""Tables of a report as LaTeX, for a paper: booktabs, one file each."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from analysis.report.parts import Section, Table
from esa_ray.storage.location import Location

#: Characters of reports that LaTeX's default fonts lack.
SYMBOLS = {
    "−": "$-$", "×": r"$\times$", "Δ": r"$\Delta$", "ρ": r"$\rho$", "²": "$^2$", "≥": r"$\ge$", "≤": r"$\le$",
    "∞": r"$\infty$", "–": "--", "“": "``", "”": "''", "…": r"\ldots{}", "‖": r"$\|$", "τ": r"$\tau$", "₀": "$_0$",
    "χ": r"$\chi$", "κ": r"$\kappa$", "’": "'", "Σ": r"$\Sigma$", "·": r"$\cdot$",
}  # fmt: skip
SUPERSCRIPTS = dict(zip("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789", strict=True))
SPECIAL = {
    "\\": r"\textbackslash{}",
    **{c: "\\" + c for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def escaped(text: str) -> str:
    """A report's text as LaTeX.

    >>> escaped("down_proj: 2.9×10⁻⁵")
    'down\\\\_proj: 2.9$\\\\times$10$^{-5}$'
    """
    text = "".join(SPECIAL.get(c, c) for c in text)
    raised = re.compile("[" + "".join(SUPERSCRIPTS) + "]+")
    text = raised.sub(lambda m: "$^{" + "".join(SUPERSCRIPTS[c] for c in m[0]) + "}$", text)
    return "".join(SYMBOLS.get(c, c) for c in text)


def latex(table: Table) -> str:
    """A table as a ``tabular`` with booktabs' rules.

    >>> print(latex(Table(["<model", "k"], [["a", "1"]])))
    \\begin{tabular}{lr}
    \\toprule
    model & k \\\\
    \\midrule
    a & 1 \\\\
    \\bottomrule
    \\end{tabular}
    <BLANKLINE>
    """
    left = [c[:1] in ("<", "~") for c in table.columns]
    names = [escaped(c.lstrip("<~")) for c in table.columns]
    # Columns of one name would be one to a frame.
    frame = pd.DataFrame([[escaped(cell) for cell in row] for row in table.rows], columns=range(len(names)))
    styler = frame.style.hide(axis="index").format_index(lambda i: names[i], axis="columns")
    return styler.to_latex(hrules=True, column_format="".join("l" if at else "r" for at in left))


def file_name(section: Section, number: int, table: Table) -> str:
    """A file's name for a table of a section."""
    title = re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-")[:40].rstrip("-")
    return f"{section.id}-{title or number}.tex"


def save(sections: Iterable[Section], location: Location) -> Path | str:
    """Write every table of some sections into ``tables/`` of a place; returns where that is."""
    for section in sections:
        for number, table in enumerate(section.tables, 1):
            if table.rows:
                location.write(f"tables/{file_name(section, number, table)}", latex(table).encode())
    return location.at("tables")
