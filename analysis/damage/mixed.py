"""Damage over all kinds at once: one mixed model of kinds, groups and windows."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from scipy import stats
from statsmodels.formula.api import mixedlm

from analysis.damage.meta import WHO
from analysis.damage.paired import window_level
from analysis.damage.windows import baseline
from analysis.names import GROUP_ORDER
from analysis.statistics.inference import LEVEL
from analysis.study import Study
from esa_ray.spec import TREATED

#: Fewest kinds of damage of which a mixed model is fitted.
FEWEST_KINDS = 3

_ESTIMATES = ["coefficient", "se", "low", "high", "p", "var_kind", "var_kind_by_group", "var_window", "var_residual"]
MIXED: dict[str, Any] = WHO | {"group": pl.String, "reference": pl.String} | dict.fromkeys(_ESTIMATES, pl.Float64) | {
    "kinds": pl.Int64, "left_out": pl.Int64, "windows": pl.Int64, "converged": pl.Boolean, "why_not": pl.String,
}  # fmt: skip


@lru_cache(maxsize=8)
def mixed_effects(study: Study) -> pl.DataFrame:
    """One row per score, pool and control at the largest k: a mixed model of ΔNLL over kinds, groups and windows.

    signed log ΔNLL[kind, group, window] = group + kind + kind·group + window + residual: the group is fixed, the rest
    are random intercepts, fitted by REML (statsmodels' MixedLM); ΔNLL is first averaged over seeds. ``coefficient``
    is the treated set minus the ``reference`` control on :func:`analysis.statistics.crossed.signed_log`'s scale: 1 is a
    factor e where damage is large, 10⁻³ nats where it is small. Raw ΔNLL spans five orders of magnitude, so that one
    kind would decide everything; ranks would lose how much. Without intercepts of kind by group all windows of a kind
    would count as replications of the group's effect, which differs by kind. The interval is t with (kinds − 1)
    degrees of freedom: it speaks of further kinds, if these are a sample of them.

    A kind is a perturbation with its variant; ΔNLL of its strengths is averaged first (:func:`window_level`). One of
    which a group has no finite ΔNLL is ``left_out``; ``why_not`` says why there is no fit.
    """
    if study.baselines.is_empty():
        return pl.DataFrame(schema=MIXED)
    base, rows = baseline(study), []
    for (metric, mode), cells in study.whole.group_by(["metric", "mode"], maintain_order=True):
        cells = cells.filter(pl.col("k") == cells["k"].max())
        treated, *controls = [g for g in GROUP_ORDER if g in cells["group"]]
        for control in controls if treated in TREATED else []:
            table, kinds = window_level(cells.filter(pl.col("group").is_in([treated, control])), base)
            row = {"metric": metric, "mode": mode, "k": cells["k"][0], "group": treated, "reference": control}
            row |= {"kinds": table["kind"].n_unique(), "windows": table["window"].n_unique()}
            rows.append(row | {"left_out": kinds - table["kind"].n_unique()} | _fit(table, treated))
    return pl.DataFrame(rows, schema=MIXED)


def _fit(table: pl.DataFrame, treated: str) -> dict[str, Any]:
    """The model's estimates, or why there are none."""
    if (kinds := table["kind"].n_unique()) < FEWEST_KINDS:
        return {"why_not": f"{kinds} kinds of damage with both groups; a mixed model needs {FEWEST_KINDS}"}
    data = table.with_columns(
        both=pl.col("kind") + pl.col("group"), one=pl.lit(1), is_treated=(pl.col("group") == treated).cast(pl.Float64)
    ).to_pandas()
    parts = {"both": "0 + C(both)", "kind": "0 + C(kind)", "window": "0 + C(window)"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a variance of 0 is a result here; convergence is asked below
            model = mixedlm("y ~ is_treated", data, groups="one", vc_formula=parts)
            fit = model.fit(reml=True)
    except (np.linalg.LinAlgError, ValueError) as error:
        return {"converged": False, "why_not": f"the fit failed: {error}"}
    coefficient, se = float(fit.params["is_treated"]), float(fit.bse["is_treated"])
    if not fit.converged or not np.isfinite(se):
        return {"converged": False, "why_not": "the fit did not converge"}
    half = float(stats.t.ppf((1 + LEVEL) / 2, kinds - 1)) * se
    variances = dict(zip(model.exog_vc.names, map(float, fit.vcomp), strict=True))
    return {
        "coefficient": coefficient, "se": se, "low": coefficient - half, "high": coefficient + half,
        "p": float(2 * stats.t.sf(abs(coefficient) / se, kinds - 1)), "var_kind": variances["kind"],
        "var_kind_by_group": variances["both"], "var_window": variances["window"], "var_residual": float(fit.scale),
        "converged": True,
    }  # fmt: skip
