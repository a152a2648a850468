"""Do scores tell what a weight's loss would cost? Scores and predictions against single-weight edits.

What speaks of *all weights* counts each sampled weight 1/inclusion times; what speaks of the *sample* counts each
once, and the sample is rich in high scores. Intervals resample windows, and weights within their strata (but not
strata that were taken whole). Scores and predictions come of calibration text and the measurement of evaluation
text, so a perfect method would not reach 1 either.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.fidelity.single_weights import (
    ORDERS,
    RESAMPLES,
    SingleWeights,
    centred,
    noise_floor_of,
    percentile,
    single_weight_samples,
)
from analysis.statistics.inference import weighted_correlation
from analysis.study import Study

#: The most damaging m of the sample that a score is asked to find.
TOP = [10, 30, 100]

#: Pairs of weights whose slopes Theil and Sen's estimator takes the median of.
PAIRS = 20_000

_WHAT = {"seed": pl.Int64, "sampled_by": pl.String, "edit": pl.String}
_BOUNDS = {"low": pl.Float64, "high": pl.Float64}
CORRELATIONS: dict[str, Any] = _WHAT | {
    "metric": pl.String, "outcome": pl.String, "speaks_of": pl.String, "spearman": pl.Float64,
} | _BOUNDS | {"n": pl.Int64, "diverged": pl.Int64}  # fmt: skip
PRECISION: dict[str, Any] = _WHAT | {
    "metric": pl.String, "m": pl.Int64, "precision": pl.Float64,
} | _BOUNDS | {"chance": pl.Float64, "n": pl.Int64}  # fmt: skip
CALIBRATION: dict[str, Any] = _WHAT | {
    "order": pl.String, "n": pl.Int64, "slope": pl.Float64, "low": pl.Float64, "high": pl.Float64,
    "intercept": pl.Float64, "intercept_low": pl.Float64, "intercept_high": pl.Float64, "why_not": pl.String,
}  # fmt: skip
DECILES: dict[str, Any] = _WHAT | {
    "order": pl.String, "decile": pl.Int64, "n": pl.Int64, "predicted": pl.Float64, "measured": pl.Float64,
    "ratio": pl.Float64,
} | _BOUNDS | {"same_sign": pl.Float64, "above_floor": pl.Boolean}  # fmt: skip
FLOOR: dict[str, Any] = _WHAT | {
    "floor": pl.Float64, "null_edits": pl.Int64, "n": pl.Int64, "share_all": pl.Float64, "low": pl.Float64,
    "high": pl.Float64, "share_sample": pl.Float64,
}  # fmt: skip


def _predictors(sample: SingleWeights) -> dict[str, np.ndarray]:
    """Scores by name, and signed predictions by order, of every weight; NaN where one isn't defined for its tensor."""
    found = {name: sample.scores[:, i] for i, name in enumerate(sample.metrics)}
    return {name: v for name, v in (found | sample.predicted).items() if np.isfinite(v).sum() > 2}


def _groups(x: np.ndarray) -> np.ndarray:
    return np.unique(x, return_inverse=True)[1]


def _midranks(groups: np.ndarray, counts: np.ndarray) -> np.ndarray:
    mass = np.bincount(groups, counts)
    return (np.cumsum(mass) - mass / 2)[groups]


def _spearmans(predictors: list[np.ndarray], y: np.ndarray, counts: np.ndarray) -> list[float]:
    """ρ of each predictor with y, both as tie groups, if weight i counts ``counts[i]`` times; −1 is unknown."""
    whole, found = _midranks(y, counts), []
    for groups in predictors:
        known = groups >= 0
        if known.all():
            found.append(weighted_correlation(_midranks(groups, counts), whole, counts))
        else:
            w = counts[known]
            mine, theirs = _midranks(groups[known], w), _midranks(y[known], w)
            found.append(weighted_correlation(mine, theirs, w) if w.sum() > 0 else float("nan"))
    return found


@lru_cache(maxsize=8)
def fidelity_correlations(study: Study) -> pl.DataFrame:
    """One row per sample, score, outcome and population: Spearman's ρ of the score with what was measured.

    ``outcome`` is ``|ΔNLL|`` or ``ΔNLL`` per token; ``speaks_of`` is "all weights" or "sample". Predictions stand
    beside the scores as metrics ``first_order`` and ``second_order``: their size against |ΔNLL|, themselves
    against ΔNLL. ``low`` and ``high`` are a 95% bootstrap interval (:func:`analysis.fidelity.single_weights.centred`). It is
    about ΔNLL as measured on so many windows, whose noise lowers ρ: more windows may show more.
    """
    return pl.DataFrame([row for c in single_weight_samples(study) for row in _correlations(c)], schema=CORRELATIONS)


