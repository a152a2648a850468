"""The kinds of damage: old values in, new values out, nothing applied yet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from esa_ray.errors import EsaError
from esa_ray.perturb.bits import flip, random_masks
from esa_ray.perturb.known import Known
from esa_ray.randomness import normal, stream_key
from esa_ray.spec import PerturbSpec

if TYPE_CHECKING:
    from esa_ray.models.addressing import WeightTensor

#: Weights of a tensor that are looked at together, so that a large one needs no second copy of itself.
CHUNK = 1 << 22


@dataclass(frozen=True, eq=False)
class Target:
    """The weights of one tensor that are to be damaged; ``draw`` names the random stream, ``whole`` all of the set."""

    weights: WeightTensor
    flat: np.ndarray
    values: Tensor
    all_weights: Tensor
    draw: tuple[int, ...]
    known: Known = field(default_factory=Known)
    whole: Sequence[Target] = field(default=(), repr=False)

    @property
    def tensor(self) -> str:
        """Its name."""
        return self.weights.name

    @cached_property
    def old(self) -> np.ndarray:
        """The values in float64."""
        return self.values.double().cpu().numpy()

    def made(self, new: np.ndarray) -> Tensor:
        """New values in the weights' own dtype, rounded once."""
        return torch.as_tensor(new).to(self.values.device, self.values.dtype)

    def facts(self, name: str) -> np.ndarray:
        """Score or gradient of the weights.

        Raises
        ------
        EsaError
            If it isn't known.
        """
        found = getattr(self.known, name)
        if found is None or not np.isfinite(found).all():
            raise EsaError(f"this kind of damage needs the {name} of every weight, and {self.tensor} has none")
        return found

    @cached_property
    def lines(self) -> np.ndarray:
        """Which output row (of which expert) each weight belongs to, as one number a weight."""
        place = self.weights.locate(self.flat)
        experts = np.array(place["expert"]) if self.weights.experts else 0
        return experts * self.weights.rows + np.asarray(place["row"])


def _pieces(values: Tensor) -> Iterator[Tensor]:
    return (piece.double() for piece in values.split(CHUNK))


def _mean_and_std(values: Tensor) -> tuple[float, float]:
    """Mean and (population) standard deviation of a whole tensor, in float64."""
    n, mean = values.numel(), sum(float(p.sum()) for p in _pieces(values)) / values.numel()
    return mean, math.sqrt(sum(float((p - mean).square().sum()) for p in _pieces(values)) / n)


