"""Hypothesis: choosing weights from the whole model hits harder than choosing as many from every layer.

P2.5. The 3,000 weights with the highest scores of all, against the 100 highest of each of 30 blocks: the same
number of weights, zeroed, with random controls. If the hypothesis holds, the global set costs more per weight; if
sensitivity is spread over depth, the sets of layers do.
"""

from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, ScoreSpec, StudySpec


def study() -> StudySpec:
    """Both pools at 100, and the global one at 3,000 as well, which is as many as 100 of each block."""
    return StudySpec(
        name="pools",
        model=ModelSpec(source="SmolLM2-135M-Instruct"),
        data=DataSpec(source="pydoc", window=128, calibration_windows=16, evaluation_windows=16, bos="always"),
        scores=(ScoreSpec(mode="per_layer"), ScoreSpec(mode="global")),
        topk=(100, 3000),
        seeds=(1337, 123),
        perturbations=(PerturbSpec(kind="zero"), PerturbSpec(kind="gauss_noise", strength=0.1)),
        groups=("super", "random_k"),
    )