def _correlations(sample: SingleWeights) -> list[dict[str, Any]]:
    rng, rows = np.random.default_rng(0), []
    draws = [(sample.draw_windows(rng), sample.draw_weights(rng)) for _ in range(RESAMPLES)]
    predictors = _predictors(sample)
    ones = np.ones(len(sample))
    for outcome, shape in (("|ΔNLL|", np.abs), ("ΔNLL", lambda x: x)):
        sized = [shape(v) if name in ORDERS else v for name, v in predictors.items()]
        ranked = [np.where(np.isfinite(v), _groups(v), -1) for v in sized]
        resampled = [_groups(shape(sample.measured(windows))) for windows, _ in draws]
        for speaks_of, base in (("all weights", 1 / sample.inclusion), ("sample", ones)):
            found = _spearmans(ranked, _groups(shape(sample.measured())), base)
            boots = np.array(
                [_spearmans(ranked, y, base * m) for y, (_, m) in zip(resampled, draws, strict=True)]
            )  # fmt: skip
            for i, metric in enumerate(predictors):
                interval = centred(found[i], boots[:, i], correlation=True)
                rows.append(sample.what | {
                    "metric": metric, "outcome": outcome, "speaks_of": speaks_of, "spearman": found[i],
                    "low": interval.low, "high": interval.high, "n": int((ranked[i] >= 0).sum()),
                    "diverged": sample.diverged,
                })  # fmt: skip
    return rows


def in_top(score: np.ndarray, m: int) -> np.ndarray:
    """Of each weight, whether it is among the m highest scores; ties at the edge share what is left of the m.

    >>> in_top(np.array([3.0, 2, 2, 0]), 2).tolist()
    [1.0, 0.5, 0.5, 0.0]
    """
    edge = np.sort(score)[-m]
    surely, maybe = score > edge, score == edge
    return surely + maybe * (m - surely.sum()) / maybe.sum()


def _worst(damage: np.ndarray, m: int) -> np.ndarray:
    found = np.zeros(len(damage), dtype=bool)
    found[np.argsort(-damage, kind="stable")[:m]] = True
    return found


@lru_cache(maxsize=8)
def precision_at(study: Study) -> pl.DataFrame:
    """One row per sample, score and m: of the m sampled weights that raise the loss most, the share in its top m.

    It speaks of the sample, unweighted; m runs over :data:`TOP` up to a third of the sample, ``chance`` is m/n. The
    interval resamples windows alone, with what is most damaging found anew. Predictions rank by their signed value.
    """
    rows: list[dict[str, Any]] = []
    for sample in single_weight_samples(study):
        rng = np.random.default_rng(0)
        y = [sample.measured(), *(sample.measured(sample.draw_windows(rng)) for _ in range(RESAMPLES))]
        for m in (m for m in TOP if m <= len(sample) / 3):
            worst = np.array([_worst(damage, m) for damage in y])
            for metric, score in _predictors(sample).items():
                # What a score isn't defined for, it can't find.
                values = worst @ in_top(np.where(np.isfinite(score), score, -np.inf), m) / m
                interval = centred(values[0], values[1:])
                rows.append(sample.what | {
                    "metric": metric, "m": m, "precision": values[0], "low": interval.low, "high": interval.high,
                    "chance": m / len(sample), "n": len(sample),
                })  # fmt: skip
    return pl.DataFrame(rows, schema=PRECISION)


def theil_sen(x: np.ndarray, y: np.ndarray, rng: np.random.Generator, count: int = PAIRS) -> tuple[float, float]:
    """(slope, intercept) of the median line: the median slope over random pairs, the median of y − slope·x.

    Up to 29% of the points may lie anywhere (Theil 1950; Sen 1968, JASA 63:1379). All pairs where they are few.

    >>> theil_sen(np.arange(5.0), np.array([1.0, 3, 5, 7, 99]), np.random.default_rng(0))
    (2.0, 1.0)
    """
    n = len(x)
    i, j = np.triu_indices(n, 1) if n * (n - 1) / 2 <= count else rng.integers(0, n, size=(2, count))
    different = x[i] != x[j]
    if not different.any():
        return float("nan"), float("nan")
    i, j = i[different], j[different]
    slope = float(np.median((y[i] - y[j]) / (x[i] - x[j])))
    return slope, float(np.median(y - slope * x))


@lru_cache(maxsize=8)
def calibration(study: Study) -> pl.DataFrame:
    """One row per sample and order of prediction: the robust line of measured on predicted ΔNLL, signed.

    A prediction that is right on average has slope 1 and intercept 0 (nats per token). Theil and Sen's line over
    the sampled weights, unweighted, whose |prediction| is above the noise floor: below it the measurement is
    arithmetic. Choosing by the prediction, not by the measurement, leaves the line unbiased.
    """
    rows: list[dict[str, Any]] = []
    for sample in single_weight_samples(study):
        floor = noise_floor_of(study, sample)[0] or 0.0
        for order, predicted in sample.predicted.items():
            row: dict[str, Any] = sample.what | {"order": order}
            used = np.flatnonzero(np.abs(np.nan_to_num(predicted)) > floor)
            if not np.isfinite(predicted).any():
                continue
            if len(used) < 10:
                row |= {"n": len(used), "why_not": f"{len(used)} predictions are above the noise floor"}
            else:
                row |= {"n": len(used)} | _line(sample, predicted, used)
            rows.append(row)
    return pl.DataFrame(rows, schema=CALIBRATION)


