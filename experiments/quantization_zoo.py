"""Hypothesis: gradients choose the weights to keep best in other architectures, too.

P5.1. The points of the experiment ``quantization`` on the families of ``pruning_zoo``. If it holds, at 3 bits and 0.35%
kept a rule by gradients has less excess NLL than magnitude and than every other rule in each family. What would speak
against it: small models trained on little text have no weights that stand out, so that it matters little which ones
are kept.
"""

from esa_ray.models.zoo.recipes import PREFIX, names
from esa_ray.spec import StudySpec
from experiments import quantization
from experiments.pruning_zoo import FAMILIES, SIZE, on_the_zoo


def studies() -> list[StudySpec]:
    """The quantization of each model: 50 quantizations."""
    return [on_the_zoo(quantization.study(name, f"{PREFIX}{name}")) for name in names(FAMILIES, [SIZE])]
