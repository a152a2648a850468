"""The course of a tuning: what is trained, protected and damaged, stretches of steps, and the looks between them."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from esa_ray.applications.calibrated import Calibrated
from esa_ray.applications.tuning.adapters import adapters
from esa_ray.applications.tuning.choosing import Eligible, Places, critical, trained_by
from esa_ray.applications.tuning.moved import moved
from esa_ray.applications.tuning.outcome import Look, Tuned
from esa_ray.applications.tuning.protecting import Guard, NoInformationError, guard_of, over_mean
from esa_ray.applications.tuning.run import Run
from esa_ray.applications.tuning.trained import Trained, Weights
from esa_ray.applications.tuning.wearing import Wear
from esa_ray.errors import EsaError
from esa_ray.models.slots import input_device
from esa_ray.scoring.uses import uses
from esa_ray.spec.scores import grouped

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import PreTrainedModel

    from esa_ray.applications.kept import Kept
    from esa_ray.models.addressing import Catalogue, WeightTensor
    from esa_ray.spec.tuning import TuneSpec

#: After so many steps, and at every look, the state is offered to be stored.
CHECKPOINT = 50


class Course:
    """One tuning, between what is asked for and what is told of it."""

    def __init__(
        self,
        model: PreTrainedModel,
        catalogue: Catalogue,
        spec: TuneSpec,
        seed: int,
        train: np.ndarray,
        source: Calibrated,
        target: Calibrated,
        kept: Kept,
        was: Mapping[str, Any] | None,
        learning: Places | None = None,
        worn: Places | None = None,
    ):
        self.model, self.catalogue, self.spec, self.seed = model, catalogue, spec, seed
        self.source, self.target, self.kept = source, target, kept
        self._learning, self._worn = learning, worn
        self.eligible = Eligible(catalogue, spec.components)
        for tensor in catalogue.tensors:
            if tensor.offloaded:
                raise EsaError(
                    f"{tensor.name} is offloaded, and only a model that is all in memory can be tuned; take a larger "
                    "device, or a smaller --model"
                )
        damaged = self._damaged(was)
        self.trained = self._trained(was)
        self.guard = self._guarded(was)
        wear = Wear(catalogue, damaged, spec.damage, seed) if spec.damage else None
        self.wear = wear
        scale = 1.0 if was else self._scale(train)
        self.run = Run(model, spec, seed, train, self.trained, self.guard, wear, scale, target.batch_size)
        if was:
            self.run.resume(was["run"])

    def _trained(self, was: Mapping[str, Any] | None) -> Trained:
        if self.spec.arm == "lora":
            return adapters(
                self.model, self.eligible, self.eligible.counted(self.spec.fraction, "--fraction"), self.seed
            )
        places = _places(was["places"], self.catalogue) if was else self._learning
        places = trained_by(self.spec, self.seed, self.eligible, self.source, self.target) if places is None else places
        return Weights(places, self.kept)

    def _damaged(self, was: Mapping[str, Any] | None) -> Places:
        """The weights that are damaged on the way: those with the largest score on the source."""
        if self.spec.damage is None:
            return {}
        if was:
            return _places(was["damaged"], self.catalogue)
        if self._worn is not None:
            return self._worn
        if self.spec.damaged > self.eligible.n:
            names = ",".join(grouped(self.spec.components))
            raise EsaError(
                f"--damaged {self.spec.damaged:,} is more than the {self.eligible.n:,} weights of {names}; lower it"
            )
        return critical(self.eligible, self.source, self.spec.score, self.spec.damaged)

    def _guarded(self, was: Mapping[str, Any] | None) -> Guard:
        if not isinstance(self.trained, Weights):
            return Guard(self.trained.masters)
        guard = guard_of(self.spec.protect, self.spec.dose, self.trained, self.kept)
        if was:
            guard.resume(was["guard"])
        elif self.spec.dose is not None:
            guard.measure(self._fisher(self.source))
        return guard

    def _fisher(self, text: Calibrated) -> list[Tensor]:
        """The Fisher information of what is trained on a text, over its mean."""
        assert isinstance(self.trained, Weights)
        text.scores("grad_squared", self.eligible.tensors)

        def of(tensor: WeightTensor) -> Tensor:
            return text.statistic("gradient_square", tensor).to(tensor.parameter.device).reshape(-1)

        return over_mean(self.trained.of(of))

    def _scale(self, train: np.ndarray) -> float:
        """What to multiply the loss by: 1 but for float16."""
        if not any(tensor.dtype == torch.float16 for tensor in self.eligible.tensors):
            return 1.0
        windows_NT = torch.as_tensor(train, device=input_device(self.model))
        return uses(self.model, self.eligible.tensors, windows_NT).scale

    def go(self, look: Callable[[Look], None], checkpoint: Callable[[Callable[[], bytes]], None] | None) -> None:
        """Take all steps that are left."""
        spec, run = self.spec, self.run
        every = (range(n, spec.steps, n) for n in (CHECKPOINT, spec.rescore) if n)
        for stop in sorted({*spec.looked, *(step for steps in every for step in steps)}):
            if stop <= run.step:
                continue
            run.until(stop)
            last = run.diverged or stop == spec.steps
            if spec.rescore and not last and stop % spec.rescore == 0:
                last = run.diverged = not self._measured_anew()
            if last or stop in spec.looked:
                self._look(look, last)
            if last:
                return
            if checkpoint and (stop in spec.looked or stop % CHECKPOINT == 0):
                checkpoint(self.state)

    def _measured_anew(self) -> bool:
        """Measure the Fisher information on the model as it is now; whether it tells the weights apart still.

        Where it doesn't, training went astray: the loss may have been finite so far.
        """
        text = self.source
        now = Calibrated(
            self.model, self.catalogue, text.windows, batch_size=text.batch_size, memory_budget=text.memory_budget
        )
        try:
            self.guard.measure(self._fisher(now))
        except NoInformationError:
            return False
        return True

    def _look(self, look: Callable[[Look], None], last: bool) -> None:
        self.trained.show(self.kept)
        look(Look(self.run.step, self.run.train_nll, self.run.diverged, last))
        self.run.losses.clear()
        if not last:
            self.trained.go_on(self.kept)

    def state(self) -> bytes:
        """All that an interrupted tuning goes on from."""
        found = {
            "asked": asked(self.spec, self.seed), "run": self.run.state(), "guard": self.guard.state(),
            "places": self.trained.places(),
            "damaged": {t.name: at for t, at in self.wear.places.items()} if self.wear else {},
        }  # fmt: skip
        buffer = io.BytesIO()
        torch.save(found, buffer)
        return buffer.getvalue()

    def outcome(self) -> Tuned:
        """What was done."""
        blocks, components = moved(self.eligible, self.kept, self.catalogue.layers)
        return Tuned(
            n_weights=self.eligible.n, trainable=self.trained.count - self.guard.held, rank=self.trained.rank,
            steps=self.run.step, diverged=self.run.diverged, n_changed=self.kept.n_changed,
            delta_norm=self.kept.delta_norm, block_moved=blocks, moved_components=list(components),
            component_moved=list(components.values()),
        )  # fmt: skip


def asked(spec: TuneSpec, seed: int) -> str:
    """What a state belongs to."""
    return f"{spec.model_dump_json()}, seed {seed}"


def _places(stored: Mapping[str, Tensor | None], catalogue: Catalogue) -> Places:
    return {catalogue[name]: at for name, at in stored.items()}
