"""Hypothesis: the larger a model, the smaller the fraction of its weights that it hangs on, by a power law.

The zoo's models (three architectures and an instruction-tuned one, five sizes each, trained on the same text), scored
by first-order saliency over the whole model; growing sets of the most sensitive weights zeroed and flipped, against
random ones of the same tensors; every sub-layer and expert silenced. If the hypothesis holds, the fraction at which
a tenth of what a model knows is lost falls along one line over two orders of magnitude of size, in every architecture.
SmolLM2-135M-Instruct, ten times larger and trained on other text with other tokens, stands beside them.
"""

from esa_ray.models.zoo.recipes import PREFIX, names, recipe
from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, ScoreSpec, StudySpec

BESIDE = ("SmolLM2-135M-Instruct",)
#: Sizes of sets; a model takes those up to this share of its weights, beyond which controls find too few others.
LADDER, LARGEST = (1, 8, 64, 512, 4096, 16384, 65536), 0.042


def study(model: str, ladder: tuple[int, ...] = LADDER) -> StudySpec:
    """Three seeds × up to seven set sizes × two kinds of damage × two groups: 84 cells, every sub-layer silenced."""
    return StudySpec(
        name=model.removeprefix(PREFIX).rpartition("/")[2],
        model=ModelSpec(source=model),
        data=DataSpec(source="pydoc", window=128, calibration_windows=32, evaluation_windows=16),
        scores=(ScoreSpec(metric="grad_x_weight", mode="global"),),
        topk=ladder,
        seeds=(1337, 123, 999),
        perturbations=(PerturbSpec(kind="zero"), PerturbSpec(kind="sign_flip", strength=1.0)),
        groups=("super", "random_k"),
        analyses=("stability", "architecture"),
    )


def fitting(name: str) -> tuple[int, ...]:
    """The sizes of sets that a model of the zoo is large enough for."""
    made = recipe(name)
    weights = 12 * made.layers * made.width**2
    return tuple(k for k in LADDER if k <= LARGEST * weights)


def studies() -> list[StudySpec]:
    """A study of each model."""
    return [study(f"{PREFIX}{name}", fitting(name)) for name in names()] + [study(name) for name in BESIDE]
