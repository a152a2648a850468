"""Part of the way to other damage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from esa_ray.spec import KINDS, Kind, PerturbSpec

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.perturb.target import Target


@KINDS.add
class Progressive(Kind):
    """w + t·(w* − w): the part t of the straight way to what another kind makes of w."""

    name, default, path, ladder = "progressive", 0.5, True, (0.25, 0.5, 0.75, 1.0)
    formula, strengths = "w + t·(w* − w), w* what another kind makes of it", "0 < t ≤ 1"

    def trouble(self, strength: float) -> str | None:
        """A way has an end."""
        past = f"progressive's strength is the part of the way, in (0, 1], not {strength}" if strength > 1 else None
        return super().trouble(strength) or past

    def needs(self, spec: PerturbSpec) -> frozenset[str]:
        """What the end of the way needs."""
        return _end(spec)[0].needs(_end(spec)[1])

    def step(self, spec: PerturbSpec) -> float | None:
        """The part t of the step at its end."""
        kind, toward = _end(spec)
        whole = kind.step(toward)
        return None if whole is None else spec.amount * whole

    def apply(self, target: Target, spec: PerturbSpec) -> Tensor:
        """w + t·(w* − w); w* itself for t = 1."""
        kind, toward = _end(spec)
        end = kind.apply(target, toward)
        return end if spec.strength == 1.0 else target.made(target.old + spec.amount * (end.double() - target.old))


def _end(spec: PerturbSpec) -> tuple[Kind, PerturbSpec]:
    assert spec.toward
    return KINDS[spec.toward.kind], spec.toward
