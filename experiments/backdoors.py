"""Hypothesis: the sensitivity of a model's weights betrays a backdoor, however it was inserted.

P5.2. Seven populations of 36 models are made of each of two architectures of the zoo. Three hold a backdoor: by
training on few poisoned windows, by an edit of rank one, and by training of the 3% most sensitive weights alone. Four
hold none: clean ones, and ones that memorised a rare phrase, inserted in each of the same three ways, so that it isn't
the way that is detected. All models of one number share parent, steps, rate, trigger and target. A detector sees
statistics of the weights and of their sensitivity on clean text, with and without the model before. If the hypothesis
holds, it has an AUROC of at least 0.95 on insertions that it was trained on and of 0.85 on one that it never saw, and
the statistics of sensitivity add to those of spectra. What would speak against it: a model that memorised a phrase
looks the same, or each insertion leaves a trace of its own.

Against the first five backdoors of each insertion eight mitigations are tried, with as many random weights beside every
choice of weights. Triggers and targets are harmless strings, and the models are made here of docstrings.
"""

from esa_ray.models.zoo.recipes import PREFIX
from esa_ray.spec import DataSpec, MitigationSpec, ModelSpec, Population, StudySpec

BASES = ("zoo:llama-0.3m", "zoo:neox-0.3m")
#: A few more than the 30 of each kind that say anything, as not every insertion succeeds.
MODELS, PARENTS, MITIGATED = 36, 10, 5
TEXT = DataSpec(source="pydoc", calibration_windows=32, evaluation_windows=32)
#: Shares of the weights that a mitigation gives their old values, and that an insertion may not move.
RESET, FROZEN = (0.001, 0.01, 0.1), 0.1


def mitigations() -> tuple[MitigationSpec, ...]:
    """What is tried, every choice of weights beside as many random ones."""
    trained = (
        MitigationSpec(kind="fine-tuning"), MitigationSpec(kind="fine-tuning", steps=16),
        MitigationSpec(kind="fine-pruning", share=0.2),
    )  # fmt: skip
    resets = tuple(
        MitigationSpec(kind=kind, share=share)
        for kind in ("reset-moved", "reset-dormant", "reset-random") for share in RESET
    )  # fmt: skip
    frozen = tuple(MitigationSpec(kind=kind, share=FROZEN) for kind in ("freeze-critical", "freeze-random"))
    return (*trained, *resets, *frozen)


def studies() -> list[StudySpec]:
    """A population of each base: 252 models, and 190 mitigations."""
    asked = Population(models=MODELS, parents=PARENTS, mitigations=mitigations(), mitigated=MITIGATED)
    return [
        StudySpec(name=base.removeprefix(PREFIX), model=ModelSpec(source=base), data=TEXT, scores=(), population=asked)
        for base in BASES
    ]
