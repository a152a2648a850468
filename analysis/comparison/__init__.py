"""Many models at once: how quantities move with size, and what tells architectures apart."""

from analysis.comparison.architecture import kinds_compared, over_families, sublayers, within_models
from analysis.comparison.experts import expert_use, experts
from analysis.comparison.fingerprints import features, grouped, matrix, robustness, told_apart
from analysis.comparison.laws import families, scaling
from analysis.comparison.loading import Comparison, compare
from analysis.comparison.prediction import predictions
from analysis.comparison.quantities import quantities
from analysis.comparison.verdicts import comparison_verdicts

__all__ = [
    "Comparison", "compare", "comparison_verdicts", "expert_use", "experts", "families", "features", "grouped",
    "kinds_compared", "matrix", "over_families", "predictions", "quantities", "robustness", "scaling", "sublayers",
    "told_apart", "within_models",
]  # fmt: skip
