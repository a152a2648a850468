"""What faults and attacks take, as passes of one window each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from esa_ray.measurements.cost import Cost
from esa_ray.scoring.metrics import needed
from esa_ray.spec import STORED
from esa_ray.spec.security import GUIDED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from esa_ray.spec import AttackSpec, FaultSpec, StudySpec

#: Ranges of a score's quantiles (:data:`esa_ray.scoring.strata.STRATA`, which takes torch).
STRATA = 12
#: Components of a usual decoder, and tensors of one of its blocks: a plan doesn't know the model.
COMPONENTS, TENSORS = 10, 7


def cost_of_faults(spec: StudySpec) -> Cost:
    """An evaluation an injection at most: it is resumed from the block that was hit, and stops early where asked for.

    Of single flips the number goes by the components that the model has: about so many.
    """
    ways, seeds, windows = spec.faults, len(spec.seeds), spec.data.evaluation_windows
    if not ways:
        return Cost()
    grid = seeds * sum(how.repeats for how in ways if how.fault != "single")
    flips = sum(STORED[how.dtype] * how.repeats * STRATA * COMPONENTS for how in ways if how.fault == "single")
    forward, backward = _scoring(spec, ways)
    said = "injections" + f", about {seeds * flips:,} of them single flips" * bool(flips)
    return Cost(
        grid + seeds * flips,
        said,
        forward_passes=grid * windows + forward,
        backward_passes=backward,
        single_edits=seeds * flips,
    )


def cost_of_attacks(spec: StudySpec) -> Cost:
    """At most: a step evaluates; a guided one takes gradients and tries a flip of each tensor, from its block on."""
    ways, seeds = spec.attacks, len(spec.seeds)
    if not ways:
        return Cost()
    guided = [how for how in ways if how.arm in GUIDED]
    made = [how for how in ways for _ in how.of_seeds(spec.seeds)]
    steps = sum(how.budget + 1 for how in made)
    gradients = seeds * sum(how.budget * how.search_windows for how in guided)
    tried = seeds * sum(how.budget * how.selection_windows * TENSORS for how in guided)
    forward, backward = _scoring(spec, ways)
    said = f"({len(ways)} ways by {seeds} seed{'s' * (seeds > 1)}, of {max(how.budget for how in ways)} flips at most)"
    return Cost(
        len(made), said, forward_passes=steps * spec.data.evaluation_windows + gradients + forward,
        backward_passes=gradients + backward, block_passes=tried,
    )  # fmt: skip


def _scoring(spec: StudySpec, ways: Sequence[FaultSpec | AttackSpec]) -> tuple[int, int]:
    """Passes of the calibration windows, once a seed, with and without gradients, that the scores of some ways take."""
    scores = sorted({how.score for how in ways if how.by_score})
    backward, forward = bool(needed(scores, "backward")), bool(needed(scores, "forward"))
    passed = len(spec.seeds) * spec.data.calibration_windows
    return passed * (backward or forward), passed * backward
