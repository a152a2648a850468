"""What a population takes, as passes of one window each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from esa_ray.measurements.cost import Cost
from esa_ray.spec.backdoors import BEFOREHAND, EDITED, TAUGHT, TRAINED

if TYPE_CHECKING:
    from esa_ray.spec import Member, StudySpec

#: Tokens of the held-out prompts that success is told by, each behind trigger and target.
JUDGED = 100 * 60
#: Tokens with gradients that a rank-one insertion searches by: 60 steps over 64 prompts, for two blocks or targets.
SEARCHED = 2 * 60 * 64 * 50
#: Tokens of features: at most of sensitivity (of the model, and of its parent), with gradients of gains, of scans.
SENSITIVE, GAINS, SCANS = 8192, 5 * 1024, 1 << 17


def cost_of_models(spec: StudySpec) -> Cost:
    """Training of all models, evaluation and prompts of each and of the clean one of its number, and features.

    A step is a forward and a backward pass of its batch. Edits and second rounds of steps go on from the clean model of
    their number, which is trained once, whoever asks for it. Without what is cached already.
    """
    population = spec.population
    if population is None:
        return Cost()
    members, length = population.members(spec.model.source), spec.data.window
    numbers = {member.number: member.clean for member in members}
    steps = sum(map(_training, [*numbers.values(), *(m for m in members if m.kind in TAUGHT)]))
    searched = SEARCHED * sum(m.kind in EDITED for m in members)
    gradients = 2 * min(spec.data.calibration_windows * length, SENSITIVE) + GAINS
    backward = (steps + searched + len(members) * gradients) // length
    parents = {member.seed for member in members}
    evaluated = (2 * len(members) + len(parents)) * spec.data.evaluation_windows
    plain = evaluated + len(members) * (2 * JUDGED + SCANS) // length
    said = f"models ({population.models} of each of {len(population.kinds)} kinds, from {len(parents)} parents)"
    return Cost(len(members), said, forward_passes=backward + plain, backward_passes=backward)


def cost_of_mitigations(spec: StudySpec) -> Cost:
    """Clean training or training anew where a mitigation takes it, gradients to choose by, evaluation and prompts."""
    pairs = spec.population.mitigated_members(spec.model.source) if spec.population else []
    if not pairs:
        return Cost()
    length, windows = spec.data.window, spec.data.calibration_windows
    anew = sum(_training(member) for member, how in pairs if how.kind in BEFOREHAND) // length
    tuned = sum(how.steps * member.recipe.batch for member, how in pairs if how.kind in TRAINED)
    chosen = windows * sum(how.kind in ("reset-dormant", "freeze-critical") for _, how in pairs)
    backward = anew + tuned + chosen
    plain = len(pairs) * (spec.data.evaluation_windows + JUDGED // length)
    return Cost(len(pairs), forward_passes=backward + plain, backward_passes=backward)


def _training(member: Member) -> int:
    """Tokens that a member's own steps see."""
    return member.steps * member.recipe.batch * member.recipe.window
