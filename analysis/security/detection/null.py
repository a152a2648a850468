"""What detection would show by chance: the same folds, with kinds permuted among models that are alike otherwise.

Legend: N models, B permutations of their kinds.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import polars as pl

from analysis.security.detection.columns import FEWEST, NULL, SCHEMES
from analysis.security.detection.folds import UNSEEN, splits, untrained
from analysis.security.detection.newton import log_odds
from analysis.security.detection.scored import out_of_fold, sizes, too_few
from analysis.security.detection.table import EVERY, Models, Studies, models, studies_of
from analysis.study import Study
from esa_ray.spec import INSERTIONS

PERMUTATIONS = 200


def permuted(studies: Studies) -> pl.DataFrame:
    """One row per scheme and reference: the AUROC and its distribution under permutation; columns are NULL.

    Kinds are permuted among the models of one number, which share parent, steps, rate, windows, trigger and target, so
    the test holds whatever these do to features. What it rejects is that nothing done to a kind shows. That may be that
    something was memorised, if clean models are among the others; where a way of inserting has no benign counterpart,
    it may be the edit or the second round of steps. Every permutation trains the detector's logistic regression anew
    and tests in the same folds, insertions being left out by their permuted kind; so what is observed is the AUROC of
    :func:`analysis.security.detection.evaluated.detection`, and p is exact.
    """
    return _permuted(studies_of(studies))


@lru_cache(maxsize=8)
def _permuted(studies: tuple[Study, ...]) -> pl.DataFrame:
    of = models(studies)
    rows = [
        {"scheme": scheme, "reference": ref} | null(of, scheme, reference=ref, blocks=numbers(of))
        for scheme, ref in product(SCHEMES, (False, True)) if not ref or of.referring.any()
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=NULL)


def numbers(of: Models) -> np.ndarray:
    """Blocks of models that differ in their kind alone, (N,)."""
    return np.unique([f"{b} {n}" for b, n in zip(of.base, of.number, strict=True)], return_inverse=True)[1]


def null(
    of: Models, scheme: str, *, reference: bool, blocks: np.ndarray, fewest: int = FEWEST,
    permutations: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The permutation test of a scheme: kinds are exchanged within blocks, PERMUTATIONS times unless said otherwise."""
    times = permutations or PERMUTATIONS
    found = out_of_fold(of, scheme, EVERY, reference=reference)
    row: dict[str, Any] = sizes(of, found.at)
    if why := too_few(of, found.at, fewest):
        return row | {"permutations": 0, "why_not": why}
    areas = permuted_areas(of, scheme, reference=reference, kinds=shuffled(of.kind, blocks, times))
    low, high = np.quantile(areas[1:], [0.025, 0.975])
    reached = int((areas[1:] >= areas[0] - 1e-12).sum())
    return row | {
        "auroc": float(areas[0]), "null_mean": float(areas[1:].mean()), "null_low": float(low),
        "null_high": float(high), "permutations": times, "p": (1 + reached) / (1 + times),
        "why_not": None,
    }  # fmt: skip


def shuffled(kind: np.ndarray, blocks: np.ndarray, permutations: int, seed: int = 0) -> np.ndarray:
    """Kinds (1 + B, N): as they are, and permuted within blocks."""
    drawn = np.random.default_rng(seed).random((permutations, len(kind)))
    order = np.argsort(blocks, kind="stable")
    found = np.empty((permutations, len(kind)), dtype=kind.dtype)
    found[:, order] = kind[np.argsort(blocks + drawn, axis=1)]
    return np.concatenate([kind[None], found])


def permuted_areas(of: Models, scheme: str, *, reference: bool, kinds: np.ndarray) -> np.ndarray:
    """AUROC of a scheme, (1 + B,), if the models' kinds are those of each row."""
    values = of.values[:, of.chosen(EVERY, reference=reference)]
    codes = {kind: i for i, kind in enumerate(np.unique(kinds))}
    code = np.searchsorted(np.array(list(codes)), kinds)
    poisoned = np.isin(code, [codes[k] for k in INSERTIONS if k in codes])
    pairs, area = 0.0, np.zeros(len(kinds))
    for left_out in of.insertions if scheme in UNSEEN else [""]:
        score = np.full(kinds.shape, np.nan)
        for others, tested, _ in splits(of, scheme):
            out = untrained(left_out)
            trains = ~np.isin(code[:, others], [codes[kind] for kind in out if kind in codes]) if left_out else None
            if (labels := of.poisoned[others & ~np.isin(of.kind, out)]).any() and not labels.all():
                score[:, tested] = log_odds(values[others], poisoned[:, others], values[tested], trains)
        positive = code == codes[left_out] if left_out else poisoned
        for base in of.bases:
            mine = (of.base == base) & ~np.isnan(score[0])
            weight, each = _areas(score[:, mine], positive[:, mine], ~poisoned[:, mine])
            pairs, area = pairs + weight, area + weight * each
    return np.asarray(area / pairs)


def _areas(score: np.ndarray, positive: np.ndarray, others: np.ndarray) -> tuple[float, np.ndarray]:
    """(pairs, AUROC of each row): every row has as many positive models and as many others."""
    m, n = int(positive[0].sum()), int(others[0].sum())
    if not m * n:
        return 0.0, np.zeros(len(score))
    high, low = (score[mask].reshape(len(score), -1) for mask in (positive, others))
    found = np.zeros(len(score))
    for column in high.T:
        found += (column[:, None] > low).sum(axis=1) + 0.5 * (column[:, None] == low).sum(axis=1)
    return float(m * n), found / (m * n)
