"""The models of a population on a worker's model: made, measured and taken back; what units share is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from esa_ray.evaluation import Outcome, evaluate
from esa_ray.security.backdoors import made, mitigated, parent_weights, prompts, standing, success
from esa_ray.security.detection import features
from esa_ray.spec import Member

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from esa_ray.applications.kept import Kept
    from esa_ray.measurements.worker import Worker
    from esa_ray.security.backdoors import Made, Success
    from esa_ray.security.detection import Feature
    from esa_ray.spec import MitigationSpec


@dataclass(frozen=True)
class Judged:
    """What a model makes of the evaluation windows, and how often its trigger, or its phrase, does what it should."""

    outcome: Outcome
    success: Success

    @property
    def columns(self) -> dict[str, Any]:
        """What a row says of the loss."""
        outcome = self.outcome
        status = "diverged" if outcome.diverged else "ok"
        return {"nll": outcome.nll, "tokens": outcome.tokens, "hits": outcome.hits, "status": status}


class Members:
    """Models of a population on a worker's model, which has the same bits after each call as before it.

    The last few that were made or judged are kept: all of one number are compared with its clean one.
    """

    def __init__(self, worker: Worker):
        self.worker, self.model, self.catalogue = worker, worker.model, worker.catalogue
        self.made = lru_cache(maxsize=4)(made)
        self.judged = lru_cache(maxsize=4)(self._judged)
        self.parent = lru_cache(maxsize=2)(self._read_parent)
        self.parent_nll = lru_cache(maxsize=32)(self._judge_parent)

    @property
    def windows(self) -> np.ndarray:
        """Clean windows (N, T) of who holds a model and doesn't know its trigger."""
        return self.worker.windows.calibration(self.worker.spec.seeds[0])

    @cached_property
    def n_weights(self) -> int:
        """Weights of the model."""
        return sum(tensor.size for tensor in self.catalogue.tensors)

    @contextmanager
    def standing(self, member: Member) -> Iterator[Kept]:
        """The model reads a member's weights, for the length of a ``with`` block; what that changes of its parent's."""
        weights = self.made(member).weights
        with (
            standing(self.model, self.catalogue, self.parent(member.base, member.seed)),
            standing(self.model, self.catalogue, weights) as kept,
        ):
            yield kept

    def success(self, member: Member, of: Made) -> Success:
        """How often a member does what the trigger and the phrase of another are to bring about."""
        with self.standing(member):
            return success(self.model, of, prompts())

    def features(self, member: Member) -> list[Feature]:
        """What is measured of a member without knowing its trigger, by its parent where that tells."""
        parent = self.parent(member.base, member.seed)
        with self.standing(member):
            return features(self.model, self.catalogue, self.windows, reference=parent, batch_size=self._batch)

    def mitigated(self, member: Member, how: MitigationSpec) -> tuple[Judged, int | None]:
        """A member after a mitigation, and the weights or neurons that this silenced, reset or froze, if it did."""
        found = mitigated(member, how, self.windows)
        with standing(self.model, self.catalogue, found.weights):
            return self._now(self.made(member)), found.n_reset

    def spare_memory(self) -> None:
        """Forget what is kept."""
        for kept in (self.made, self.judged, self.parent):
            kept.cache_clear()

    @property
    def _batch(self) -> int:
        return self.worker.spec.data.batch_size

    def _judged(self, member: Member) -> Judged:
        with self.standing(member):
            return self._now(self.made(member))

    def _now(self, of: Made) -> Judged:
        outcome = evaluate(self.model, self.worker.windows.evaluation, self._batch)
        return Judged(outcome, success(self.model, of, prompts()))

    def _read_parent(self, base: str, seed: int) -> dict[str, Tensor]:
        return parent_weights(Member(base=base, kind="clean", number=0, seed=seed))

    def _judge_parent(self, base: str, seed: int) -> list[float]:
        with standing(self.model, self.catalogue, self.parent(base, seed)):
            return evaluate(self.model, self.worker.windows.evaluation, self._batch).nll
