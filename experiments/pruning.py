"""Hypothesis: spreading sparsity by measured damage and refitting what stays beats the best published pruning.

P5.1. The published methods (magnitude, Wanda, Wanda++, SparseGPT, OWL with SparseGPT) against points of the
same product that nobody has published: other scores with the exact refit of each row, and sparsity shared out over
blocks by what pruning each of them costs. If it holds, one of the latter has at least 10% less excess NLL than the
best of Wanda, Wanda++, SparseGPT and OWL with SparseGPT at 60 and 70%, on the documentation that all are calibrated on
and on source code that none has seen; and all that look at activations have at least 15% less than magnitude. What
would speak against it: the score decides, and not the refit; or what is saved in domain is lost out of it.
"""

from esa_ray.spec import METHODS, DataSpec, ModelSpec, PruneSpec, StudySpec

SPARSITIES = (0.5, 0.6, 0.7)
PUBLISHED = ("magnitude", "wanda", "wanda++", "sparsegpt", "owl+sparsegpt")
#: Points of the product that aren't published, as far as we know.
OURS = (
    PruneSpec(score="act_mag", update="refit"),
    PruneSpec(score="regional", update="refit"),
    PruneSpec(score="regional", update="refit", allocation="damage"),
    PruneSpec(score="obs", group="tensor", update="sparsegpt", allocation="damage"),
)


def prunings() -> tuple[PruneSpec, ...]:
    """Every method at every sparsity, and those that share it out evenly at 2:4 too."""
    methods = (*(METHODS[name] for name in PUBLISHED), *OURS)
    free = [method.model_copy(update={"sparsity": s}) for method in methods for s in SPARSITIES]
    two_of_four = [m.model_copy(update={"pattern": "2:4"}) for m in methods if m.allocation == "uniform"]
    return (*free, *two_of_four)


def study() -> StudySpec:
    """Nine methods at 50, 60 and 70%, six of them at 2:4, by three seeds, on two texts: 99 prunings."""
    return StudySpec(
        name="pruning",
        model=ModelSpec(source="SmolLM2-135M-Instruct"),
        data=DataSpec(source="pydoc", calibration_windows=32, evaluation_windows=16, bos="always"),
        other_texts=(DataSpec(source="pysource", evaluation_windows=16, bos="always"),),
        scores=(),
        seeds=(1337, 123, 999),
        compressions=prunings(),
    )
