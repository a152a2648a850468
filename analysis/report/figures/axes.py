"""Where figures have ticks: every axis has two or more labels, whatever it spans, and they don't touch on a phone."""

from __future__ import annotations

import math

import altair as alt
import polars as pl

#: Below this |ΔNLL| an axis is linear, above it logarithmic, so that 0 and 16 fit in one picture.
LINEAR_BELOW = 1e-3
#: Labels on one axis.
MOST = 6


def step(width: float, most: int = MOST) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that divides a width into at most so many parts.

    >>> step(9.0), step(0.03, 3), step(1.0, 5)
    (2.0, 0.01, 0.2)
    """
    least = 10.0 ** math.floor(math.log10(width / most))
    return next(round(least * m, 12) for m in (1, 2, 5, 10) if width <= least * m * most * (1 + 1e-9))


def linear(low: float, high: float, most: int = MOST) -> list[float]:
    """Round numbers between two others.

    >>> linear(0, 9), linear(38_000, 46_000)
    ([0.0, 2.0, 4.0, 6.0, 8.0], [38000.0, 40000.0, 42000.0, 44000.0, 46000.0])
    """
    each = step(high - low, most)
    return [round(each * i, 12) for i in range(math.ceil(low / each - 1e-9), math.floor(high / each + 1e-9) + 1)]


def logarithmic(low: float, high: float) -> list[float]:
    """The powers of ten between two positive numbers, thinned; round numbers where there is at most one of them.

    >>> logarithmic(0.002, 30), logarithmic(0.18, 0.3)
    ([0.01, 0.1, 1.0, 10.0], [0.18, 0.2, 0.22, 0.24, 0.26, 0.28, 0.3])
    """
    exponents = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    if len(exponents) > 1:
        return [float(f"1e{e}") for e in exponents[:: max(1, -(-len(exponents) // MOST))]]
    return linear(low, high) if high > low else [low]


def signed(low: float, high: float, below: float = LINEAR_BELOW) -> list[float]:
    """Ticks of an axis through 0 that is linear below a magnitude and logarithmic above it.

    >>> signed(-0.0013, 16), signed(-0.002, 0.0013), signed(-0.0004, 0.0008, 0.01)
    ([0.0, 0.01, 0.1, 1.0, 10.0], [-0.001, 0.0, 0.001], [-0.0004, -0.0002, 0.0, 0.0002, 0.0004, 0.0006, 0.0008])
    """
    most = max(-low, high)
    if most < below:
        return linear(low, high)
    # Labels of 0 and of the linear part's end would touch where the axis goes much further.
    first = math.log10(below) + (most >= 10 * below)
    exponents = range(math.ceil(first - 1e-9), math.floor(math.log10(most) + 1e-9) + 1)
    sizes = [float(f"1e{e}") for e in exponents[:: max(1, -(-len(exponents) // MOST))]]
    return [-x for x in reversed(sizes) if -x >= low] + [0.0] + [x for x in sizes if x <= high]


def scaled(values: list[pl.Series], room: float = 1.2) -> tuple[alt.Scale, alt.Axis]:
    """A logarithmic scale around positive values; around others one that is linear below LINEAR_BELOW.

    ``room`` is the factor by which a logarithmic scale goes beyond them.
    """
    told = pl.concat(values).drop_nulls().drop_nans()
    low, high = float(told.min()), float(told.max())  # type: ignore[arg-type]
    if low > 0:
        span = [low / room, high * room]
        return alt.Scale(type="log", domain=span, nice=False), alt.Axis(values=logarithmic(*span), format="~g")
    span = [1.3 * min(low, -LINEAR_BELOW), 1.3 * max(high, LINEAR_BELOW)]
    scale = alt.Scale(type="symlog", constant=LINEAR_BELOW, domain=span, nice=False)
    return scale, alt.Axis(values=signed(*span), format="~g")


def by_block(depth: int, title: str = "layer") -> alt.X:
    """A horizontal axis of a model's blocks, whole numbers alone, with half a block of room at both ends."""
    ticks = [t for t in linear(0, max(depth - 1, 1), 10) if t == int(t) and t < depth]
    return alt.X(
        "layer:Q", title=title, scale=alt.Scale(domain=[-0.5, depth - 0.5], nice=False),
        axis=alt.Axis(values=ticks, format="d"),
    )  # fmt: skip
