"""Steps along the gradient of the calibration loss, and against it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from esa_ray.spec import KINDS, Kind, PerturbSpec

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.perturb.target import Target


class _Along(Kind):
    """w ± ε·|w|·sign(g); a weight with w = 0 or g = 0 stays."""

    default, strengths, unchangeable = 0.1, "ε > 0", "every one is 0 or has gradient 0"
    sign: ClassVar[int]

    def needs(self, spec: PerturbSpec) -> frozenset[str]:
        """The gradient."""
        return frozenset({"gradient"})

    def step(self, spec: PerturbSpec) -> float:
        """ε."""
        return spec.amount

    def fixed(self, target: Target, spec: PerturbSpec) -> Tensor:
        """Weights that are 0 or have no gradient."""
        return (target.values == 0) | (target.gradient == 0)

    def apply(self, target: Target, spec: PerturbSpec) -> Tensor:
        """w ± ε·|w|·sign(g)."""
        import numpy as np

        signs = target.group.upload(np.sign(np.concatenate(target.facts("gradient"))))
        return target.made(target.old + self.sign * spec.amount * target.old.abs() * signs)


@KINDS.add
class GradientAligned(_Along):
    """w + ε·|w|·sign(g): uphill, by first order ΔL = ε·Σ|g·w|."""

    name, sign = "gradient_aligned", 1
    formula = "w + ε·|w|·sign(g), uphill for the calibration loss"


@KINDS.add
class GradientOpposed(_Along):
    """w − ε·|w|·sign(g): downhill."""

    name, sign = "gradient_opposed", -1
    formula = "w − ε·|w|·sign(g), downhill"
