"""Hypothesis: 0.35% of the weights, chosen by gradients, buy back most of what rounding to 3 bits costs.

P5.1. Round to nearest in groups of 64, with none, 0.1%, 0.35% or 1% of the weights left in 16 bits, chosen by
TaCQ, Σ|g·w|, Fisher's information of the rounding error, magnitude, or at random. All rules keep equally many, so they
have equal bits per weight. If it holds, a rule by gradients has at least 15% less excess NLL than every other at 3 bits
and 0.35%; and keeping some is worth more than as many bits spent on smaller groups. What would speak against it: scales
of groups already take care of the few large weights, and random weights do as well.
"""

from esa_ray.spec import DataSpec, ModelSpec, QuantizeSpec, StudySpec

RULES = ("tacq", "grad_x_weight_abs", "fisher", "magnitude", "random")
KEPT = (0.001, 0.0035, 0.01)


def quantizations() -> tuple[QuantizeSpec, ...]:
    """Every share and rule at 3 bits, 0.35% at 2 bits, nothing kept, and smaller groups instead."""
    plain = {bits: QuantizeSpec().model_copy(update={"bits": bits}) for bits in (2, 3, 4, 8)}
    shares = [*((3, kept) for kept in KEPT), (2, 0.0035)]
    kept = [plain[b].model_copy(update={"kept": share, "keep_by": rule}) for b, share in shares for rule in RULES]
    return (*plain.values(), QuantizeSpec(bits=3, group_size=32), *kept)


def study(name: str = "quantization", model: str = "SmolLM2-135M-Instruct") -> StudySpec:
    """Twenty-five ways of rounding by two seeds, on two texts: 50 quantizations."""
    return StudySpec(
        name=name,
        model=ModelSpec(source=model),
        data=DataSpec(source="pydoc", calibration_windows=32, evaluation_windows=16, bos="always"),
        other_texts=(DataSpec(source="pysource", evaluation_windows=16, bos="always"),),
        scores=(),
        seeds=(1337, 123),
        compressions=quantizations(),
    )
