"""Hypothesis: a score foresees what damage to one weight really costs.

No score measures that: first-order scores are a tangent, Wanda a guess, curvature an estimate. So a stratified
sample of weights is zeroed and flipped one at a time, and the true change of the loss stands beside every score
and beside the first- and second-order predictions. If the hypothesis holds, ranks correlate far above the
numerical noise, and the tangent's slope is 1 where the change is small.
"""

from esa_ray.spec import DataSpec, ModelSpec, ScoreSpec, StudySpec

METRICS = ("grad_x_weight", "grad_x_weight_abs", "grad_squared", "act_mag", "magnitude", "hutchinson_diag")


def study() -> StudySpec:
    """Six scores of one seed, and about 250 weights damaged one by one."""
    return StudySpec(
        name="fidelity",
        model=ModelSpec(source="SmolLM2-135M-Instruct"),
        data=DataSpec(source="pydoc", window=128, calibration_windows=16, evaluation_windows=8, bos="always"),
        scores=tuple(ScoreSpec(metric=m, probes=2 if m == "hutchinson_diag" else None) for m in METRICS),
        topk=(100,),
        seeds=(1337,),
        fidelity=250,
    )
