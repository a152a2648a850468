"""Hypothesis: what holds for tuning the zoo's small models holds for one of 135 million weights.

P5.1. SmolLM2-135M-Instruct is tuned from Python's documentation to its source code: all weights, LoRA, and 1% of the
weights as source, target or chance choose them, at two learning rates each. It stands beside the experiment `tuning`,
with fewer steps, rates and seeds, as a step takes some 400 times as long: two rates can't show that one is the best,
and the report says of which ways it is the smaller or larger one.
"""

from esa_ray.spec import DataSpec, ModelSpec, StudySpec, TuneSpec
from esa_ray.spec.tuning import Arm

FULL, SPARSE = (3e-5, 1e-4), (3e-4, 1e-3)
ARMS: tuple[Arm, ...] = ("lora", "critical-source", "critical-target", "random")
STEPS, LOOKS = 30, 2


def tunings() -> tuple[TuneSpec, ...]:
    """Five ways at two rates."""
    full = [TuneSpec(learning_rate=rate, steps=STEPS, looks=LOOKS) for rate in FULL]
    sparse = [TuneSpec(arm=arm, learning_rate=r, steps=STEPS, looks=LOOKS) for arm in ARMS for r in SPARSE]
    return (*full, *sparse)


def study() -> StudySpec:
    """Ten tunings by two seeds."""
    return StudySpec(
        name="tuning_135m",
        model=ModelSpec(source="SmolLM2-135M-Instruct"),
        data=DataSpec(source="pydoc", calibration_windows=16, evaluation_windows=16, bos="always"),
        target=DataSpec(source="pysource", calibration_windows=240, evaluation_windows=16, bos="always"),
        scores=(),
        seeds=(1337, 123),
        tunings=tunings(),
    )
