"""What tunings take, as passes of one window each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from esa_ray.measurements.cost import Cost
from esa_ray.scoring.metrics import needed
from esa_ray.spec.tuning import BY_SOURCE

if TYPE_CHECKING:
    from esa_ray.spec import StudySpec, TuneSpec

#: The statistic that Fisher information is made of.
FISHER = "gradient_square"


def cost_of(spec: StudySpec) -> Cost:
    """Forward and backward passes of all tunings by all seeds.

    A step is a forward and a backward pass of its batch; a look evaluates the target, the source and the validation
    windows. Statistics of the intact model are gathered once a seed, those that a tuning asks for together in one go;
    Fisher information that is measured anew is gathered by each tuning.
    """
    ways, seeds = spec.tunings, len(spec.seeds)
    if not ways or spec.target is None:
        return Cost()
    judged = spec.target.evaluation_windows + spec.data.evaluation_windows
    looks = seeds * sum(len(how.looked) for how in ways)
    steps = seeds * sum(how.steps * how.batch for how in ways)
    backward, forward = gathered(ways)
    again = sum((how.steps - 1) // how.rescore for how in ways if how.rescore)
    learned = any(how.arm == "critical-target" for how in ways) * spec.target.calibration_windows
    gradients = steps + seeds * ((backward + again) * spec.data.calibration_windows + learned)
    alone = judged + looks * (judged + spec.validation_windows) + seeds * forward * spec.data.calibration_windows
    return Cost(seeds * len(ways), forward_passes=gradients + alone, backward_passes=gradients)


def gathered(ways: tuple[TuneSpec, ...]) -> tuple[int, int]:
    """How often a seed's calibration windows are passed with and without gradients to gather what tunings ask for.

    >>> from esa_ray.spec import TuneSpec
    >>> gathered((TuneSpec(), TuneSpec(protect="ewc"), TuneSpec(arm="critical-source", score="act_mag")))
    (1, 1)
    """
    known: dict[str, set[str]] = {}
    backward = forward = 0
    for how in ways:
        for gradients, activations in _asked(how):
            there = set.intersection(*(known.setdefault(component, set()) for component in how.components))
            backward += not gradients <= there
            forward += gradients <= there and not activations <= there
            for component in how.components:
                known[component] |= gradients | activations
    return backward, forward


def _asked(how: TuneSpec) -> Iterator[tuple[set[str], set[str]]]:
    """Statistics of gradients, and of activations, that a tuning asks for together."""
    if how.arm in BY_SOURCE or how.damage:
        yield set(needed([how.score], "backward")), set(needed([how.score], "forward"))
    if how.protect != "none":
        yield {FISHER}, set()
