"""What running a study would take, from the spec alone: what its measurements say of themselves, summed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from esa_ray.measurements import MEASUREMENTS
from esa_ray.measurements.cost import Cost

if TYPE_CHECKING:
    from collections.abc import Mapping

    from esa_ray.spec import StudySpec


@dataclass(frozen=True)
class Plan(Cost):
    """The sum of all costs, and in ``costs`` each by its measurement's name."""

    costs: Mapping[str, Cost] = field(default_factory=dict)

    @property
    def cells(self) -> int:
        """How many cells there are."""
        return self.costs["cells"].count or 0

    @property
    def rankings(self) -> int:
        """How many rankings they share."""
        return self.costs["rankings"].count or 0

    @property
    def baselines(self) -> int:
        """How many intact models they are compared with."""
        return self.costs["baseline"].count or 0

    def lines(self, spec: StudySpec) -> list[str]:
        """The plan as text, one fact a line: the grid, what else is measured, and what all that takes."""
        named = sorted(self.costs, key=lambda name: name != "cells")
        if spec.beyond_cells:  # which has neither cells nor rankings, unless it asks for them
            named = [name for name in named if self.costs[name].count != 0]
        facts = {name: self.costs[name].told for name in named}
        facts |= {
            "forward passes": f"{self.forward_passes} windows of {spec.data.window} tokens",
            "backward passes": str(self.backward_passes),
            "double backward": f"at most {self.double_backward_passes}" * bool(self.double_backward_passes),
            "generated tokens": f"{self.continued_tokens or ''}",
            "block passes": f"{self.block_passes} windows for each block (resumed from it)" * bool(self.block_passes),
            "single edits": f"about {self.single_edits} (resumed from the edited layer)" * bool(self.single_edits),
        }
        return [f"{name:<18}{told}" for name, told in facts.items() if told]


def plan(spec: StudySpec) -> Plan:
    """Count cells, shared work and window passes.

    >>> from esa_ray.spec import ModelSpec, PerturbSpec, StudySpec
    >>> spec = StudySpec(name="x", model=ModelSpec(source="m"), seeds=(1, 2), perturbations=(PerturbSpec(kind="zero"),))
    >>> plan(spec).cells, plan(spec).costs["rankings"].backward_passes
    (2, 256)
    """
    costs = {name: measurement.cost(spec) for name, measurement in MEASUREMENTS.items()}
    total = sum(costs.values(), Cost())
    return Plan(**vars(total), costs=costs)
