"""Hypothesis: in floats vulnerability sits in one bit of almost any weight, in int8 in the top bits of few weights.

P5.2. Single bits of stored weights are flipped, one at a time, in every component, range of the score Σ|g·w| and bit:
of three architectures of the zoo in int8, of one also in bf16, and of the down-projections of SmolLM2-135M in both. If
the hypothesis holds, the top exponent bit holds nearly all of the bf16 bits that break the model, whatever the weight's
score; in int8 the 1% of the weights with the highest scores hold at least 90% of what breaks it. g·Δw should then rank
flips of mantissa bits and of int8, and be void for the upper exponent bits. What would speak against it: breaks in int8
are as frequent among low scores, of which there are so many more.
"""

from typing import Any

from esa_ray.models.zoo.recipes import PREFIX
from esa_ray.spec import DataSpec, FaultSpec, ModelSpec, StudySpec
from experiments.tuning import MODELS

LARGE = "SmolLM2-135M-Instruct"
SEEDS = (1337, 123)
#: The architecture that is also asked in bf16, where a bit takes twice as many flips as in int8.
ALSO_BF16 = MODELS[0]
TEXT = DataSpec(source="pydoc", calibration_windows=16, evaluation_windows=16)
#: The larger model's: fewer windows, as a pass takes some twenty times as long.
LARGE_TEXT = DataSpec(source="pydoc", calibration_windows=16, evaluation_windows=8, bos="always")


def study(model: str, seeds: tuple[int, ...] = SEEDS, **asked: Any) -> StudySpec:
    """A model of the zoo, or the larger one, with faults or attacks."""
    name, text = (model.removeprefix(PREFIX), TEXT) if model.startswith(PREFIX) else ("smollm2-135m", LARGE_TEXT)
    return StudySpec(name=name, model=ModelSpec(source=model), data=text, scores=(), seeds=seeds, **asked)


def flips(model: str) -> tuple[FaultSpec, ...]:
    """One flip by each seed in every component, range of the score and bit of a model of the zoo."""
    int8 = FaultSpec(fault="single", dtype="int8", repeats=1)
    return (int8, FaultSpec(fault="single", dtype="bf16", repeats=1)) if model == ALSO_BF16 else (int8,)


def studies() -> list[StudySpec]:
    """A study of each model; of the larger one its down-projections alone are stored."""
    down = tuple(FaultSpec(fault="single", dtype=t, repeats=1, components=("down",)) for t in ("int8", "bf16"))
    return [*(study(model, faults=flips(model)) for model in MODELS), study(LARGE, faults=down)]
