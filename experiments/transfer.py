"""Hypothesis: instruction tuning keeps the weights that a model hangs on.

The super weights of the instruction-tuned SmolLM2 (the quickstart study, which must have run) are damaged in the base
model of the same shape, beside the base model's own. If the hypothesis holds, the tuned model's set costs the base
model nearly as much as its own, and the two sets overlap far beyond chance. Needs a model hub for the base model.
"""

from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, StudySpec
from esa_ray.weights import read_weights


def study() -> StudySpec:
    """Two kinds × three seeds × (own, random, transferred, its random): 24 cells."""
    return StudySpec(
        name="transfer",
        model=ModelSpec(source="HuggingFaceTB/SmolLM2-135M"),
        data=DataSpec(calibration_windows=16, evaluation_windows=8, bos="always"),
        seeds=(1337, 123, 999),
        perturbations=(PerturbSpec(kind="sign_flip"), PerturbSpec(kind="zero")),
        groups=("super", "random_k"),
        lists=(read_weights("results/quickstart"),),
    )
