"""Hypothesis: sensitive weights break a model together more than the sum of each alone.

The 16 most sensitive weights of the whole model, zeroed and flipped jointly and one by one (Yu et al. 2024 report six
weights of one model that are inert alone and break it together). If it holds, joint damage exceeds the sum of the
single ones; if a single weight carries it, the other way round.
"""

from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, ScoreSpec, StudySpec


def study() -> StudySpec:
    """Two scores × two kinds × (joint, random, 16 single): 72 cells, most of them resumed from the damaged block."""
    return StudySpec(
        name="together",
        model=ModelSpec(source="SmolLM2-135M-Instruct"),
        data=DataSpec(calibration_windows=16, evaluation_windows=8, bos="always"),
        scores=(ScoreSpec(mode="global"), ScoreSpec(metric="grad_x_weight_abs", mode="global")),
        topk=(16,),
        perturbations=(PerturbSpec(kind="zero"), PerturbSpec(kind="sign_flip")),
        groups=("super", "random_k"),
        one_by_one=True,
    )
