"""What statistics of per-window gradients are in float64, window by window, and how far fp32 may be off.


Tolerances: a sum of k fp32 products, however ordered, is off by at most about k·2⁻²⁴ times the sum of their
magnitudes. Inputs in 16 bits are what they are: products of them are exact in fp32, so the same bound holds.
"""

from itertools import combinations, pairwise

import torch

from esa_ray.scoring.fold import FOLDS

SUBSETS = [s for k in (1, 2, 3) for s in combinations(FOLDS, k)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def reference(left, right, offsets, scale=1.0):
    """Statistic → its value and the error that fp32 is allowed, float64 (M, N)."""
    windows = [(left[a:b].double(), right[a:b].double()) for a, b in pairwise(offsets)]
    g = torch.stack([torch.einsum("tm,tn->mn", x, y) for x, y in windows]) * scale
    size = torch.stack([torch.einsum("tm,tn->mn", x.abs(), y.abs()) for x, y in windows]) * abs(scale)
    unit = (len(left) + len(windows)) * 2.0**-24
    return {
        "gradient": (g.sum(0), unit * size.sum(0)),
        "gradient_abs": (g.abs().sum(0), unit * size.sum(0)),
        "gradient_square": (g.square().sum(0), 3 * unit * size.square().sum(0)),
    }


def rows(shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def zeros(names, m, n):
    return {name: torch.zeros(m, n) for name in names}


def check(totals, wanted):
    for name, total in totals.items():
        value, error = wanted[name]
        assert total.dtype == torch.float32
        assert value.abs().max() > 0
        assert ((total.double() - value).abs() <= error).all(), name
