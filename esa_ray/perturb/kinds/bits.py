"""Flips of the stored bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from esa_ray.spec import KINDS, Kind, PerturbSpec
from esa_ray.spec.kinds import not_a_probability

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.perturb.target import Target


@KINDS.add
class BitFlip(Kind):
    """XOR of the stored bits, each bit of the class with probability p; NaN and infinity can come out."""

    name, default, option, random = "bit_flip", 0.05, "--perturb-prob", True
    variants: ClassVar = {"bits": ("all", "sign", "exponent", "mantissa")}
    formula, strengths = "each stored bit of the class XORed with probability p", "0 < p ≤ 1"
    unchangeable = "every one is 0"

    def trouble(self, strength: float) -> str | None:
        """A probability is at most 1."""
        return super().trouble(strength) or not_a_probability(self.name, strength)

    def fixed(self, target: Target, spec: PerturbSpec) -> Tensor | None:
        """Zeros, of which the sign flips: −0 is 0."""
        return target.values == 0 if spec.bits == "sign" else None

    def apply(self, target: Target, spec: PerturbSpec) -> Tensor:
        """w with the bits of a mask flipped."""
        from esa_ray.perturb.bits import flip, random_masks

        dtype, stream = target.values.dtype, (*target.draw, "bit_flip")
        masks = target.of_each(lambda t, flat: random_masks(dtype, str(spec.bits), spec.amount, flat, *stream, t.name))
        return flip(target.values, masks)
