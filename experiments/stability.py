"""Hypothesis: enough calibration text makes the super weights of different seeds the same.

P2.2. Three seeds draw up to 64 windows each, and the sets are read after 4, 8, 16, 32 and 64 of them. If the
hypothesis holds, the Jaccard index between seeds grows with the number of windows and passes 0.4, and small sets
(the very top) are stable sooner than large ones.
"""

from esa_ray.spec import DataSpec, ModelSpec, ScoreSpec, StudySpec


def study() -> StudySpec:
    """Two scores, three seeds, five sizes of sample; no damage."""
    return StudySpec(
        name="stability",
        model=ModelSpec(source="SmolLM2-135M-Instruct"),
        data=DataSpec(source="pydoc", window=128, calibration_windows=64, bos="always"),
        scores=(ScoreSpec(metric="grad_x_weight"), ScoreSpec(metric="grad_squared")),
        topk=(10, 100),
        seeds=(1337, 123, 999),
        analyses=("stability", "weights"),
    )
