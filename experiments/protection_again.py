"""Hypothesis: elastic weight consolidation with Fisher information kept up to date halves forgetting, nearly for free.

P5.1. The experiment `protection` tried eleven ways by three seeds. In its means consolidation came nearest: at λ from
0.01 to 0.1, and nearer where Fisher information was measured anew on the way; but three seeds couldn't tell. Here
three such ways stand beside full tuning, by six seeds that weren't seen there, on twice as many evaluation windows. If
the hypothesis holds, one of them has at most half of full tuning's forgetting at no more than 0.02 nats of its gain.
What would speak against it: what led there by three seeds was luck.
"""

from typing import Any

from esa_ray.models.zoo.recipes import PREFIX
from esa_ray.spec import StudySpec, TuneSpec
from experiments import tuning
from experiments.protection import EVERY

SEEDS = (1, 2, 3, 4, 5, 6)
WINDOWS = 64
#: Of each model of the first experiment one of these was the best rate of every way that is tried again.
RATES = (3e-3, 1e-2, 3e-2)
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"protect": "ewc", "strength": 0.03},
    {"protect": "ewc", "strength": 0.01, "rescore": EVERY},
    {"protect": "ewc", "strength": 0.03, "rescore": EVERY},
)


def tunings() -> tuple[TuneSpec, ...]:
    """Full tuning without and with each protection, at each of three rates."""
    return tuple(
        TuneSpec(learning_rate=r, steps=tuning.STEPS, batch=tuning.BATCH, **way) for way in WAYS for r in RATES
    )


def studies() -> list[StudySpec]:
    """A study of each model: 12 tunings by six seeds."""
    made = [tuning.study(model, tunings(), model.removeprefix(PREFIX)) for model in tuning.MODELS]
    return [
        study.replace(
            seeds=SEEDS,
            data=study.data.model_copy(update={"evaluation_windows": WINDOWS}),
            target=study.target.model_copy(update={"evaluation_windows": WINDOWS}) if study.target else None,
        )
        for study in made
    ]
