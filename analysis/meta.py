"""Damage over all kinds at once: meta-analysis of super − control over kinds and models, and one mixed model.

Legend: a series is one kind of damage's difference super − control in each window, averaged over seeds, nats per
token. There are K of them. All kinds of a study are measured on the same windows, so the series are dependent.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from scipy import stats
from statsmodels.formula.api import mixedlm
from statsmodels.stats.meta_analysis import combine_effects

from analysis.damage import CONTROLS, GROUP_ORDER, TREATED, baseline, differences, label
from analysis.inference import LEVEL
from analysis.paired import aligned, by_group, window_level
from analysis.study import DAMAGE, Study

RESAMPLES = 1_999

#: Fewest kinds of damage of which a mixed model is fitted.
FEWEST_KINDS = 3

_WHO = {"metric": pl.String, "mode": pl.String, "k": pl.Int64}
_POOLED = dict.fromkeys(
    ["pooled", "low", "high", "tau2", "i2", "mean", "mean_low", "mean_high", "correlation", "joint_tau2", "joint_i2",
     "predicted_low", "predicted_high"], pl.Float64,
)  # fmt: skip
META: dict[str, Any] = _WHO | {
    "control": pl.String, "kinds": pl.Int64, "left_out": pl.Int64, "diverged": pl.Int64, "windows": pl.Int64,
} | _POOLED | {"why_not": pl.String}  # fmt: skip
ACROSS: dict[str, Any] = _WHO | {
    "perturbation": pl.String, "strength": pl.Float64, "variant": pl.String, "damage": pl.String,
    "control": pl.String, "studies": pl.List(pl.String), "same_windows": pl.Boolean, "kinds": pl.Int64,
    "effects": pl.List(pl.Float64),
} | _POOLED | dict.fromkeys(["difference", "difference_low", "difference_high"], pl.Float64)  # fmt: skip
_ESTIMATES = ["coefficient", "se", "low", "high", "p", "var_kind", "var_kind_by_group", "var_window", "var_residual"]
MIXED: dict[str, Any] = _WHO | {"group": pl.String, "reference": pl.String} | dict.fromkeys(_ESTIMATES, pl.Float64) | {
    "kinds": pl.Int64, "left_out": pl.Int64, "windows": pl.Int64, "converged": pl.Boolean, "why_not": pl.String,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Evidence:
    """Effect sizes g (K,), their covariance (K, K), and the effect sizes of joint resamples of windows (B, K)."""

    g: np.ndarray
    covariance: np.ndarray
    boots: np.ndarray
    windows: int

    def averaged(self, shares: np.ndarray) -> Evidence:
        """The same for weighted means of the effects; ``shares`` is (means, K)."""
        return Evidence(shares @ self.g, shares @ self.covariance @ shares.T, self.boots @ shares.T, self.windows)

    def mean_interval(self, shares: np.ndarray) -> tuple[float, float, float]:
        """(weighted mean of the effects, its ends by bootstrap of windows)."""
        # Resampled windows repeat, which raises |g|: the percentiles are moved to have the estimate as their median,
        # and widened for few windows (Hesterberg 2015, The American Statistician 69:371).
        t, n = stats.t.ppf((1 + LEVEL) / 2, self.windows - 1), self.windows
        tail = stats.norm.cdf(-np.sqrt(n / (n - 1)) * t)
        estimate, boots = float(shares @ self.g), self.boots @ shares
        low, high = np.quantile(boots, [tail, 1 - tail]) + estimate - np.median(boots)
        return estimate, float(low), float(high)


def evidence(series: Sequence[np.ndarray], texts: Sequence[str], resamples: int = RESAMPLES) -> Evidence:
    """Standardised paired effects of series (W,) each: g = J·mean/sd over windows, J = 1 − 3/(4(W−1) − 1).

    (Hedges 1981, J. Educ. Stat. 6:107.) Its variance is 1/W + g²/(2W) (Becker 1988, Br. J. Math. Stat. Psychol.
    41:257). The correlations of the effects come of resampling windows: series of the same text get the same windows
    in every resample, others independent ones. Dimensionless. A series that was stopped early has fewer windows.
    """
    rng, g, boots = np.random.default_rng(0), [], []
    longest = {text: max(len(x) for x, t in zip(series, texts, strict=True) if t == text) for text in texts}
    counts = {text: rng.multinomial(n, np.full(n, 1 / n), size=resamples) for text, n in longest.items()}
    for x, text in zip(series, texts, strict=True):
        n, drawn = len(x), counts[text][:, : len(x)].astype(float)
        correction, away = 1 - 3 / (4 * (n - 1) - 1), x - x.mean()
        g.append(correction * x.mean() / x.std(ddof=1))
        with np.errstate(divide="ignore", invalid="ignore"):
            total = drawn.sum(axis=1)
            shift = drawn @ away / total
            variance = (drawn @ away**2 / total - shift**2) * total / (total - 1)
            boots.append(correction * (x.mean() + shift) / np.sqrt(np.maximum(variance, 0)))
    effects, draws = np.array(g), np.array(boots).T
    draws = draws[np.isfinite(draws).all(axis=1)]
    w = np.array([len(x) for x in series])
    se = np.sqrt(1 / w + effects**2 / (2 * w))
    related = np.corrcoef(draws.T) if len(effects) > 1 else np.ones((1, 1))
    return Evidence(effects, related * np.outer(se, se), draws, int(w.min()))


def combined(found: Evidence) -> dict[str, float | None]:
    """The columns that pool K ≥ 2 effects.

    ``pooled`` with ``low``, ``high``, ``tau2``, ``i2``: random effects of DerSimonian & Laird (1986, Control. Clin.
    Trials 7:177) as if effects were independent, with Hartung and Knapp's t interval, never narrower than the plain
    one (Röver, Knapp & Friede 2015, BMC Med. Res. Methodol. 15:99). They are not independent: for ``mean``, all effects
    alike, ``mean_low`` and ``mean_high`` resample windows jointly and speak of these kinds on further windows.
    (Six kinds correlated by 0.8, 16 windows, simulated: it covers 93–95%, as if independent 61–64%; t₄ tails 82–95%.)
    ``joint_tau2`` and ``joint_i2`` are the moment estimate of DerSimonian & Laird with the covariance in it: with
    A = diag(w) − wwᵀ/Σw, w = 1/v and Q = gᵀAg, τ² = (Q − tr(AV))/tr(A). ``predicted_low`` to ``_high``: where the
    effect of a further kind is expected, mean ± t(K−2)·√(τ² + τ²/K + 1ᵀV1/K²) (Higgins, Thompson & Spiegelhalter
    2009, JRSS A 172:137), from three kinds on. ``correlation`` is the mean one between effects.
    """
    g, cov, n = found.g, found.covariance, len(found.g)
    v = np.diag(cov)
    # statsmodels lets τ² go below 0, where effects vary less than chance; that means 0, so the fixed-effect mean.
    with np.errstate(invalid="ignore", divide="ignore"):
        r = combine_effects(g, v, method_re="dl", use_t=True)
    kind = "re" if r.tau2 > 0 else "fe"
    se = max(getattr(r, f"sd_eff_w_{kind}"), getattr(r, f"sd_eff_w_{kind}_hksj"))
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * se)
    mean, low, high = found.mean_interval(np.full(n, 1 / n))
    w = 1 / v
    a = np.diag(w) - np.outer(w, w) / w.sum()
    q, expected = float(g @ a @ g), float(np.trace(a @ cov))
    tau2 = max(0.0, (q - expected) / float(np.trace(a)))
    pooled = float(getattr(r, f"mean_effect_{kind}"))
    row: dict[str, float | None] = {
        "pooled": pooled, "low": pooled - half, "high": pooled + half, "tau2": max(0.0, float(r.tau2)),
        "i2": max(0.0, float(r.i2)), "mean": mean, "mean_low": low, "mean_high": high,
        "correlation": float((cov / np.sqrt(np.outer(v, v)))[np.triu_indices(n, 1)].mean()), "joint_tau2": tau2,
        "joint_i2": max(0.0, 1 - expected / q) if q > 0 else 0.0,
    }  # fmt: skip
    if n > 2:
        reach = stats.t.ppf((1 + LEVEL) / 2, n - 2) * np.sqrt(tau2 * (1 + 1 / n) + cov.sum() / n**2)
        row |= {"predicted_low": mean - float(reach), "predicted_high": mean + float(reach)}
    return row


def _series(study: Study) -> Iterator[tuple[dict[str, Any], str, np.ndarray | None, int]]:
    """(damage, control, series or None, cells that diverged) of all that can be compared."""
    if study.baselines.is_empty():
        return
    base = baseline(study)
    for what, group, others in by_group(study.whole, DAMAGE):
        if group not in CONTROLS:
            continue
        same = [pl.col(name).eq_missing(pl.lit(value)) for name, value in what.items()]
        treated = study.whole.filter(*same, pl.col("group").is_in(TREATED))
        if treated.is_empty():
            continue
        seeds, d = aligned([differences(treated, base), differences(others, base)])
        diverged = pl.concat([treated, others]).filter(pl.col("status") == "diverged").height
        series = (d[0] - d[1]).mean(axis=0) if seeds else np.zeros(0)
        # Without spread there is no standardised effect.
        spread = len(series) > 2 and series.std() > 1e-12 * np.abs(series).max()
        yield what, group, series if spread else None, diverged


@lru_cache(maxsize=8)
def meta_analysis(study: Study) -> pl.DataFrame:
    """One row per score, pool and control, for each k and, where there are several, for all of them (k null).

    Pools the standardised paired effects super − control of all kinds of damage (:func:`evidence`), for the seeds at
    hand; the columns are those of :func:`combined`. Standardised, because ΔNLL spans five orders of magnitude between
    kinds: g says how surely windows agree, not how much is lost. A kind is ``left_out`` where no seed has both sets
    with a finite loss, or windows do not differ; as the worst damage diverges, the rest understates it.
    """
    groups: dict[tuple, list[tuple[np.ndarray | None, int]]] = {}
    for what, control, series, diverged in _series(study):
        for k in (what["k"], None):
            groups.setdefault((what["metric"], what["mode"], k, control), []).append((series, diverged))
    rows = []
    for (metric, mode, k, control), members in groups.items():
        ks = {key[2] for key in groups if key[:2] == (metric, mode) and key[3] == control}
        if k is None and len(ks) == 2:
            continue  # it would repeat the only k
        fine = [series for series, _ in members if series is not None]
        row = {"metric": metric, "mode": mode, "k": k, "control": control, "kinds": len(fine)}
        row |= {"left_out": len(members) - len(fine), "diverged": sum(d for _, d in members)}
        if len(fine) < 2:
            rows.append(row | {"why_not": "fewer than two kinds of damage with a finite effect"})
        else:
            found = evidence(fine, ["here"] * len(fine))
            rows.append(row | {"windows": found.windows} | combined(found))
    return pl.DataFrame(rows, schema=META)


def across_studies(studies: Sequence[Study]) -> pl.DataFrame:
    """One row per kind of damage and control that at least two studies (models) have, and one over all such kinds.

    The effects of the studies (``effects``, in the order of ``studies``) are pooled as in :func:`combined`, with a
    study in place of a kind. Where studies were evaluated on the same windows (``same_windows``: same text, same
    tokens), windows are resampled jointly for them, which is what makes a base and an instruct model a pair.
    ``difference`` is the second's effect minus the first's, with its bootstrap interval, where there are two studies.
    The row over all kinds (damage "all kinds") takes each study's mean over the kinds that all studies have. A few
    models are no sample of models: heterogeneity and prediction from so few say little.
    """
    return _across(tuple(studies))


@lru_cache(maxsize=8)
def _across(studies: tuple[Study, ...]) -> pl.DataFrame:
    found: dict[tuple, dict[int, np.ndarray]] = {}
    for at, study in enumerate(studies):
        for what, control, series, _ in _series(study):
            if series is not None:
                found.setdefault((*what.values(), control), {})[at] = series
    # Two studies with the same of these were evaluated on the same windows.
    texts = {
        at: f"{study.resolved['text']} {study.spec['data']['window']} {baseline(study)['tokens'].tolist()}"
        for at, study in enumerate(studies)
        if any(at in by_study for by_study in found.values())
    }
    rows = [
        dict(zip([*DAMAGE, "control"], key, strict=True)) | {"kinds": 1} | _studies(studies, [by_study], texts)
        for key, by_study in found.items()
        if len(by_study) > 1
    ]
    for row in rows:
        row["damage"] = label(row)
    for metric, mode, control in dict.fromkeys((key[0], key[1], key[-1]) for key in found):
        mine = [v for key, v in found.items() if (key[0], key[1], key[-1]) == (metric, mode, control)]
        shared = [by_study for by_study in mine if len(by_study) == len(studies) > 1]
        if len(shared) > 1:
            row = {"metric": metric, "mode": mode, "damage": "all kinds", "control": control, "kinds": len(shared)}
            rows.append(row | _studies(studies, shared, texts))
    return pl.DataFrame(rows, schema=ACROSS)


def _studies(studies: tuple[Study, ...], kinds: list[dict[int, np.ndarray]], texts: dict[int, str]) -> dict[str, Any]:
    """The effects of each study, a mean over kinds that all of them have, pooled."""
    who = sorted(kinds[0])
    order = [(at, by_study[at]) for at in who for by_study in kinds]
    every = evidence([series for _, series in order], [texts[at] for at, _ in order])
    shares = np.array([[(at == mine) / len(kinds) for at, _ in order] for mine in who])
    found = every.averaged(shares)
    same, names = len({texts[at] for at in who}) == 1, [studies[at].spec["name"] for at in who]
    row: dict[str, Any] = combined(found) | {"studies": names, "same_windows": same, "effects": found.g.tolist()}
    if len(who) == 2:
        change = found.mean_interval(np.array([-1.0, 1.0]))
        row |= dict(zip(["difference", "difference_low", "difference_high"], change, strict=True))
    return row


@lru_cache(maxsize=8)
def mixed_effects(study: Study) -> pl.DataFrame:
    """One row per score, pool and control at the largest k: a mixed model of ΔNLL over kinds, groups and windows.

    signed log ΔNLL[kind, group, window] = group + kind + kind·group + window + residual: the group is fixed, the rest
    are random intercepts, fitted by REML (statsmodels' MixedLM); ΔNLL is first averaged over seeds. ``coefficient``
    is the treated set minus the ``reference`` control on :func:`analysis.crossed.signed_log`'s scale: 1 is a
    factor e where damage is large, 10⁻³ nats where it is small. Raw ΔNLL spans five orders of magnitude, so that one
    kind would decide everything; ranks would lose how much. Without intercepts of kind by group all windows of a kind
    would count as replications of the group's effect, which differs by kind. The interval is t with (kinds − 1)
    degrees of freedom: it speaks of further kinds, if these are a sample of them.

    A kind of which a group has no finite ΔNLL is ``left_out``; ``why_not`` says why there is no fit.
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
