"""Hypothesis: what noise does to super weights depends on its structure, not only on its size.

Noise of one relative size, independent or with one draw for a row, a block or a component; adaptive noise of the same
norm spent where the score is; steps along and against the gradient; and paths toward zero and toward two bits. If it
holds, steps uphill cost most and steps downhill least, and shared draws cost more than independent ones.
"""

from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, StudySpec

KINDS = (
    "gauss_noise-0.1", "correlated-row-0.1", "correlated-layer-0.1", "correlated-component-0.1", "adaptive-score-0.1",
    "gradient_aligned-0.1", "gradient_opposed-0.1",
    *(f"progressive-{end}-{t}" for end in ("zero", "quantize-2") for t in (0.25, 0.5, 0.75, 1.0)),
)  # fmt: skip


def study() -> StudySpec:
    """Fifteen kinds × three seeds × two groups: 90 cells."""
    return StudySpec(
        name="structured",
        model=ModelSpec(source="SmolLM2-135M-Instruct"),
        data=DataSpec(calibration_windows=16, evaluation_windows=8, bos="always"),
        seeds=(1337, 123, 999),
        perturbations=tuple(PerturbSpec.parse(kind) for kind in KINDS),
        groups=("super", "random_k"),
    )
