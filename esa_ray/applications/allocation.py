"""How sparse each block becomes where the whole model's sparsity is given.

Legend: L blocks, S the sparsity of all of them together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from sklearn.isotonic import isotonic_regression
from torch import Tensor

from esa_ray.errors import EsaError

#: From measured sparsities to damages, of one block.
Curve = Mapping[float, float]


def outlier_share(scores: Sequence[Tensor], above: float = 5.0) -> float:
    """D of OWL (arXiv:2310.05175): the share of a block's scores that are more than ``above`` times their mean.

    ``scores`` are |w|·‖X_j‖₂ of all matrices of one block; mean and share are those of all of them together.

    >>> outlier_share([torch.ones(3, 4), torch.full((1, 4), 2.0), torch.tensor([[100.0, 1, 1, 1]])], above=5.0)
    0.05
    """
    n = sum(each.numel() for each in scores)
    mean = sum(float(each.sum(dtype=torch.float64)) for each in scores) / n
    return sum(int((each > above * mean).sum()) for each in scores) / n


def owl(shares: Sequence[float], sizes: Sequence[int], sparsity: float, spread: float = 0.08) -> list[float]:
    """Sparsities by outlier shares: a block with more outliers keeps more (Yin et al. 2024, arXiv:2310.05175).

    keep_l = 2λ·(D_l − min D)/(max D − min D), shifted by one constant so that the blocks together keep 1 − S of their
    weights. The shift takes the mean by parameters, not by blocks, so the total is S where blocks differ in size, too.

    Parameters
    ----------
    shares
        D_l (:func:`outlier_share`).
    sizes
        How many weights of each block can be pruned.
    spread
        λ: the largest and the smallest sparsity are 2λ apart.

    Raises
    ------
    EsaError
        If a block's sparsity would be below 0 or above 1.

    Example
    -------
    >>> [round(s, 3) for s in owl([0.01, 0.03, 0.02], [100, 100, 100], 0.6)]
    [0.68, 0.52, 0.6]
    """
    _check(sparsity, len(sizes), len(shares))
    share_L, size_L = np.asarray(shares, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    least, widest = share_L.min(), share_L.max() - share_L.min()
    keep_L = 2 * spread * (share_L - least) / widest if widest > 0 else np.zeros_like(share_L)
    sparsity_L = sparsity + np.average(keep_L, weights=size_L) - keep_L
    for block, found in enumerate(sparsity_L):
        if not 0 <= found <= 1:
            raise EsaError(
                f"OWL asks for a sparsity of {found:.3f} in block {block}, which no block can have; give a sparsity "
                f"farther from {'1' if found > 1 else '0'}, or a spread below {spread:g}"
            )
    return sparsity_L.tolist()


class _Piece(NamedTuple):
    """A straight stretch of a block's curve: damage by weight, block, and how many weights."""

    slope: float
    block: int
    weights: float


def by_damage(
    curves: Sequence[Curve], sizes: Sequence[int], sparsity: float, lowest: float = 0.0, highest: float = 1.0
) -> list[float]:
    """The sparsities at which the blocks' measured damages sum to the least, at the same total.

    minimise Σ_l d_l(s_l) such that Σ_l n_l·s_l = S·Σ_l n_l and lowest ≤ s_l ≤ highest. Damage is taken to add up over
    blocks, to be 0 at sparsity 0, to never fall as a block gets sparser (isotonic regression of what was measured),
    and to run straight between the corners of its lower convex hull. Then the optimum is to take the cheapest stretches
    first; those that cost the same are taken in the same proportion.

    Parameters
    ----------
    curves
        For each block, measured damage (nats per token) by sparsity, that block alone being pruned. Where a damage is
        infinite or NaN, the block stays at or below the last sparsity before.
    sizes
        How many weights of each block can be pruned.
    lowest, highest
        Bounds of every block's sparsity; ``highest`` is at most the largest that was measured of the block.

    Raises
    ------
    EsaError
        If bounds and curves leave no room for the total.

    Example
    -------
    >>> gentle, harsh = {0.5: 0.1, 0.7: 0.2}, {0.5: 0.1, 0.7: 2.0}
    >>> [round(s, 6) for s in by_damage([gentle, harsh], [100, 100], 0.6)]
    [0.7, 0.5]
    """
    _check(sparsity, len(sizes), len(curves))
    if not 0 <= lowest <= sparsity <= highest <= 1:
        raise EsaError(f"a sparsity of {sparsity:g} isn't within {lowest:g} … {highest:g}; widen the bounds")
    found_L, pieces = np.full(len(sizes), lowest, dtype=np.float64), []
    for block, (curve, size) in enumerate(zip(curves, sizes, strict=True)):
        at, damage = _hull(curve)
        if at[-1] < lowest:
            raise EsaError(f"block {block} was measured up to {at[-1]:g} only; give a lowest sparsity of at most that")
        pieces += _pieces(at, damage / size, block, size, lowest, highest)
    left = (sparsity - lowest) * sum(sizes)
    pieces.sort()
    start = 0
    while left > 0 and start < len(pieces):
        end = start
        while end < len(pieces) and math.isclose(pieces[end].slope, pieces[start].slope, rel_tol=1e-9, abs_tol=1e-300):
            end += 1
        room = sum(piece.weights for piece in pieces[start:end])
        for piece in pieces[start:end]:
            found_L[piece.block] += piece.weights * min(1.0, left / room) / sizes[piece.block]
        left, start = left - room, end
    if left > 1e-9 * sum(sizes):
        most = sparsity - left / sum(sizes)
        raise EsaError(f"damage was measured up to a total sparsity of {most:.3f}, not {sparsity:g}; ask for less")
    return found_L.tolist()


def _hull(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the lower convex hull of a curve that never falls, from (0, 0) on."""
    points = sorted({**curve, 0.0: 0.0}.items())
    finite = next((i for i, (_, damage) in enumerate(points) if not math.isfinite(damage)), len(points))
    at = np.array([s for s, _ in points[:finite]])
    damage = np.maximum(isotonic_regression(np.array([d for _, d in points[:finite]])), 0.0)
    damage[0] = 0.0
    corners: list[int] = []
    for i in range(len(at)):
        while len(corners) > 1:
            a, b = corners[-2:]
            if (damage[b] - damage[a]) * (at[i] - at[a]) < (damage[i] - damage[a]) * (at[b] - at[a]):
                break
            corners.pop()
        corners.append(i)
    return at[corners], damage[corners]


def _pieces(at: np.ndarray, damage: np.ndarray, block: int, size: int, lowest: float, highest: float) -> list[_Piece]:
    """The stretches of a hull between two bounds."""
    found = []
    for (a, b), (low, high) in zip(pairwise(at), pairwise(damage), strict=True):
        start, end = max(a, lowest), min(b, highest)
        if end > start:
            found.append(_Piece((high - low) / (b - a), block, (end - start) * size))
    return found


def _check(sparsity: float, blocks: int, given: int) -> None:
    if not 0 <= sparsity <= 1:
        raise EsaError(f"a sparsity is a share from 0 to 1, not {sparsity:g}")
    if blocks != given:
        raise EsaError(f"{given} blocks were measured, and {blocks} have sizes; give both for each block")
