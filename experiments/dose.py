"""Hypothesis: damage grows with strength from a threshold to collapse, first for super weights.

Series of strengths of four kinds, and of set sizes, against random sets. If the hypothesis holds, every series rises,
a dose can be named from which on super and random part, and super weights reach the loss of a uniform guess while
random ones are nowhere near.
"""

from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, StudySpec

SERIES = {
    "sign_flip": (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0),
    "gauss_noise": (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
    "quantize": (8.0, 6.0, 5.0, 4.0, 3.0, 2.0),
    "gradient_aligned": (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
}


def study() -> StudySpec:
    """29 strengths × three seeds × two groups: 174 cells."""
    return StudySpec(
        name="dose",
        model=ModelSpec(source="SmolLM2-135M-Instruct"),
        data=DataSpec(calibration_windows=16, evaluation_windows=8, bos="always"),
        seeds=(1337, 123, 999),
        perturbations=tuple(PerturbSpec.parse(f"{kind}-{s:g}") for kind, dose in SERIES.items() for s in dose),
        groups=("super", "random_k"),
    )
