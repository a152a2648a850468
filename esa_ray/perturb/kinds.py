"""The kinds of damage: old values in, new values out, nothing applied yet.

A kind sees all weights of a set that lie on one device in one dtype as one vector, and computes in float64 there:
+, −, ×, ÷ and √ round alike on every device. Draws and what is known of weights come from the host, in one upload.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from esa_ray.errors import EsaError
from esa_ray.perturb import sites
from esa_ray.perturb.bits import flip, random_masks
from esa_ray.perturb.known import Known
from esa_ray.randomness import normal, stream_key
from esa_ray.spec import PerturbSpec

if TYPE_CHECKING:
    from esa_ray.models.addressing import WeightTensor
    from esa_ray.perturb.sites import Group


@dataclass(frozen=True, eq=False)
class Target:
    """Weights that are to be damaged; ``draw`` names the random stream, ``whole`` all of the set.

    ``known`` has an entry for each tensor of the group.
    """

    group: Group
    values: Tensor
    draw: tuple[int, ...]
    known: tuple[Known, ...]
    whole: Sequence[Target] = field(default=(), repr=False)

    @cached_property
    def old(self) -> Tensor:
        """The values in float64."""
        return self.values.double()

    @property
    def gradient(self) -> Tensor:
        """The gradient of the loss at each weight, float64; raises as :meth:`facts` does."""
        return self.group.upload(np.concatenate(self.facts("gradient")))

    def made(self, new: Tensor) -> Tensor:
        """New values in the weights' own dtype, rounded once."""
        return new.to(self.values.dtype, copy=True)  # what is remembered of tensors is not to be written over

    def of_each(self, draws: Callable[[WeightTensor, np.ndarray], np.ndarray]) -> np.ndarray:
        """A float64 number for each weight, made on the host from a tensor and the flat indices of its weights."""
        return np.concatenate([draws(t, flat) for t, flat in zip(self.group.tensors, self.group.flats, strict=True)])

    def facts(self, name: str) -> list[np.ndarray]:
        """Score or gradient of the weights, tensor by tensor.

        Raises
        ------
        EsaError
            If it isn't known.
        """
        pairs = zip(self.group.tensors, self.known, strict=True)
        return [_fact(tensor, getattr(known, name), name) for tensor, known in pairs]


def _fact(tensor: WeightTensor, found: np.ndarray | None, name: str) -> np.ndarray:
    if found is None or not np.isfinite(found).all():
        raise EsaError(f"this kind of damage needs the {name} of every weight, and {tensor.name} has none")
    return found


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
    return target.made(target.group.of_tensors(sites.mean))


def scale(target: Target, spec: PerturbSpec) -> Tensor:
    """w → α w."""
    return target.made(_strength(spec) * target.old)


def spread(target: Target, relative_to: str | None) -> Tensor:
    """What noise is scaled by: |w|, or the standard deviation of the tensor; float64."""
    return target.group.of_tensors(sites.standard_deviation) if relative_to == "tensor" else target.old.abs()


def _own_noise(target: Target) -> np.ndarray:
    """ε ~ N(0, 1) of (draw, weight): the same at every strength and in every set that holds the weight."""
    return target.of_each(lambda tensor, flat: normal(stream_key(*target.draw, "gauss_noise", tensor.name), flat))


def gauss_noise(target: Target, spec: PerturbSpec) -> Tensor:
    """w + σ·|w|·ε (relative to the weight) or w + σ·std(tensor)·ε (relative to its tensor), ε ~ N(0, 1)."""
    return _noisy(target, spec, _own_noise(target))


def _noisy(target: Target, spec: PerturbSpec, epsilon: np.ndarray) -> Tensor:
    scaled = _strength(spec) * spread(target, spec.relative_to) * target.group.upload(epsilon)
    return target.made(target.old + scaled)


def correlated(target: Target, spec: PerturbSpec) -> Tensor:
    """As ``gauss_noise``, with one ε for all weights of an output row, of a layer, or of a component.

    Cov(Δ_i, Δ_j) = σ²·s_i·s_j for weights that share a draw, with s the scale of each, and 0 for others. A tensor
    outside the blocks is a layer of its own; a component's draw is shared by all layers.
    """

    def of_component(tensor: WeightTensor, flat: np.ndarray) -> np.ndarray:
        drawn = [_one_draw(target, "component", part.component) for part in tensor.parts]
        return np.array(drawn)[tensor.part_of(flat)]

    def of_layer(tensor: WeightTensor, flat: np.ndarray) -> np.ndarray:
        return np.full(len(flat), _one_draw(target, "layer", tensor.name if tensor.layer is None else tensor.layer))

    if spec.shared == "row":
        keys = [stream_key(*target.draw, "correlated row", tensor.name) for tensor in target.group.tensors]
        epsilon = np.concatenate([normal(*pair) for pair in zip(keys, target.group.lines, strict=True)])
    else:
        epsilon = target.of_each(of_layer if spec.shared == "layer" else of_component)
    return _noisy(target, spec, epsilon)


