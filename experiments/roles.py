"""Hypothesis: most of the weights that a model hangs on do one of ten known things, and it can be shown which.

P5.3. The 100 leading weights of SmolLM2-135M, and of three architectures of the zoo, are damaged one at a time, beside
up to five matched weights of every tensor. A weight holds a role if the role's metric changes more than by damage to
matched weights (at a false discovery rate of 5%), if holding the role's place in the forward pass at its intact value
undoes at least half of the damage, and undoes nothing of matched weights'. If the hypothesis holds, half of them or
more hold a role, they bear 70% of the damage or more, at most 5% of matched weights would hold one, and other seeds,
another text and other kinds of damage (a sign flip, a fifth less) give the same roles. What would speak against it:
damage that moves every metric and goes through no single place, so that most weights are unassigned; or roles that
change with the text. What SmolLM2's (11, down, 507, 1229) is, a maker of spikes, of sinks, or a weight of frequency, is
open beforehand.
"""

from typing import Any

from esa_ray.models.zoo.recipes import PREFIX
from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, RoleSpec, ScoreSpec, StudySpec

LARGE = "SmolLM2-135M-Instruct"
MODELS = ("zoo:llama-1m", "zoo:neox-1m", "zoo:mixtral-1m")
SEEDS = (1337, 123)
#: The first is what roles are assigned by; the others repeat it.
EDITS = tuple(PerturbSpec.parse(label) for label in ("zero", "sign_flip", "scale-0.8"))
#: Leading weights; of those whose roles are tried by other kinds of damage in the larger model.
TOP, TRIED = 100, 30
#: Matched weights of each tensor: more in the zoo, where leading weights lie in few tensors; and draws of them.
NULL, ZOO_NULL, DRAWS = 5, 40, 5
#: The text, and the one that roles are to be the same on.
TEXT, OTHER = "pydoc", "pysource"
#: A weight of a small model costs little, and more windows tell it from noise; there they are cheap.
WINDOWS, ZOO_WINDOWS = 8, 32


def study(model: str, source: str = TEXT, *, top: int = TOP, seeds: tuple[int, ...] = SEEDS, **asked: Any) -> StudySpec:
    """The roles of a model's leading weights on a text; ``asked`` are fields of the roles' spec."""
    zoo = model.startswith(PREFIX)
    null, windows = (ZOO_NULL, ZOO_WINDOWS) if zoo else (NULL, WINDOWS)
    name = model.removeprefix(PREFIX) if zoo else "smollm2-135m"
    text = DataSpec(source=source, calibration_windows=128, evaluation_windows=windows, bos="auto" if zoo else "always")
    return StudySpec(
        name=name if source == TEXT else f"{name}-{source}", model=ModelSpec(source=model), data=text,
        scores=(ScoreSpec(metric="grad_x_weight_abs", mode="global"),), topk=(top,), seeds=seeds,
        groups=("super", "matched_k"), control_draws=DRAWS, roles=RoleSpec(null_weights=null, windows=windows, **asked),
    )  # fmt: skip


def studies() -> list[StudySpec]:
    """Of each model two seeds, and another text; every kind of damage, in the larger model to few weights."""
    few = study(LARGE, top=TRIED, seeds=SEEDS[:1], edits=EDITS, attention=False)
    return [
        study(LARGE), few.model_copy(update={"name": f"{few.name}-kinds"}), study(LARGE, OTHER, seeds=SEEDS[:1]),
        *(each for model in MODELS for each in (study(model, edits=EDITS), study(model, OTHER, seeds=SEEDS[:1]))),
    ]  # fmt: skip
