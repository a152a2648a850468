"""Do families of models scale by one exponent, and lie on one line?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import statsmodels.formula.api as smf
from statsmodels.stats.anova import anova_lm

from analysis.statistics.inference import LEVEL
from analysis.statistics.scaling.breaks import different

#: Logarithms that differ by less are the same number but for rounding.
SAME = 1e-9
#: Sizes that a family must have to have an exponent of its own, and families to compare.
FEWEST_SIZES, FEWEST_FAMILIES = 3, 2


@dataclass(frozen=True)
class Families:
    """Power laws of several families: each one's exponent with its interval, and whether they share it.

    ``p_exponent`` is of the F test of one exponent against one each, ``p_height`` of one height against one each,
    the exponent being shared. ``why_not`` says why there are no tests.
    """

    exponents: dict[str, tuple[float, float, float]]
    p_exponent: float | None = None
    p_height: float | None = None
    why_not: str | None = None


def compare_families(table: pl.DataFrame) -> Families:
    """Analysis of covariance of log y on log N and family (statsmodels), over families of three sizes and more.

        log y = a_f + b_f log N    against    log y = a_f + b log N    against    log y = a + b log N

    Parameters
    ----------
    table
        Columns ``family``, ``size``, ``value``: a row a model, sizes and values positive.

    Example
    -------
    >>> sizes = [1e5, 1e6, 1e7]
    >>> rows = [(f, n, h * n**-0.5 * j) for f, h in (("a", 1), ("b", 2)) for n, j in zip(sizes, (0.99, 1.02, 1))]
    >>> found = compare_families(pl.DataFrame(rows, schema=["family", "size", "value"], orient="row"))
    >>> found.p_exponent > 0.05 > found.p_height
    True
    """
    by_family = table.group_by("family").agg("size").sort("family")
    kept = [f for f, sizes in by_family.iter_rows() if different(np.array(sizes)) >= FEWEST_SIZES]
    table = table.filter(pl.col("family").is_in(kept))
    if not kept:
        return Families({}, why_not=f"no family has {FEWEST_SIZES} sizes")
    data = {
        "y": np.log(table["value"].to_numpy()),
        "x": np.log(table["size"].to_numpy()),
        "f": table["family"].to_list(),
    }
    spread = table.group_by("family").agg(pl.col("value").log().max() - pl.col("value").log().min())["value"].max()
    if spread < SAME:  # type: ignore[operator]
        return Families({}, why_not="it is the same for every model of a family")
    exponents = {family: _exponent(data, family) for family in kept}
    if len(kept) < FEWEST_FAMILIES:
        return Families(exponents, why_not=f"only {kept[0]} has {FEWEST_SIZES} sizes: one family shares with no other")
    own = smf.ols("y ~ x * C(f)", data).fit()
    shared = smf.ols("y ~ x + C(f)", data).fit()
    one = smf.ols("y ~ x", data).fit()
    return Families(
        exponents, float(anova_lm(shared, own)["Pr(>F)"].iloc[1]), float(anova_lm(one, shared)["Pr(>F)"].iloc[1])
    )


def _exponent(data: dict, family: str) -> tuple[float, float, float]:
    mine = [i for i, f in enumerate(data["f"]) if f == family]
    found = smf.ols("y ~ x", {"y": data["y"][mine], "x": data["x"][mine]}).fit()
    low, high = found.conf_int(alpha=1 - LEVEL).loc["x"]
    return float(found.params["x"]), float(low), float(high)
