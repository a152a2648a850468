"""Words and tables that the sections on many models share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from analysis.comparison.quantities import WORDS
from analysis.report import wording
from analysis.report.parts import Table

#: p below which the sections say "surely".
LEVEL = 0.05

#: A table's columns: name → what stands there, of a row. Names begin as those of :class:`Table`.
Columns = dict[str, Callable[[dict[str, Any]], str]]


def listed(rows: Iterable[dict[str, Any]], columns: Columns, title: str = "", **more: Any) -> Table:
    """A table of rows."""
    return Table(list(columns), [[text(row) for text in columns.values()] for row in rows], title, **more)


def number(x: float | None) -> str:
    """A value, or a dash."""
    return wording.significant(x)


def ranged(x: float | None, low: float | None, high: float | None) -> str:
    """A value with its interval, three significant digits each."""
    if x is None:
        return "–"
    return number(x) + (f" [{number(low)}, {number(high)}]" if low is not None and high is not None else "")


def correlation(x: float | None, low: float | None = None, high: float | None = None) -> str:
    """A correlation with its interval."""
    return wording.within(x, low, high)


def p(name: str) -> Callable[[dict[str, Any]], str]:
    """The column of a p value."""
    return lambda row: wording.p_value(row[name])


def text(name: str) -> Callable[[dict[str, Any]], str]:
    """The column of a field as it is; nothing where there is none."""
    return lambda row: "" if row[name] is None else str(row[name])


def quantity(row: dict[str, Any]) -> str:
    """A row's quantity in words."""
    return WORDS[row["quantity"]]


def named_quantities(names: list[str]) -> str:
    """Quantities in words."""
    return ", ".join(f"“{WORDS[name]}”" for name in names)


def capital(words: str) -> str:
    """Words that begin a sentence."""
    return words[:1].upper() + words[1:]
