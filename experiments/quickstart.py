"""Hypothesis: 0.003% of a language model's weights carry it, and others of the same layers don't.

SmolLM2-135M-Instruct, scored by first-order saliency on Python's own documentation. The 50 or 100 most
sensitive weights of each block, against as many random ones of the same tensors and the least sensitive
ones. If the hypothesis holds, damage to the first set costs orders of magnitude more than to the controls,
for every kind of damage and every seed; and the sets of three seeds overlap far beyond chance.

Bits flip in the mantissa only: one high exponent bit in 3,000 weights is enough to drown any model,
whichever weight it hits (measured here: flips over all 32 bits at p = 0.05, and even at 0.001, end in NaN
or in a uniform prediction for the super, the random and the bottom set alike), so they tell no weights apart.
"""

from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, ScoreSpec, StudySpec


def study() -> StudySpec:
    """Three seeds × two set sizes × five kinds of damage × three groups: 90 cells."""
    return StudySpec(
        name="quickstart",
        model=ModelSpec(source="SmolLM2-135M-Instruct"),
        data=DataSpec(source="pydoc", window=128, calibration_windows=16, evaluation_windows=16, bos="always"),
        scores=(ScoreSpec(metric="grad_x_weight", mode="per_layer"),),
        topk=(50, 100),
        seeds=(1337, 123, 999),
        perturbations=(
            PerturbSpec(kind="sign_flip", strength=1.0),
            PerturbSpec(kind="zero"),
            PerturbSpec(kind="gauss_noise", strength=0.02),
            PerturbSpec(kind="gauss_noise", strength=0.1),
            PerturbSpec(kind="bit_flip", strength=0.05, bits="mantissa"),
        ),
        groups=("super", "random_k", "bottom_k"),
        analyses=("stability",),
    )
