"""Hypothesis: the larger a model, the smaller the fraction of its weights that it hangs on, by a power law.

The zoo's models (three architectures and an instruction-tuned one, five sizes each, trained on the same text), scored
by first-order saliency over the whole model; growing sets of the most sensitive weights zeroed and flipped, against
random ones of the same tensors; every sub-layer and expert silenced. If the hypothesis holds, the fraction at which
half of what a model knows is lost falls along one line over two orders of magnitude of size, in every architecture.
SmolLM2-135M-Instruct, ten times larger and trained on other text with other tokens, stands beside them.
"""

from esa_ray.models.zoo.recipes import PREFIX, names
from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, ScoreSpec, StudySpec

BESIDE = ("SmolLM2-135M-Instruct",)


def study(model: str) -> StudySpec:
    """Three seeds × seven set sizes × two kinds of damage × two groups: 84 cells, and every sub-layer silenced."""
    return StudySpec(
        name=model.removeprefix(PREFIX).rpartition("/")[2],
        model=ModelSpec(source=model),
        data=DataSpec(source="pydoc", window=128, calibration_windows=16, evaluation_windows=16),
        scores=(ScoreSpec(metric="grad_x_weight", mode="global"),),
        topk=(1, 4, 16, 64, 256, 1024, 4096),
        seeds=(1337, 123, 999),
        perturbations=(PerturbSpec(kind="zero"), PerturbSpec(kind="sign_flip", strength=1.0)),
        groups=("super", "random_k"),
        analyses=("stability", "architecture"),
    )


def studies() -> list[StudySpec]:
    """A study of each model: 1,764 cells in all."""
    return [study(f"{PREFIX}{name}") for name in names()] + [study(name) for name in BESIDE]
