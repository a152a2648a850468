"""Numbers as people read them; one place, so that report, terminal and tests agree."""

from __future__ import annotations

import math

#: Shares below this are told as powers of ten, not in percent.
LEAST_PERCENT = 1e-6
#: Shares below this are rounding errors of 0.
NOTHING = 1e-12
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def significant(x: float | None, digits: int = 3) -> str:
    """Three significant digits, powers of ten where they read better.

    >>> significant(291530000.0), significant(-0.00111), significant(24.0606), significant(0.0000271)
    ('2.92×10⁸', '−0.00111', '24.1', '2.71×10⁻⁵')
    """
    if x is None or math.isnan(x):
        return "–"
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    if x == 0:
        return "0"
    magnitude = abs(x)
    if magnitude >= 1e5 or magnitude < 1e-4:
        mantissa, exponent = f"{x:.{digits - 1}e}".split("e")
        text = f"{mantissa}×10{str(int(exponent)).translate(SUPERSCRIPT)}"
    elif magnitude >= 1000:
        text = f"{x:,.0f}"
    else:
        decimals = max(0, digits - 1 - math.floor(math.log10(magnitude)))
        text = f"{x:.{decimals}f}"
    return text.replace("-", "−", 1) if x < 0 else text


def signed(x: float | None, digits: int = 3) -> str:
    """With a plus sign where it is positive."""
    text = significant(x, digits)
    return f"+{text}" if x is not None and x > 0 and not math.isnan(x) else text


def interval(low: float | None, high: float | None) -> str:
    """``[low, high]`` with signs."""
    return "–" if low is None or high is None else f"[{signed(low)}, {signed(high)}]"


def within(x: float | None, low: float | None, high: float | None, digits: int = 2) -> str:
    """A number in [−1, 1] or so with its interval, or alone where there is none.

    >>> within(0.371, 0.3, 0.442), within(0.371, None, None)
    ('0.37 [0.30, 0.44]', '0.37')
    """
    if x is None or math.isnan(x):
        return "–"
    text = f"{x:.{digits}f}"
    if low is not None and high is not None and not math.isnan(low):
        text += f" [{low:.{digits}f}, {high:.{digits}f}]"
    return text.replace("-", "−")


def p_value(p: float | None) -> str:
    """A p value, never rounded to zero.

    >>> p_value(0.000031), p_value(0.394684), p_value(1.0)
    ('0.00003', '0.39', '1')
    """
    if p is None or math.isnan(p):
        return "–"
    if p < 1e-5:
        return significant(p, 2)
    return f"{p:.5f}" if p < 0.001 else f"{p:.2g}" if p < 0.995 else "1"


def percent(x: float | None) -> str:
    """A share as a percentage with one decimal; a small one with two digits, so that it isn't rounded to zero.

    >>> percent(0.1234), percent(-0.01), percent(0.0), percent(0.000123), percent(3.3e-7), percent(2.2e-308)
    ('12.3%', '−1.0%', '0.0%', '0.012%', '3.3×10⁻⁷', '0.0%')
    """
    if x is None or math.isnan(x):
        return "–"
    if abs(x) < NOTHING or abs(x) >= 0.0005:
        return f"{100 * x:.1f}%".replace("-", "−")
    return f"{significant(100 * x, 2)}%" if abs(x) >= LEAST_PERCENT else significant(x, 2)


def share(x: float | None) -> str:
    """A signed share in whole percent, or with one decimal below ten.

    >>> share(-0.151), share(0.0312), share(None)
    ('−15%', '+3.1%', '–')
    """
    if x is None or math.isnan(x):
        return "–"
    text = f"{100 * x:+.0f}%" if abs(x) >= 0.0995 else f"{100 * x:+.1f}%"
    return text.replace("-", "−")


def saving(low: float | None, high: float | None) -> str:
    """The interval of a saved share, as changes of what is saved from.

    >>> saving(0.1, 0.2)
    '[−20%, −10%]'
    """
    return "–" if low is None or high is None else f"[{share(-high)}, {share(-low)}]"
