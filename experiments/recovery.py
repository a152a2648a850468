"""Hypothesis: restoring the few most sensitive weights of a damaged set brings most of the model back.

All of a set is zeroed but for a fraction that stays intact: its most sensitive weights, or as many of its least
sensitive ones. If the hypothesis holds, a tenth of the set restores more than half of the loss when it is the first
tenth, and next to nothing when it is the last.
"""

from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, StudySpec, Subset

FRACTIONS = (0.05, 0.1, 0.25, 0.5, 0.75)


def study() -> StudySpec:
    """Two kinds × three seeds × (whole, random, five fractions from either end): 72 cells."""
    parts = tuple(Subset(kind=kind, value=f) for f in FRACTIONS for kind in ("all_but_first", "all_but_last"))
    return StudySpec(
        name="recovery",
        model=ModelSpec(source="SmolLM2-135M-Instruct"),
        data=DataSpec(calibration_windows=16, evaluation_windows=8, bos="always"),
        seeds=(1337, 123, 999),
        perturbations=(PerturbSpec(kind="zero"), PerturbSpec(kind="gauss_noise", strength=0.5)),
        groups=("super", "random_k"),
        parts=parts,
    )
