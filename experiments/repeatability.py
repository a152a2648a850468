"""Hypothesis: the same damage costs the same every time.

Five runs of the same cells. Kinds that draw nothing must come out equal to the bit; of those that draw, the report says
how much of a cell's damage is the draw, and how many repetitions make it small. If the hypothesis holds, the draw
matters little for super weights and is all there is for random ones.
"""

from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, StudySpec


def study() -> StudySpec:
    """Four kinds × three seeds × two groups × five runs: 120 cells."""
    return StudySpec(
        name="repeatability",
        model=ModelSpec(source="SmolLM2-135M-Instruct"),
        data=DataSpec(calibration_windows=16, evaluation_windows=8, bos="always"),
        seeds=(1337, 123, 999),
        perturbations=tuple(
            PerturbSpec.parse(k) for k in ("sign_flip", "gauss_noise-0.1", "correlated-0.1", "bit_flip-mantissa-0.05")
        ),
        groups=("super", "random_k"),
        repeats=5,
    )
