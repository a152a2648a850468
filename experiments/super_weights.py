"""Hypothesis: a model's super weights show in one forward pass, by the spikes that they carry.

Yu et al. 2024 (arXiv:2411.07191) find them where the input and the output of a down-projection spike together. If
that holds, the first weight of super_activation is the one that gradients put first too, and damage to it alone
costs more than damage to a thousand random ones. That seeds agree on it proves little: the spikes stand at BOS,
where a causal model computes the same whatever the text.
"""

from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, ScoreSpec, StudySpec


def study() -> StudySpec:
    """One window of calibration, the very first weights of the model, zeroed."""
    return StudySpec(
        name="super_weights",
        model=ModelSpec(source="SmolLM2-135M-Instruct"),
        data=DataSpec(source="pydoc", window=128, calibration_windows=1, evaluation_windows=16, bos="always"),
        scores=tuple(
            ScoreSpec(metric=m, mode="global", components=("down",)) for m in ("super_activation", "grad_x_weight")
        ),
        topk=(1, 3, 10),
        seeds=(1337, 123, 999),
        perturbations=(PerturbSpec(kind="zero"),),
        groups=("super", "random_k"),
    )
