"""Hypothesis: a hundredth of the weights, chosen by what the target needs, learns as much and forgets half.

P5.1. Three architectures of the zoo, trained on docstrings, are tuned to source code in every way: all weights; LoRA;
0.1% or 1% of the weights, namely those that the source or the target text needs most, the largest, those that the
source needs least, and random ones (three draws). Validation chooses of five learning rates for all weights and of six
otherwise, since random masks match LoRA once theirs is raised (arXiv:2405.02596). If the hypothesis holds, a chosen
mask of at most 1% comes within 0.02 nats of full tuning at no more than half of its forgetting, and beats random masks
of the same count. What would speak against it: random masks do as well, or the rate alone decides what is forgotten.
"""

from esa_ray.models.zoo.recipes import PREFIX
from esa_ray.spec import DataSpec, ModelSpec, StudySpec, TuneSpec
from esa_ray.spec.tuning import Arm

MODELS = ("zoo:llama-0.3m", "zoo:neox-0.3m", "zoo:mixtral-0.3m")
SEEDS = (1337, 123, 999)
FRACTIONS, DRAWS = (0.001, 0.01), (0, 1, 2)
CHOSEN: tuple[Arm, ...] = ("lora", "critical-source", "critical-target", "magnitude", "bottom", "random")
#: Peak learning rates: the fewer weights learn, the faster each may.
FULL = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
SPARSE = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
STEPS, BATCH = 64, 8


def tunings() -> tuple[TuneSpec, ...]:
    """Full tuning, and every other arm at both shares, each at its rates; random masks by three draws."""
    full = [TuneSpec(learning_rate=rate, steps=STEPS, batch=BATCH) for rate in FULL]
    sparse = [
        TuneSpec(arm=arm, fraction=f, draw=draw, learning_rate=rate, steps=STEPS, batch=BATCH)
        for arm in CHOSEN
        for f in FRACTIONS
        for draw in (DRAWS if arm == "random" else (0,))
        for rate in SPARSE
    ]
    return (*full, *sparse)


def study(model: str, ways: tuple[TuneSpec, ...], name: str) -> StudySpec:
    """A model tuned from docstrings to source code in some ways, by three seeds."""
    return StudySpec(
        name=name,
        model=ModelSpec(source=model),
        data=DataSpec(source="pydoc", calibration_windows=32, evaluation_windows=32),
        target=DataSpec(source="pysource", calibration_windows=256, evaluation_windows=32),
        scores=(),
        seeds=SEEDS,
        tunings=ways,
    )


def studies() -> list[StudySpec]:
    """A study of each model: 101 tunings by three seeds."""
    return [study(model, tunings(), model.removeprefix(PREFIX)) for model in MODELS]
