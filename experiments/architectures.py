"""Hypothesis: every architecture hangs on few weights, and mixtures of experts on few experts as well.

A dense model, one with grouped attention, an instruction-tuned one, a small one and a mixture of experts, each by the
same number of weights a block. If the hypothesis holds, flipping the super weights' signs costs at least five times the
perplexity that flipping random ones costs in all of them. Needs the hub, and GPUs for all but Pythia.
"""

from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, ScoreSpec, StudySpec

MODELS = (
    "meta-llama/Llama-3.1-8B",
    "mistralai/Mistral-7B-v0.3",
    "microsoft/Phi-3-mini-4k-instruct",
    "EleutherAI/pythia-1.4b",
    "mistralai/Mixtral-8x7B-v0.1",
)


def study(model: str) -> StudySpec:
    """Three seeds × three set sizes × two kinds of damage × two groups: 36 cells, and every sub-layer silenced."""
    return StudySpec(
        name=model.rpartition("/")[2],
        model=ModelSpec(source=model),
        data=DataSpec(source="pydoc", window=128, calibration_windows=64, evaluation_windows=16),
        scores=(ScoreSpec(metric="grad_x_weight", mode="per_layer"),),
        topk=(10, 50, 100),
        seeds=(1337, 123, 999),
        perturbations=(PerturbSpec(kind="sign_flip", strength=1.0), PerturbSpec(kind="zero")),
        groups=("super", "random_k"),
        analyses=("stability", "architecture"),
    )


def studies() -> list[StudySpec]:
    """A study of each model."""
    return [study(model) for model in MODELS]
