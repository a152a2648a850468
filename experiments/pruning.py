"""Hypothesis: SparseGPT's choice, refitted exactly, beats the best published pruning.

P5.1. The published methods (magnitude, Wanda, Wanda++, SparseGPT, OWL with SparseGPT) against a point of the same
product that nobody has published, as far as we know: SparseGPT chooses the mask, and each row that stays is then the
exact least-squares solution, which SparseGPT's one sweep only approaches. If it holds, it has at least 10% less excess
NLL than the best of Wanda, Wanda++, SparseGPT and OWL with SparseGPT at 60 and 70%, on the documentation that all are
calibrated on and on source code that none has seen; and at least 15% less than magnitude at every sparsity and at 2:4.
What would speak against it: the exact solution fits the calibration text better and other text worse.
"""

from esa_ray.spec import METHODS, DataSpec, ModelSpec, PruneSpec, StudySpec

SPARSITIES = (0.5, 0.6, 0.7)
PUBLISHED = ("magnitude", "wanda", "wanda++", "sparsegpt", "owl+sparsegpt")
#: SparseGPT's mask with the exact refit of each row.
OURS = (PruneSpec(score="obs", group="tensor", update="refit"),)


def prunings() -> tuple[PruneSpec, ...]:
    """Every method at every sparsity, and those that share it out evenly at 2:4 too."""
    methods = (*(METHODS[name] for name in PUBLISHED), *OURS)
    free = [method.model_copy(update={"sparsity": s}) for method in methods for s in SPARSITIES]
    two_of_four = [m.model_copy(update={"pattern": "2:4"}) for m in methods if m.allocation == "uniform"]
    return (*free, *two_of_four)


def study(name: str = "pruning", model: str = "SmolLM2-135M-Instruct") -> StudySpec:
    """Six methods at 50, 60 and 70%, five of them at 2:4, by two seeds, on two texts: 46 prunings."""
    return StudySpec(
        name=name,
        model=ModelSpec(source=model),
        data=DataSpec(source="pydoc", calibration_windows=32, evaluation_windows=16, bos="always"),
        other_texts=(DataSpec(source="pysource", evaluation_windows=16, bos="always"),),
        scores=(),
        seeds=(1337, 123),
        compressions=prunings(),
    )