def _one_draw(target: Target, shared: str, unit: object) -> float:
    return float(normal(stream_key(*target.draw, f"correlated {shared}", unit), np.zeros(1))[0])


def adaptive(target: Target, spec: PerturbSpec) -> Tensor:
    """w + σ·a·ε with a strength a of each weight's own, ε as in ``gauss_noise``.

    "score": a = s·‖w‖/‖s‖, norms over the whole set, so that E‖Δ‖² = σ²‖w‖² as for ``gauss_noise`` relative to the
    weight, but spent where the score is. "row": a = root mean square of the weight's own output row.
    """
    if spec.adapt == "row":
        scaled = _strength(spec) * own_scale(target, spec) * target.group.upload(_own_noise(target))
    else:
        scaled = target.group.upload(_strength(spec) * _by_score(target) * _own_noise(target))
    return target.made(target.old + scaled)


def own_scale(target: Target, spec: PerturbSpec) -> Tensor:
    """What ``adaptive`` scales each weight's noise by, float64."""
    if spec.adapt == "row":
        return target.group.of_rows(sites.row_root_mean_square)
    return target.group.upload(_by_score(target))


def _by_score(target: Target) -> np.ndarray:
    scores = zip(target.facts("score"), _weight_per_score(target), strict=True)
    return np.concatenate([score * per_score for score, per_score in scores])


def _weight_per_score(target: Target) -> Iterable[float]:
    """‖w‖/‖s‖ over the set, for each tensor: that of the set which its weights are part of.

    So a part of a set is damaged as it is in the whole.
    """
    given = [known.weight_per_score for known in target.known]
    mine = _of_this_set(target.whole or [target]) if None in given else 0.0
    return [mine if one is None else one for one in given]


def _of_this_set(whole: Sequence[Target]) -> float:
    weight, score = [], []
    for target in whole:
        olds = np.split(target.old.cpu().numpy(), np.cumsum(target.group.sizes)[:-1])
        weight += [float(old @ old) for old in olds]
        score += [float(s @ s) for s in target.facts("score")]
    return math.sqrt(math.fsum(weight) / math.fsum(score)) if math.fsum(score) > 0 else 0.0


def gradient_aligned(target: Target, spec: PerturbSpec) -> Tensor:
    """w + ε·|w|·sign(g): uphill, by first order ΔL = ε·Σ|g·w|; a weight with g = 0 stays."""
    return _along(target, _strength(spec))


def gradient_opposed(target: Target, spec: PerturbSpec) -> Tensor:
    """w − ε·|w|·sign(g): downhill."""
    return _along(target, -_strength(spec))


def _along(target: Target, step: float) -> Tensor:
    signs = target.group.upload(np.sign(np.concatenate(target.facts("gradient"))))
    return target.made(target.old + step * target.old.abs() * signs)


def quantize(target: Target, spec: PerturbSpec) -> Tensor:
    """w → s·round(w/s), s = max|w|/(2^(n−1) − 1) over the weight's output row or its tensor.

    Symmetric round-to-nearest (half to even) with 2^n − 1 levels, 0 among them; the step comes from all weights of
    the row or tensor as they stand, damaged or not.
    """
    levels = 2 ** (int(_strength(spec)) - 1) - 1
    group = target.group
    most = group.of_tensors(sites.largest) if spec.per == "tensor" else group.of_rows(sites.row_largest)
    step = sites.quotient(most, levels)
    return target.made(torch.where(step > 0, (target.old / step).round() * step, 0.0))


def bit_flip(target: Target, spec: PerturbSpec) -> Tensor:
    """XOR of the stored bits, each bit of the class with probability p; NaN and infinity can come out."""
    p, bits, dtype = _strength(spec), str(spec.bits), target.values.dtype
    masks = [
        random_masks(dtype, bits, p, flat, *target.draw, "bit_flip", tensor.name)
        for tensor, flat in zip(target.group.tensors, target.group.flats, strict=True)
    ]
    return flip(target.values, np.concatenate(masks))


def progressive(target: Target, spec: PerturbSpec) -> Tensor:
    """w + t·(w* − w): the part t of the straight way to what another kind makes of w."""
    assert spec.toward
    end = KINDS[spec.toward.kind](target, spec.toward)
    if spec.strength == 1.0:
        return end
    return target.made(target.old + _strength(spec) * (end.double() - target.old))


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
