"""Hypothesis: different scores point to the same weights.

P2.3 and P2.6. Five scores that cost at most one backward pass a window, and two ensembles of their ranks. If the
hypothesis holds, the super sets of grad_x_weight and grad_squared share more than 60%, and an ensemble is stabler
between seeds than its members.
"""

from esa_ray.spec import DataSpec, ModelSpec, ScoreSpec, StudySpec

METRICS = (
    "grad_x_weight", "grad_x_weight_abs", "grad_squared", "act_mag", "magnitude",
    "grad_x_weight+grad_squared", "grad_x_weight_abs+act_mag",
)  # fmt: skip


def study() -> StudySpec:
    """Seven rankings a seed out of one backward pass a window; no damage."""
    return StudySpec(
        name="agreement",
        model=ModelSpec(source="SmolLM2-135M-Instruct"),
        data=DataSpec(source="pydoc", window=128, calibration_windows=16, bos="always"),
        scores=tuple(ScoreSpec(metric=metric) for metric in METRICS),
        topk=(100,),
        seeds=(1337, 123, 999),
        analyses=("stability",),
    )
