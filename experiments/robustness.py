"""Hypothesis: a model that is tuned while its critical weights are damaged learns to do without them.

P5.1. Three architectures of the zoo are tuned on further docstrings, of the text that they were trained on, without
damage and with it: in every step the 512 most sensitive weights have their signs flipped at random, are dropped with
probability ½, or have noise that is as large as they are. Every tuned model is saved, and its own most
sensitive weights are then flipped, from 16 to 16,384 of them, beside the model as it was. If the hypothesis holds, the
number of flips at half collapse is at least doubled, against the model as it was and the one tuned without damage, at
no more than 0.02 nats of loss intact. What would speak against it: the tuned model hangs on other weights instead,
which a set chosen anew finds.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esa_ray.measurements.tunings import Tuning, saved_at
from esa_ray.models.zoo.recipes import PREFIX
from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, ScoreSpec, StudySpec, TuneSpec
from experiments.tuning import MODELS, SEEDS

TEXT = DataSpec(source="pydoc", calibration_windows=32, evaluation_windows=32)
DAMAGES = (None, "bit_flip-sign-0.02", "bit_flip-sign-0.1", "bit_flip-sign-0.5", "dropout-0.5", "gauss_noise-1")
DAMAGED, RATE, STEPS = 512, 1e-3, 200
FLIPPED = (16, 64, 256, 1024, 2048, 4096, 8192, 16384)


def tunings() -> tuple[TuneSpec, ...]:
    """Full tuning without damage, and with each kind of it."""
    given: list[dict[str, Any]] = [
        {"damage": PerturbSpec.parse(damage), "damaged": DAMAGED} if damage else {} for damage in DAMAGES
    ]
    return tuple(TuneSpec(learning_rate=RATE, steps=STEPS, **each) for each in given)


def studies() -> list[StudySpec]:
    """Each model tuned on its own text in six ways by three seeds, and every one of them saved."""
    return [
        StudySpec(
            name=f"{model.removeprefix(PREFIX)}-tuned",
            model=ModelSpec(source=model),
            data=TEXT,
            target=TEXT.model_copy(update={"calibration_windows": 256}),
            scores=(),
            seeds=SEEDS,
            tunings=tunings(),
            save_models=f"models/{model.removeprefix(PREFIX)}",
        )
        for model in MODELS
    ]


def afterwards(done: Sequence[StudySpec]) -> list[StudySpec]:
    """Each model as it was, and every tuned model that was saved, under the same flips: 24 cells."""
    found = []
    for spec in done:
        name = spec.name.removesuffix("-tuned")
        found.append(flipped(name, spec.model.source))
        for how in spec.tunings:
            for seed in spec.seeds:
                place = saved_at(spec, Tuning(how=how, seed=seed))
                if place and Path(place).is_dir():  # of a training that diverged there is no model
                    found.append(flipped(f"{name}-{Path(place).name}", place))
    return found


def flipped(name: str, source: str) -> StudySpec:
    """Growing sets of a model's most sensitive weights with their signs flipped, by three seeds."""
    return StudySpec(
        name=name,
        model=ModelSpec(source=source),
        data=TEXT,
        scores=(ScoreSpec(metric="grad_x_weight_abs", mode="global"),),
        topk=FLIPPED,
        seeds=SEEDS,
        perturbations=(PerturbSpec(kind="sign_flip", strength=1.0),),
    )