def _of_lines(target: Target, statistic: Callable[[Tensor], Tensor]) -> np.ndarray:
    """A statistic of every weight's own output row; ``statistic`` maps (lines, inputs) to (lines,)."""
    tensor = target.weights
    if len(tensor.shape) == 1:
        return statistic(target.all_weights.view(-1, 1).double())[torch.as_tensor(target.lines)].cpu().numpy()
    lines, where = np.unique(target.lines, return_inverse=True)
    matrices = target.all_weights.view(-1, *tensor.shape[-2:])
    expert, row = torch.as_tensor(lines // tensor.rows), torch.as_tensor(lines % tensor.rows)
    mine = matrices[expert, :, row] if tensor.transposed else matrices[expert, row]
    return statistic(mine.double()).cpu().numpy()[where]


def sign_flip(target: Target, spec: PerturbSpec) -> Tensor:
    """w → (1 − 2λ) w; λ=1 flips the sign, λ=0.5 zeroes."""
    if spec.strength == 1.0:
        return -target.values  # exact in every dtype, also for subnormals and infinities
    return target.made((1.0 - 2.0 * _strength(spec)) * target.old)


def zero(target: Target, spec: PerturbSpec) -> Tensor:
    """w → 0."""
    return torch.zeros_like(target.values)


def set_mean(target: Target, spec: PerturbSpec) -> Tensor:
    """w → the mean of its tensor."""
    return target.made(np.full_like(target.old, _mean_and_std(target.all_weights)[0]))


def scale(target: Target, spec: PerturbSpec) -> Tensor:
    """w → α w."""
    return target.made(_strength(spec) * target.old)


def _spread(target: Target, relative_to: str | None) -> np.ndarray | float:
    """What noise is scaled by: |w|, or the standard deviation of the tensor."""
    return _mean_and_std(target.all_weights)[1] if relative_to == "tensor" else np.abs(target.old)


def _own_noise(target: Target) -> np.ndarray:
    """ε ~ N(0, 1) of (draw, weight): the same at every strength and in every set that holds the weight."""
    return normal(stream_key(*target.draw, "gauss_noise", target.tensor), target.flat)


def gauss_noise(target: Target, spec: PerturbSpec) -> Tensor:
    """w + σ·|w|·ε (relative to the weight) or w + σ·std(tensor)·ε (relative to its tensor), ε ~ N(0, 1)."""
    return target.made(target.old + _strength(spec) * _spread(target, spec.relative_to) * _own_noise(target))


def correlated(target: Target, spec: PerturbSpec) -> Tensor:
    """As ``gauss_noise``, with one ε for all weights of an output row, of a layer, or of a component.

    Cov(Δ_i, Δ_j) = σ²·s_i·s_j for weights that share a draw, with s the scale of each, and 0 for others. A tensor
    outside the blocks is a layer of its own; a component's draw is shared by all layers.
    """
    tensor = target.weights
    if spec.shared == "row":
        epsilon = normal(stream_key(*target.draw, "correlated row", tensor.name), target.lines)
    elif spec.shared == "layer":
        layer = tensor.name if tensor.layer is None else tensor.layer
        epsilon = normal(stream_key(*target.draw, "correlated layer", layer), np.zeros(1))
    else:
        drawn = [float(normal(stream_key(*target.draw, "correlated component", p.component), np.zeros(1))[0])
                 for p in tensor.parts]  # fmt: skip
        epsilon = np.array(drawn)[tensor.part_of(target.flat)]
    return target.made(target.old + _strength(spec) * _spread(target, spec.relative_to) * epsilon)


def adaptive(target: Target, spec: PerturbSpec) -> Tensor:
    """w + σ·a·ε with a strength a of each weight's own, ε as in ``gauss_noise``.

    "score": a = s·‖w‖/‖s‖, norms over the whole set, so that E‖Δ‖² = σ²‖w‖² as for ``gauss_noise`` relative to the
    weight, but spent where the score is. "row": a = root mean square of the weight's own output row.
    """
    if spec.adapt == "row":
        a = _of_lines(target, lambda lines_LI: lines_LI.square().mean(-1).sqrt())
    else:
        a = target.facts("score") * _weight_per_score(target)
    return target.made(target.old + _strength(spec) * a * _own_noise(target))


def _weight_per_score(target: Target) -> float:
    """‖w‖/‖s‖ over the set: the one that the weights are part of, so that a part is damaged as it is in the whole."""
    if target.known.weight_per_score is not None:
        return target.known.weight_per_score
    squares = [(float(t.old @ t.old), float(t.facts("score") @ t.facts("score"))) for t in target.whole or [target]]
    weight, score = (math.fsum(s) for s in zip(*squares, strict=True))
    return math.sqrt(weight / score) if score > 0 else 0.0


def gradient_aligned(target: Target, spec: PerturbSpec) -> Tensor:
    """w + ε·|w|·sign(g): uphill, by first order ΔL = ε·Σ|g·w|; a weight with g = 0 stays."""
    return _along(target, _strength(spec))


def gradient_opposed(target: Target, spec: PerturbSpec) -> Tensor:
    """w − ε·|w|·sign(g): downhill."""
    return _along(target, -_strength(spec))


def _along(target: Target, step: float) -> Tensor:
    return target.made(target.old + step * np.abs(target.old) * np.sign(target.facts("gradient")))


def quantize(target: Target, spec: PerturbSpec) -> Tensor:
    """w → s·round(w/s), s = max|w|/(2^(n−1) − 1) over the weight's output row or its tensor.

    Symmetric round-to-nearest (half to even) with 2^n − 1 levels, 0 among them; the step comes from all weights of
    the row or tensor as they stand, damaged or not.
    """
    levels = 2 ** (int(_strength(spec)) - 1) - 1
    if spec.per == "tensor":
        largest: np.ndarray | float = max(float(p.abs().max()) for p in _pieces(target.all_weights))
    else:
        largest = _of_lines(target, lambda lines_LI: lines_LI.abs().amax(-1))
    step = np.asarray(largest) / levels
    with np.errstate(divide="ignore", invalid="ignore"):
        rounded = np.where(step > 0, np.round(target.old / step) * step, 0.0)
    return target.made(rounded)


def bit_flip(target: Target, spec: PerturbSpec) -> Tensor:
    """XOR of the stored bits, each bit of the class with probability p; NaN and infinity can come out."""
    p, bits = _strength(spec), str(spec.bits)
    masks = random_masks(target.values.dtype, bits, p, target.flat, *target.draw, "bit_flip", target.tensor)
    return flip(target.values, masks)


def progressive(target: Target, spec: PerturbSpec) -> Tensor:
    """w + t·(w* − w): the part t of the straight way to what another kind makes of w."""
    assert spec.toward
    end = KINDS[spec.toward.kind](target, spec.toward)
    if spec.strength == 1.0:
        return end
    return target.made(target.old + _strength(spec) * (end.double().cpu().numpy() - target.old))


def _strength(spec: PerturbSpec) -> float:
    assert spec.strength is not None
    return spec.strength


KINDS: dict[str, Callable[[Target, PerturbSpec], Tensor]] = {
    kind.__name__: kind
    for kind in (
        sign_flip, zero, set_mean, scale, gauss_noise, bit_flip, gradient_aligned, gradient_opposed, correlated,
        adaptive, quantize, progressive,
    )
}  # fmt: skip
