"""Damage over all kinds at once: meta-analysis of super − control over kinds of damage.

Legend: a series is a difference super − control in each window, averaged over seeds, nats per token. A kind is a
perturbation with its variant (and, for scale, its direction): its series is the mean over its strengths, which are one
treatment at several doses and no replications. There are K kinds. All kinds of a study are measured on the same
windows, so the series are dependent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects

from analysis.damage.paired import aligned, kind_of
from analysis.damage.windows import damaged
from analysis.statistics.inference import LEVEL, for_few, standardised
from analysis.study import Study
from esa_ray.spec import CONTROLS

RESAMPLES = 1_999

WHO = {"metric": pl.String, "mode": pl.String, "k": pl.Int64}
POOLED = dict.fromkeys(
    ["pooled", "low", "high", "tau2", "i2", "mean", "mean_low", "mean_high", "correlation", "joint_tau2", "joint_i2",
     "predicted_low", "predicted_high"], pl.Float64,
)  # fmt: skip
META: dict[str, Any] = WHO | {
    "control": pl.String, "kinds": pl.Int64, "strengths": pl.Int64, "left_out": pl.Int64,
    "strengths_left_out": pl.Int64, "diverged": pl.Int64, "windows": pl.Int64,
} | POOLED | {"why_not": pl.String}  # fmt: skip


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
    """Standardised paired effects of series (W,) each, Hedges' g over windows.

    Its variance is 1/W + g²/(2W) (Becker 1988, Br. J. Math. Stat. Psychol.
    41:257). The correlations of the effects come of resampling windows: series of the same text get the same windows
    in every resample, others independent ones. Dimensionless. A series that was stopped early has fewer windows.
    """
    rng, g, boots = np.random.default_rng(0), [], []
    longest = {text: max(len(x) for x, t in zip(series, texts, strict=True) if t == text) for text in texts}
    counts = {text: rng.multinomial(n, np.full(n, 1 / n), size=resamples) for text, n in longest.items()}
    for x, text in zip(series, texts, strict=True):
        n, drawn = len(x), counts[text][:, : len(x)].astype(float)
        away = x - x.mean()
        g.append(standardised(x))
        with np.errstate(divide="ignore", invalid="ignore"):
            total = drawn.sum(axis=1)
            shift = drawn @ away / total
            variance = (drawn @ away**2 / total - shift**2) * total / (total - 1)
            boots.append(for_few(n) * (x.mean() + shift) / np.sqrt(np.maximum(variance, 0)))
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


@dataclass(frozen=True, eq=False)
class Effect:
    """One damage against one control: which, its series (None: nothing finite, or no spread), cells that diverged."""

    what: dict[str, Any]
    control: str
    series: np.ndarray | None
    diverged: int


def strengths(study: Study) -> Iterator[Effect]:
    """All damages that can be compared, each strength of a kind by itself."""
    if study.baselines.is_empty():
        return
    for kind in damaged(study):
        if (treated := kind.treated) is None:
            continue
        for control in (g for g in CONTROLS if g in kind.groups):
            seeds, d = aligned([kind.costs(treated), kind.costs(control)])
            diverged = sum(cell.status == "diverged" for g in (treated, control) for cell in kind.groups[g])
            yield Effect(kind.what, control, (d[0] - d[1]).mean(axis=0) if seeds else None, diverged)


def averaged(members: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """The mean of series over the windows that all have; None without spread, where no effect is standardised."""
    found = [x for x in members if x is not None]
    if not found:
        return None
    n = min(map(len, found))
    series = np.mean([x[:n] for x in found], axis=0)
    return series if n > 2 and series.std() > 1e-12 * np.abs(series).max() else None


@lru_cache(maxsize=8)
def meta_analysis(study: Study) -> pl.DataFrame:
    """One row per score, pool, k and control.

    Pools the standardised paired effects super − control of all kinds of damage (:func:`evidence`), for the seeds at
    hand; the columns are those of :func:`combined`. Strengths of a kind are averaged window by window into one effect;
    ``strengths`` counts them all. Sets of several k hold each other's weights, so each k has its own row. Standardised,
    because ΔNLL spans five orders of magnitude between kinds: g says how surely windows agree, not how much is lost. A
    kind is ``left_out`` where no seed has both sets with a finite loss at any strength, or windows do not differ;
    ``strengths_left_out`` counts strengths without a finite loss. As the worst damage diverges, the rest
    understates it.
    """
    groups: dict[tuple, dict[tuple, list[Effect]]] = {}
    for found in strengths(study):
        where = (*(found.what[name] for name in WHO), found.control)
        groups.setdefault(where, {}).setdefault(kind_of(found.what), []).append(found)
    rows = []
    for where, kinds in groups.items():
        every = [found for members in kinds.values() for found in members]
        pooled = [averaged([found.series for found in members]) for members in kinds.values()]
        fine = [series for series in pooled if series is not None]
        row: dict[str, Any] = dict(zip([*WHO, "control"], where, strict=True)) | {"kinds": len(fine)}
        lost = sum(found.series is None for found in every)
        row |= {"strengths": len(every) - lost, "strengths_left_out": lost, "left_out": len(kinds) - len(fine)}
        row["diverged"] = sum(found.diverged for found in every)
        if len(fine) < 2:
            rows.append(row | {"why_not": "fewer than two kinds of damage with a finite effect"})
        else:
            together = evidence(fine, ["here"] * len(fine))
            rows.append(row | {"windows": together.windows} | combined(together))
    return pl.DataFrame(rows, schema=META)
