"""Hypothesis: few weights carry what a model knows, so holding these back halves what tuning makes it forget.

P5.1. Three architectures of the zoo, trained on docstrings, are tuned to source code as a whole, while what the
docstrings need is protected: by elastic weight consolidation with the measured Fisher information, by freezing the
share with the largest, by updates that are smaller the larger it is, and by the first with Fisher information measured
anew on the way. Every protection has five learning rates, as full tuning has. If the hypothesis holds, one of them has
at most half of full tuning's forgetting at no more than 0.02 nats of its gain. What would speak against it: a smaller
learning rate does the same without any protection, which the front shows.
"""

from typing import Any

from esa_ray.models.zoo.recipes import PREFIX
from esa_ray.spec import StudySpec, TuneSpec
from experiments.tuning import BATCH, FULL, MODELS, STEPS, study

PROTECTIONS = {"ewc": (0.001, 0.01, 0.1, 1.0), "freeze": (0.01, 0.1, 0.5), "scale": (0.01, 0.1, 1.0)}
#: Strength at which Fisher information is also measured anew, and how often.
RESCORED, EVERY = 0.01, 16


def tunings() -> tuple[TuneSpec, ...]:
    """Full tuning without and with each protection, at each of five rates."""
    held = [{"protect": how, "strength": s} for how, strengths in PROTECTIONS.items() for s in strengths]
    ways: list[dict[str, Any]] = [{}, *held, {"protect": "ewc", "strength": RESCORED, "rescore": EVERY}]
    return tuple(TuneSpec(learning_rate=r, steps=STEPS, batch=BATCH, **way) for way in ways for r in FULL)


def studies() -> list[StudySpec]:
    """A study of each model: 60 tunings by three seeds."""
    return [study(model, tunings(), model.removeprefix(PREFIX)) for model in MODELS]
