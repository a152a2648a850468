"""Spectra: whether one direction stands out of a matrix, and of what was added to it.

Legend: O outputs, I inputs, σ singular values in descending order, p_i = σ_i²/Σσ².
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.applications.layers import Matrix
from esa_ray.security.detection.scopes import SCOPES

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.models.addressing import Catalogue

#: Multiplications that the spectra of a model may take, Σ I·O·min(I, O); of larger models some blocks are left out.
WORK = 1 << 37
GROUPS = ("attention", "ffn")

_OF = {
    "top_share_max": "the largest σ₁²/Σσ²",
    "top_share_mean": "the mean σ₁²/Σσ²",
    "top_share_z": "by how many standard deviations of its component the largest σ₁²/Σσ² stands out",
    "entropy_min": "the smallest spectral entropy, −Σp·ln p / ln min(O, I)",
    "entropy_mean": "the mean spectral entropy",
    "gap_max": "the largest ln(σ₁/σ₂)",
}

#: Feature → what it is.
ALONE = {
    f"spectra.{group}.{name}": f"{text} of its matrices W, {group}" for group in GROUPS for name, text in _OF.items()
}  # fmt: skip
COMPARED = {
    f"spectra.{group}.moved_{name}": f"{text} of its changes ΔW, {group}"
    for group in GROUPS for name, text in _OF.items()
}  # fmt: skip


def looked_at(catalogue: Catalogue) -> list[tuple[str, Matrix]]:
    """The matrices of the blocks by their components, each part of a fused one apart, each expert apart.

    All that ``WORK`` has room for: else those of evenly spaced blocks, the first and the last always among them.
    """
    found = [
        (part.component, Matrix(tensor, expert, None if len(rows) == tensor.rows else rows))
        for tensor in catalogue.tensors
        if tensor.layer is not None and len(tensor.shape) == (3 if tensor.experts else 2)
        for number, part in enumerate(tensor.parts)
        if any(part.component in (SCOPES[group] or ()) for group in GROUPS)
        if len(rows := np.flatnonzero(tensor.row_part == number))
        for expert in range(tensor.shape[0] if tensor.experts else 1)
    ]
    layers = sorted({matrix.layer for _, matrix in found})
    for n in range(len(layers), 1, -1):
        some = {layers[i] for i in np.linspace(0, len(layers) - 1, n).round().astype(int)}
        kept = [(component, matrix) for component, matrix in found if matrix.layer in some]
        if n <= 2 or sum(matrix.size * min(matrix.shape) for _, matrix in kept) <= WORK:
            return kept
    return found


def alone(catalogue: Catalogue) -> dict[str, float]:
    """Features of a model; NaN of a group without matrices."""
    return _told("", [(c, spectrum(m.of(m.tensor.flat_weights()))) for c, m in looked_at(catalogue)])


def compared(catalogue: Catalogue, reference: Mapping[str, Tensor]) -> dict[str, float]:
    """Features of what was added to a reference; of matrices that are as they were there is no spectrum."""
    found = []
    for component, matrix in looked_at(catalogue):
        new, old = matrix.tensor.flat_weights(), reference[matrix.tensor.name].detach().flatten()
        found.append((component, spectrum(matrix.of(new).double().cpu() - matrix.of(old).double().cpu())))
    return _told("moved_", found)


def spectrum(of_OI: Tensor) -> np.ndarray:
    """p of a matrix, descending, float64: the eigenvalues of its smaller Gram matrix over their sum; none of zeros.

    >>> spectrum(torch.diag(torch.tensor([3.0, 1.0]))).round(3).tolist()
    [0.9, 0.1]
    """
    exact = of_OI.detach().double().cpu()
    gram = exact @ exact.mT if exact.shape[0] <= exact.shape[1] else exact.mT @ exact
    squares = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).numpy()
    total = squares.sum()
    return squares / total if 0 < total < math.inf else np.empty(0)


def entropy(p: np.ndarray) -> float:
    """−Σp·ln p / ln n: 1 of a matrix whose n singular values are equal, 0 of one of rank one.

    >>> entropy(np.array([0.5, 0.5])), entropy(np.array([1.0, 0.0]))
    (1.0, 0.0)
    """
    some = p[p > 0]
    return float(abs((some * np.log(some)).sum()) / math.log(len(p))) if len(p) > 1 else math.nan


def _told(prefix: str, of: Sequence[tuple[str, np.ndarray]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for group in GROUPS:
        mine = [(c, p) for c, p in of if c in (SCOPES[group] or ()) and len(p) > 1]
        values = _summary(mine) if mine else dict.fromkeys(_OF, math.nan)
        found |= {f"spectra.{group}.{prefix}{name}": value for name, value in values.items()}
    return found


def _summary(of: Sequence[tuple[str, np.ndarray]]) -> dict[str, float]:
    shares = np.array([p[0] for _, p in of])
    entropies = [entropy(p) for _, p in of]
    return {
        "top_share_max": float(shares.max()),
        "top_share_mean": float(shares.mean()),
        "top_share_z": _standing_out([c for c, _ in of], shares),
        "entropy_min": min(entropies),
        "entropy_mean": math.fsum(entropies) / len(entropies),
        # A second singular value below rounding says that the matrix is of rank one; how far below says nothing.
        "gap_max": max(0.5 * math.log(p[0] / max(p[1], 1e-12)) for _, p in of),
    }


def _standing_out(components: Sequence[str], shares: np.ndarray) -> float:
    """The largest (x − mean) / std within a component that has three matrices or more; NaN if none has."""
    found, names = [], np.array(components)
    for component in set(components):
        mine = shares[names == component]
        if len(mine) > 2 and mine.std() > 0:
            found.append(float((mine.max() - mine.mean()) / mine.std()))
    return max(found, default=math.nan)
