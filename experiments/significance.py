"""Hypothesis: 2% noise on super weights costs more than on random ones, and enough windows show it.

The quickstart study can't tell them apart with 16 windows. Here are 64 windows and five seeds for the weak kinds alone.
If the hypothesis holds, corrected p falls below 0.01; if not, the report says how many windows and seeds it would take.
"""

from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, StudySpec


def study() -> StudySpec:
    """Three weak kinds × five seeds × three groups: 45 cells of 64 windows."""
    return StudySpec(
        name="significance",
        model=ModelSpec(source="SmolLM2-135M-Instruct"),
        data=DataSpec(calibration_windows=16, evaluation_windows=64, bos="always"),
        seeds=(1337, 123, 999, 7, 42),
        perturbations=tuple(PerturbSpec.parse(k) for k in ("gauss_noise-0.02", "gauss_noise-0.05", "quantize-6")),
        groups=("super", "random_k", "matched_k"),
    )
