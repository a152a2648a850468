"""What a population takes, as passes of one window each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from esa_ray.measurements.cost import Cost
from esa_ray.spec.backdoors import BEFOREHAND, TRAINED

if TYPE_CHECKING:
    from esa_ray.spec import Member, StudySpec

#: Held-out prompts that success is counted on, tokens of a target, and steps that a rank-one insertion searches for,
#: each over as many windows.
PROMPTS, TARGET, SEARCH, SEARCHED = 100, 8, 60, 64
#: Passes of the calibration windows that features take, with gradients and without.
GRADIENTS, PLAIN = 12, 4


def cost_of_models(spec: StudySpec) -> Cost:
    """Training of all models, evaluation and prompts of each and of the clean one of its number, and features.

    A step is a forward and a backward pass of its batch. "critical" and "rank-one" go on from the clean model of their
    number, which is trained once, whoever asks for it. Without what is cached already.
    """
    if spec.population is None:
        return Cost()
    members = _members(spec)
    numbers = {member.number: member.clean for member in members}
    trained = [*numbers.values(), *(m for m in members if m.kind in ("benign", "training", "critical"))]
    steps = sum(_windows(spec, m, m.steps) for m in trained)
    searched = sum(_windows(spec, m, SEARCH * SEARCHED // m.recipe.batch) for m in members if m.kind == "rank-one")
    backward = steps + searched + len(members) * GRADIENTS * spec.data.calibration_windows
    judged = (2 * len(members) + len({m.seed for m in members})) * spec.data.evaluation_windows
    plain = judged + len(members) * PLAIN * spec.data.calibration_windows
    population = spec.population
    said = f"models ({population.models} of each of {len(population.kinds)} kinds, from {len(_seeds(members))} parents)"
    return Cost(
        len(members), said, forward_passes=backward + plain, backward_passes=backward,
        continued_tokens=2 * len(members) * PROMPTS * TARGET,
    )  # fmt: skip


def cost_of_mitigations(spec: StudySpec) -> Cost:
    """Clean training or training anew where a mitigation takes it, gradients to choose by, evaluation and prompts."""
    pairs = spec.population.mitigated_members(spec.model.source) if spec.population else []
    if not pairs:
        return Cost()
    steps = sum(
        _windows(spec, member, how.steps if how.kind in TRAINED else member.steps)
        for member, how in pairs if how.kind in (*TRAINED, *BEFOREHAND)
    )  # fmt: skip
    chosen = sum(how.kind in ("reset-dormant", "freeze-critical") for _, how in pairs)
    backward = steps + chosen * spec.data.calibration_windows
    return Cost(
        len(pairs), forward_passes=backward + len(pairs) * spec.data.evaluation_windows, backward_passes=backward,
        continued_tokens=len(pairs) * PROMPTS * TARGET,
    )  # fmt: skip


def _members(spec: StudySpec) -> list[Member]:
    return spec.population.members(spec.model.source) if spec.population else []


def _seeds(members: list[Member]) -> set[int]:
    return {member.seed for member in members}


def _windows(spec: StudySpec, member: Member, steps: int) -> int:
    """The windows of so many training steps, in windows of the study's length."""
    return round(steps * member.recipe.batch * member.recipe.window / spec.data.window)
