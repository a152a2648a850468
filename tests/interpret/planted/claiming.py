"""Which roles a planted weight has, by the definitions alone: what zeroing changes beyond the null, through what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from esa_ray.interpret.roles import Bench, measured, mediated
from esa_ray.models.addressing import catalogue
from esa_ray.perturb.edit import perturbed
from esa_ray.spec import PerturbSpec
from esa_ray.spec.roles import RANKS_KEPT, SIDES, RoleSpec
from tests.interpret.planted.canvas import Planted, text

#: A planted change is to lie above all of the null, and so many of its standard deviations above its mean.
BEYOND = 3.0
ZERO = PerturbSpec(kind="zero")


@dataclass(frozen=True)
class Weight:
    """A weight to be damaged."""

    tensor: str
    component: str
    row: int
    col: int
    unit: str = "weight"
    group: str = "super"


def bench_of(planted: Planted, **more: Any) -> Bench:
    """A bench on text that the planted model writes."""
    written = text(planted.model, 64, seed=1)
    calibration = written[16:] if planted.calibration is None else planted.calibration
    settings = {"spec": RoleSpec(), "seed": 7, "windows": written[:16], "calibration": calibration, **more}
    return Bench(planted.model, catalogue(planted.model), **settings)


def zeroed(bench: Bench, weight: Weight):
    """The weight is zero for the length of a ``with`` block."""
    at = bench.catalogue[weight.tensor].index(weight.row, weight.col)
    return perturbed(bench.catalogue, {weight.tensor: np.array([at])}, ZERO, 0)


def the_weight(planted: Planted) -> Weight:
    """The planted one."""
    return Weight(planted.tensor, planted.component, planted.row, planted.col)


def null_of(planted: Planted) -> list[Weight]:
    """Weights of the same tensor and size."""
    return [Weight(planted.tensor, planted.component, *at, group="matched_k") for at in planted.decoys]


def by_role(bench: Bench, weight: Weight) -> dict[str, dict[str, Any]]:
    """Rows by role."""
    return {row["role"]: row for row in measured(bench, weight, zeroed(bench, weight))}


def fraction(bench: Bench, weight: Weight, role: str) -> float:
    """MF = 1 − ΔNLL(damaged, mediator held)/ΔNLL(damaged), sums over windows; 0 where there is none."""
    row = mediated(bench, weight, role, zeroed(bench, weight))
    if row["status"] != "ok" or sum(row["delta_nll"]) <= 0:
        return 0.0
    return 1 - sum(row["held_nll"]) / sum(row["delta_nll"])


def claimed(bench: Bench, planted: Planted) -> set[str]:
    """Roles with necessity, their condition, and MF ≥ 0.5."""
    weight, found = the_weight(planted), set()
    rows, null = by_role(bench, weight), [by_role(bench, other) for other in null_of(planted)]
    for role, row in rows.items():
        if row["status"] != "ok":
            continue
        # Of a null whose damage is all rounding there is no share to compare with, and so no claim.
        sizes = np.abs([other[role]["change"] for other in null if other[role]["status"] == "ok"] or [np.inf])
        bound = max(sizes.max(), sizes.mean() + BEYOND * sizes.std()) if np.isfinite(sizes).all() else np.inf
        necessary = abs(row["change"]) > bound and SIDES[role] * row["change"] >= 0
        kept = role != "confidence" or row["condition"] >= RANKS_KEPT
        if necessary and kept and fraction(bench, weight, role) >= 0.5:
            found.add(role)
    return found
