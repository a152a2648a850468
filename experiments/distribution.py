"""Hypothesis: sensitivity is heavy-tailed and sits in the same few places whatever the text.

P2.4. Statistics of all weights, not of the top alone: tail index, the share of the top 1%, hotspots by layer and
component, and the course over depth, for three seeds. If the hypothesis holds, the top 1% of every tensor lie more
than ten times above its median, and seeds agree on which tensors are hot.
"""

from esa_ray.spec import DataSpec, ModelSpec, ScoreSpec, StudySpec


def study() -> StudySpec:
    """First and second moments of gradients, and activations, over attention and MLP."""
    return StudySpec(
        name="distribution",
        model=ModelSpec(source="SmolLM2-135M-Instruct"),
        data=DataSpec(source="pydoc", window=128, calibration_windows=16, bos="always"),
        scores=tuple(ScoreSpec(metric=m, mode="per_tensor") for m in ("grad_x_weight", "grad_squared", "act_mag")),
        topk=(20,),
        seeds=(1337, 123, 999),
    )
