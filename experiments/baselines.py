"""Hypothesis: an intact model's loss is the same whoever draws the windows, and no worse in longer contexts.

The zoo and SmolLM2-135M-Instruct under all three protocols, on Python's own documentation: three seeds, contexts from
128 to 2,048 tokens as far as each model goes. If the hypothesis holds, perplexity varies by less than 5% between seeds,
and the extended protocol finds no model worse than the smoke protocol does.
"""

from esa_ray.models.zoo.recipes import PREFIX, names
from esa_ray.spec import DataSpec, ModelSpec, Protocol, ScoreSpec, StudySpec


def study(model: str) -> StudySpec:
    """Three protocols × three seeds."""
    return StudySpec(
        name=model.removeprefix(PREFIX),
        model=ModelSpec(source=model),
        data=DataSpec(source="pydoc", calibration_windows=2, evaluation_windows=8),
        scores=(ScoreSpec(metric="magnitude", mode="global"),),
        seeds=(1337, 123, 999),
        protocols=tuple(map(Protocol.named, ("smoke", "standard", "extended"))),
    )


def studies() -> list[StudySpec]:
    """A study of each model."""
    return [study(f"{PREFIX}{name}") for name in names()] + [study("SmolLM2-135M-Instruct")]
