"""Hypothesis: a handful of weights a block is enough, and what further ones add saturates.

Zeroing the k most sensitive weights of each block for k from 1 to 200, against as many random ones. If it holds,
damage parts from random at the smallest k and levels off at the loss of a model that guesses.
"""

from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, StudySpec


def study() -> StudySpec:
    """Eight sizes × three seeds × two groups: 48 cells."""
    return StudySpec(
        name="dose_by_size",
        model=ModelSpec(source="SmolLM2-135M-Instruct"),
        data=DataSpec(calibration_windows=16, evaluation_windows=8, bos="always", prompts=4),
        topk=(1, 2, 5, 10, 20, 50, 100, 200),
        seeds=(1337, 123, 999),
        perturbations=(PerturbSpec(kind="zero"),),
        groups=("super", "random_k"),
    )
