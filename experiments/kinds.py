"""Hypothesis: super weights break a model whatever is done to them, and controls don't.

Twelve kinds of damage to the 100 most sensitive weights of each block, to random ones, to random ones of similar
magnitude, and to the least sensitive. If the hypothesis holds, every kind costs more on the first set than on any
control, matched magnitude included; the report ranks the kinds by how well they tell the sets apart.
"""

from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, StudySpec

KINDS = (
    "sign_flip", "zero", "set_mean", "scale-0.5", "gauss_noise-0.1", "gauss_noise-tensor-0.5", "bit_flip-sign-0.5",
    "bit_flip-mantissa-0.05", "gradient_aligned-0.1", "gradient_opposed-0.1", "correlated-0.1", "adaptive-0.1",
    "quantize-3", "progressive-zero-0.5",
)  # fmt: skip


def study() -> StudySpec:
    """Fourteen kinds × three seeds × four groups: 168 cells."""
    return StudySpec(
        name="kinds",
        model=ModelSpec(source="SmolLM2-135M-Instruct"),
        data=DataSpec(calibration_windows=16, evaluation_windows=8, bos="always"),
        seeds=(1337, 123, 999),
        perturbations=tuple(PerturbSpec.parse(kind) for kind in KINDS),
        groups=("super", "random_k", "matched_k", "bottom_k"),
    )
