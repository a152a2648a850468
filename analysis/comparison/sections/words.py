"""Words that the sections on many models share."""

from __future__ import annotations

from analysis import wording
from analysis.comparison.quantities import WORDS

#: p below which the sections say "surely".
LEVEL = 0.05


def number(x: float | None) -> str:
    """A value, or a dash."""
    return wording.significant(x)


def ranged(x: float | None, low: float | None, high: float | None) -> str:
    """A value with its interval, three significant digits each."""
    if x is None:
        return "–"
    return number(x) + (f" [{number(low)}, {number(high)}]" if low is not None and high is not None else "")


def named_quantities(quantities: list[str]) -> str:
    """Quantities in words."""
    return ", ".join(f"“{WORDS[q]}”" for q in quantities)


def capital(text: str) -> str:
    """A text that begins a sentence."""
    return text[:1].upper() + text[1:]
