"""Hypothesis: what weights cost goes with the sinks that their damage takes, and spikes can go where sinks stay.

P5.3. Some 300 leading weights of SmolLM2-135M and of three architectures of the zoo are set to zero one at a time,
beside matched ones, and attention is seen in every block and head. If the hypothesis holds, the rise of the loss and
the change of the sink rate correlate beyond what the change of the logits explains (partial Spearman, its interval
above 0), among leading weights and not among matched ones. Sun et al. (arXiv:2603.05498) say that spikes and sinks are
separable: then there are weights whose damage takes spikes and leaves sinks, and others that take sinks and leave
spikes. What would speak against it: any large change of the logits moves attention as much, or the two always go
together.
"""

from esa_ray.spec import StudySpec
from experiments.roles import LARGE, MODELS, study

#: More weights than roles are asked of: correlations need them, and attention costs one pass a weight.
TOP = 300


def studies() -> list[StudySpec]:
    """A study of each model: two roles, and attention."""
    return [study(model, top=TOP, seeds=(1337,), roles=("spike", "sink")) for model in (LARGE, *MODELS)]
