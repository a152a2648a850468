"""What roles, attention and facts take, as passes of one window each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from esa_ray.interpret.subjects import expected
from esa_ray.measurements.cost import Cost

if TYPE_CHECKING:
    from esa_ray.spec import StudySpec

#: Roles that have a text of their own; the others share the evaluation windows.
OF_OWN_TEXT = ("induction", "fact")
#: Passes of a held mediator: damaged, damaged and held, held at its damaged value.
HELD = 3
#: Places of a fact's prompt, and sub-layers, that a state is restored at.
POSITIONS, SUBLAYERS = 5, 3


def _texts(spec: StudySpec) -> int:
    """Texts that each subject is measured on."""
    roles = spec.roles.roles if spec.roles else ()
    return bool(set(roles) - set(OF_OWN_TEXT)) + sum(role in roles for role in OF_OWN_TEXT)


def cost_of_roles(spec: StudySpec) -> Cost:
    """Each text once under each damage, from its block on; and of the intact model once a seed, with gradients."""
    if spec.roles is None:
        return Cost()
    count, windows = expected(spec), spec.roles.windows
    intact = len(spec.seeds) * windows * (_texts(spec) + len(spec.roles.roles))
    said = f"weights and sets at most, each damaged once ({len(spec.roles.roles)} roles)"
    return Cost(
        count, said, forward_passes=count * windows * _texts(spec) + intact,
        backward_passes=len(spec.seeds) * windows * len(spec.roles.roles),
    )  # fmt: skip


def cost_of_mediations(spec: StudySpec) -> Cost:
    """What the screen lets through, which the spec doesn't tell."""
    if spec.roles is None:
        return Cost()
    return Cost(said=f"pairs of these with a role whose change stands out, {HELD * spec.roles.windows} passes each")


def cost_of_attention(spec: StudySpec) -> Cost:
    """The windows once under the first damage of each weight, and once intact."""
    if spec.roles is None or not spec.roles.attention:
        return Cost()
    alone = spec.roles.model_copy(update={"sets": (), "edits": spec.roles.edits[:1]})
    count = expected(spec.model_copy(update={"roles": alone}))
    return Cost(count, "weights at most", forward_passes=(count + 1) * spec.roles.windows)


def cost_of_facts(spec: StudySpec) -> Cost:
    """For each block as many short prompts as there are places, sub-layers and windows; about, since few are known."""
    if spec.facts is None:
        return Cost()
    asked, facts = spec.facts, spec.facts.limit * len(spec.facts.sources) * len(spec.seeds)
    runs = sum(asked.draws if corruption == "noise" else 1 for corruption in asked.corruptions)
    each = asked.paraphrases * runs * POSITIONS * SUBLAYERS * len(asked.restored)
    return Cost(facts, f"facts at most, of which those are traced that the model knows ({each} prompts a block)")