def _resampled(sample: SingleWeights, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One bootstrap sample: indices of weights, and the measurement of every weight on resampled windows."""
    return np.repeat(np.arange(len(sample)), sample.draw_weights(rng).astype(int)), sample.measured(
        sample.draw_windows(rng)
    )


def _line(sample: SingleWeights, predicted: np.ndarray, used: np.ndarray) -> dict[str, float]:
    rng = np.random.default_rng(0)
    slope, intercept = theil_sen(predicted[used], sample.measured()[used], rng)
    boots = []
    for _ in range(RESAMPLES):
        at, y = _resampled(sample, rng)
        at = at[np.isin(at, used)]
        boots.append(theil_sen(predicted[at], y[at], rng) if len(at) > 1 else (np.nan, np.nan))
    slopes, intercepts = (percentile(b) for b in np.array(boots).T)
    return {
        "slope": slope, "low": slopes.low, "high": slopes.high, "intercept": intercept,
        "intercept_low": intercepts.low, "intercept_high": intercepts.high,
    }  # fmt: skip


@lru_cache(maxsize=8)
def calibration_deciles(study: Study) -> pl.DataFrame:
    """One row per sample, order and decile of |prediction| in the sample: the median of measured ÷ predicted.

    1 is right, 0 no effect, below 0 the wrong sign. ``predicted`` and ``measured`` are medians of absolute values in
    nats per token, ``same_sign`` the share whose sign was foretold, ``above_floor`` whether the decile's median
    prediction is above the noise floor. Unweighted: it speaks of the sample.
    """
    rows: list[dict[str, Any]] = []
    for sample in single_weight_samples(study):
        floor = noise_floor_of(study, sample)[0] or 0.0
        for order, predicted in sample.predicted.items():
            if np.abs(np.nan_to_num(predicted)).any():
                rows += [
                    sample.what | {"order": order, "above_floor": d["predicted"] > floor} | d
                    for d in _deciles(sample, predicted)
                ]
    return pl.DataFrame(rows, schema=DECILES)


def _deciles(sample: SingleWeights, predicted: np.ndarray) -> list[dict[str, Any]]:
    size, y = np.abs(np.nan_to_num(predicted)), sample.measured()
    ascending = np.argsort(size, kind="stable")[(size == 0).sum() :]
    decile = np.full(len(size), -1)
    decile[ascending] = np.arange(len(ascending)) * 10 // len(ascending)
    rng = np.random.default_rng(0)
    draws = [_resampled(sample, rng) for _ in range(RESAMPLES)]
    rows = []
    for number in np.unique(decile[decile >= 0]):
        mine = decile == number
        boots = [np.median(z[at[mine[at]]] / predicted[at[mine[at]]]) if mine[at].any() else np.nan for at, z in draws]
        interval = percentile(np.array(boots))
        rows.append({
            "decile": int(number) + 1, "n": int(mine.sum()), "predicted": float(np.median(size[mine])),
            "measured": float(np.median(np.abs(y[mine]))), "ratio": float(np.median(y[mine] / predicted[mine])),
            "low": interval.low, "high": interval.high,
            "same_sign": float((np.sign(y[mine]) == np.sign(predicted[mine])).mean()),
        })  # fmt: skip
    return rows


@lru_cache(maxsize=8)
def above_noise(study: Study) -> pl.DataFrame:
    """One row per sample: the noise floor, and the share of weights whose |ΔNLL| per token is above it.

    ``share_all`` estimates it for all weights (1/inclusion) with its 95% interval; ``share_sample`` is the sample's.
    """
    rows: list[dict[str, Any]] = []
    for sample in single_weight_samples(study):
        floor, nulls = noise_floor_of(study, sample)
        row = sample.what | {"floor": floor, "null_edits": nulls, "n": len(sample)}
        if floor is not None:
            row |= _shares(sample, floor)
        rows.append(row)
    return pl.DataFrame(rows, schema=FLOOR)


def _shares(sample: SingleWeights, floor: float) -> dict[str, float]:
    rng, base = np.random.default_rng(0), 1 / sample.inclusion
    above, boots = np.abs(sample.measured()) > floor, []
    for _ in range(RESAMPLES):
        counts = base * sample.draw_weights(rng)
        over = np.abs(sample.measured(sample.draw_windows(rng))) > floor
        boots.append(float(counts @ over / counts.sum()))
    share = float(base @ above / base.sum())
    interval = centred(share, np.array(boots))
    return {"share_all": share, "low": interval.low, "high": interval.high, "share_sample": float(above.mean())}
