"""Hypothesis: what prunes SmolLM2 best prunes other architectures best, too.

P5.1. The points of the experiment ``pruning`` on three of the zoo's families, whose blocks are laid out differently:
attention before a gated MLP, both side by side on one input with q, k and v in one matrix, and a mixture of experts.
If it holds, the point that nobody has published has less excess NLL than magnitude and than the best published method
in every family, at every sparsity, in domain and out of it. What would speak against it: models that small, trained so
shortly, have little to lose; and experts see few tokens each. Train them first: ``esa zoo train --families
llama,neox,mixtral --sizes 1m``.
"""

from esa_ray.models.zoo.recipes import PREFIX, names
from esa_ray.spec import StudySpec
from experiments import pruning

FAMILIES, SIZE = ("llama", "neox", "mixtral"), "1m"


def on_the_zoo(study: StudySpec) -> StudySpec:
    """A study with more and longer windows: of the zoo's models every byte is a token, and they were trained on 256."""
    windows = {"window": 256, "evaluation_windows": 32, "batch_size": None}
    data = study.data.model_copy(update=windows | {"calibration_windows": 64})
    return study.replace(data=data, other_texts=tuple(o.model_copy(update=windows) for o in study.other_texts))


def studies() -> list[StudySpec]:
    """The pruning of each model: 93 prunings."""
    return [on_the_zoo(pruning.study(name, f"{PREFIX}{name}")) for name in names(FAMILIES, [SIZE])]
