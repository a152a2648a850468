"""Hypothesis: one block's super weights carry most of the damage.

The super weights of each block zeroed by themselves, against as many random ones of the same block. If it holds, the
damage of single blocks is as uneven as the scores, and the block of the first-ranked weight stands out.
"""

from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, StudySpec, Subset

BLOCKS = 30


def study() -> StudySpec:
    """30 blocks and the whole set × two groups × three seeds: 186 cells, each resumed from its block."""
    return StudySpec(
        name="layers",
        model=ModelSpec(source="SmolLM2-135M-Instruct"),
        data=DataSpec(calibration_windows=16, evaluation_windows=8, bos="always"),
        seeds=(1337, 123, 999),
        perturbations=(PerturbSpec(kind="zero"),),
        groups=("super", "random_k"),
        parts=tuple(Subset(kind="layer", value=block) for block in range(BLOCKS)),
    )
