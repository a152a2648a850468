"""The kinds of damage: old values in, new values out, nothing applied yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from esa_ray.perturb.bits import flip, random_masks
from esa_ray.randomness import normal, stream_key
from esa_ray.spec import PerturbSpec


@dataclass(frozen=True)
class Target:
    """The weights of one tensor that are to be damaged."""

    tensor: str
    flat: np.ndarray
    values: Tensor
    all_weights: Tensor
    seed: int


def sign_flip(target: Target, spec: PerturbSpec) -> Tensor:
    """w → (1 − 2λ) w; λ=1 flips the sign, λ=0.5 zeroes."""
    if spec.strength == 1.0:
        return -target.values  # exact in every dtype, also for subnormals and infinities
    return (target.values.double() * (1.0 - 2.0 * float(spec.strength or 0))).to(target.values.dtype)


def zero(target: Target, spec: PerturbSpec) -> Tensor:
    """W → 0."""
    return torch.zeros_like(target.values)


def gauss_noise(target: Target, spec: PerturbSpec) -> Tensor:
    """w + σ·|w|·ε (relative to the weight) or w + σ·std(tensor)·ε (relative to its tensor), ε ~ N(0, 1).

    The draw ε belongs to (seed, weight): it is the same at every σ and in every set that holds the weight.
    """
    epsilon = normal(stream_key(target.seed, "gauss_noise", target.tensor), target.flat)
    old = target.values.double().cpu().numpy()
    scale = np.abs(old)
    if spec.relative_to == "tensor":
        scale = target.all_weights.float().std(correction=0).double().item()
    new = old + float(spec.strength or 0) * scale * epsilon
    return torch.as_tensor(new).to(target.values.device, target.values.dtype)


def bit_flip(target: Target, spec: PerturbSpec) -> Tensor:
    """XOR of the stored bits, each bit of the class with probability p; NaN and infinity can come out."""
    p, bits = float(spec.strength or 0), str(spec.bits)
    return flip(
        target.values,
        random_masks(target.values.dtype, bits, p, target.flat, target.seed, "bit_flip", target.tensor),
    )


KINDS: dict[str, Callable[[Target, PerturbSpec], Tensor]] = {
    "sign_flip": sign_flip,
    "zero": zero,
    "gauss_noise": gauss_noise,
    "bit_flip": bit_flip,
}
