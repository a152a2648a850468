"""How scores are distributed within a tensor: heavy tails judged on all weights, not on the top-k."""

from __future__ import annotations

import numpy as np

from esa_ray.schema import QUANTILES


def describe(scores: np.ndarray) -> dict:
    """Exact moments, quantiles, tail ratio and Gini coefficient of non-negative scores (1-D).

    ``top1pct_over_median`` is the mean of the largest ⌈n/100⌉ scores over the median. With the scores in
    ascending order x_1 ≤ … ≤ x_n, ``gini`` = Σ_i (2i − n − 1) x_i / (n Σ_i x_i).

    >>> describe(np.array([1.0, 1.0, 1.0, 1.0]))["gini"]
    0.0
    """
    ordered = np.sort(scores)
    n = len(ordered)
    total = float(ordered.sum(dtype=np.float64))
    median = (float(ordered[(n - 1) // 2]) + float(ordered[n // 2])) / 2
    top = float(ordered[-max(1, -(-n // 100)) :].mean(dtype=np.float64))
    # Σ_i i·x_i as a dot product: one pass, float64 accumulation, no n-long temporaries but the ranks.
    ranked = float(np.dot(np.arange(1, n + 1, dtype=np.float64), ordered))
    at = (np.array(QUANTILES) * (n - 1)).round().astype(int)
    return {
        "n": n,
        "mean": total / n,
        "std": float(ordered.std(dtype=np.float64)),
        "min": float(ordered[0]),
        "max": float(ordered[-1]),
        "quantiles": [float(q) for q in ordered[at]],
        "top1pct_over_median": top / median if median > 0 else None,
        "gini": (2 * ranked / total - (n + 1)) / n if total > 0 else 0.0,
    }
