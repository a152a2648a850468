"""Rounding to a coarse grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from esa_ray.spec import KINDS, Kind, PerturbSpec

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.perturb.target import Target


@KINDS.add
class Quantize(Kind):
    """w → s·round(w/s), s = max|w|/(2^(n−1) − 1) over the weight's output row or its tensor.

    Symmetric round-to-nearest (half to even) with 2^n − 1 levels, 0 among them; the step comes from all weights of
    the row or tensor as they stand, damaged or not.
    """

    name, default, option = "quantize", 4.0, None
    variants: ClassVar = {"per": ("row", "tensor")}
    formula, strengths = "rounded to n bits, symmetric, per row or tensor", "n from 2 to 16"
    unchangeable = "every one is 0"

    def trouble(self, strength: float) -> str | None:
        """A number of bits is a whole one."""
        if strength > 0 and (strength != int(strength) or not 2 <= strength <= 16):
            return f"quantize's strength is a number of bits from 2 to 16, not {strength:g}"
        return super().trouble(strength)

    def dose(self, strength: float) -> float:
        """1/(2^(n−1) − 1): the grid's step as a part of the largest weight."""
        return 1 / (2 ** (strength - 1) - 1)

    def fixed(self, target: Target, spec: PerturbSpec) -> Tensor:
        """Zeros lie on every grid."""
        return target.values == 0

    def apply(self, target: Target, spec: PerturbSpec) -> Tensor:
        """s·round(w/s)."""
        import torch

        from esa_ray.perturb.sites import quotient

        levels = 2 ** (int(spec.amount) - 1) - 1
        step = quotient(target.largest if spec.per == "tensor" else target.largest_of_row, levels)
        return target.made(torch.where(step > 0, (target.old / step).round() * step, 0.0))
