"""Damage that says what becomes of a weight without looking at anything else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from esa_ray.spec import KINDS, Kind, PerturbSpec
from esa_ray.spec.kinds import not_a_probability

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.perturb.target import Target


class _OfItself(Kind):
    """A weight that is 0 stays."""

    unchangeable = "every one is 0"

    def fixed(self, target: Target, spec: PerturbSpec) -> Tensor:
        """The zeros."""
        return target.values == 0


@KINDS.add
class SignFlip(_OfItself):
    """w → (1 − 2λ) w: λ = 1 flips the sign, λ = 0.5 zeroes."""

    name, default = "sign_flip", 1.0
    formula, strengths = "w → (1 − 2λ) w", "λ > 0; 1 flips"

    def step(self, spec: PerturbSpec) -> float:
        """2λ."""
        return 2 * spec.amount

    def apply(self, target: Target, spec: PerturbSpec) -> Tensor:
        """(1 − 2λ) w; −w exactly, also of subnormals and infinities, for λ = 1."""
        return -target.values if spec.strength == 1.0 else target.made((1.0 - 2.0 * spec.amount) * target.old)


@KINDS.add
class Zero(_OfItself):
    """w → 0."""

    name, formula = "zero", "w → 0"

    def step(self, spec: PerturbSpec) -> float:
        """All of the weight."""
        return 1.0

    def apply(self, target: Target, spec: PerturbSpec) -> Tensor:
        """0."""
        return target.values.new_zeros(target.values.shape)


@KINDS.add
class Dropout(_OfItself):
    """w → 0 with probability p, each weight by a draw of its own; the others stay as they are (nothing is rescaled)."""

    name, default, option, random = "dropout", 0.5, "--perturb-prob", True
    formula, strengths = "w → 0 with probability p", "0 < p ≤ 1"

    def trouble(self, strength: float) -> str | None:
        """A probability is at most 1."""
        return super().trouble(strength) or not_a_probability(self.name, strength)

    def apply(self, target: Target, spec: PerturbSpec) -> Tensor:
        """w, or 0 where the draw is below p."""
        import torch

        from esa_ray.randomness import stream_key, uniform

        draws = target.of_each(lambda t, flat: uniform(stream_key(*target.draw, "dropout", t.name), flat))
        return torch.where(target.group.upload(draws) < spec.amount, 0.0, target.values)


@KINDS.add
class SetMean(Kind):
    """w → the mean of its tensor."""

    name, formula = "set_mean", "w → mean of its tensor"

    def apply(self, target: Target, spec: PerturbSpec) -> Tensor:
        """The mean."""
        return target.made(target.mean)


@KINDS.add
class Scale(_OfItself):
    """w → α w; below 1 and above it are two series of doses, |1 − α|."""

    name, default = "scale", 0.5
    formula, strengths = "w → α w", "α ≠ 1"

    def trouble(self, strength: float) -> str | None:
        """A factor of 1 changes nothing; all others do."""
        return "scale by 1 changes nothing" if strength == 1 else None

    def dose(self, strength: float) -> float:
        """|1 − α|."""
        return abs(1 - strength)

    def direction(self, strength: float) -> str:
        """Toward 0 and past it, or away from it."""
        return "up" if strength > 1 else "down"

    def step(self, spec: PerturbSpec) -> float:
        """|1 − α|."""
        return self.dose(spec.amount)

    def apply(self, target: Target, spec: PerturbSpec) -> Tensor:
        """α w."""
        return target.made(spec.amount * target.old)
