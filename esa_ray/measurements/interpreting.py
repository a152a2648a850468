"""What a worker keeps to tell roles, attention and facts: benches of its intact model, and damage of its weights."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from esa_ray import data
from esa_ray.errors import EsaError
from esa_ray.interpret.attention import Attending
from esa_ray.interpret.damage import Damage, SameSetError
from esa_ray.interpret.facts.prompts import fact_prompts
from esa_ray.interpret.facts.sensitivity import sensitivities
from esa_ray.interpret.roles.bench import Bench
from esa_ray.interpret.subjects import subjects
from esa_ray.models.load import load_tokenizer
from esa_ray.spec import FactSpec, RoleSpec

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from esa_ray.interpret.facts.prompts import FactPrompts
    from esa_ray.interpret.subjects import Subject
    from esa_ray.measurements.worker import Worker
    from esa_ray.perturb.edit import Applied


class Interpreting:
    """Benches of a worker's model, made while it is intact; that of the last seed is kept."""

    def __init__(self, worker: Worker):
        self.worker = worker
        self.damage = Damage(worker.model, worker.catalogue)
        self.bench = lru_cache(maxsize=1)(self._bench)
        self._again = lru_cache(maxsize=None)(self._named_again)
        self.sensitivity = lru_cache(maxsize=4)(self._sensitivity)

    @property
    def roles(self) -> RoleSpec:
        """What is asked of roles."""
        assert self.worker.spec.roles
        return self.worker.spec.roles

    @property
    def windows(self) -> np.ndarray:
        """The evaluation windows (N, T) that roles are tested on."""
        return self.worker.windows.evaluation[: self.roles.windows]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's."""
        return load_tokenizer(self.worker.source)

    @cached_property
    def opening(self) -> list[int]:
        """The tokens that windows begin with, and so do prompts."""
        return data.opening(self.worker.spec.data, self.tokenizer)

    @cached_property
    def attending(self) -> Attending | str:
        """Attention of the intact model; or why it can't be seen."""
        try:
            worker = self.worker
            return Attending(worker.model, self.windows, worker.spec.data.batch_size, hold=worker.damaging.hold)
        except EsaError as error:
            return str(error)

    def under(self, subject: Subject) -> AbstractContextManager[Applied]:
        """Damage of a subject; only the model tells which weights are of one head, and which of one neuron.

        Raises
        ------
        SameSetError
            If it is a set that has the very weights of one before it.
        """
        if subject.name in self._again(subject.seed, subject.unit, subject.edit.label):
            same = self._again(subject.seed, subject.unit, subject.edit.label)[subject.name]
            raise SameSetError(f"it is the same {subject.unit} as {same}")
        return self.damage.of(subject)

    def _named_again(self, seed: int, unit: str, edit: str) -> dict[str, str]:
        worker = self.worker
        mine = [s for s in subjects(worker.spec, worker.store) if (s.seed, s.unit, s.edit.label) == (seed, unit, edit)]
        return {subject.name: name for subject, name in self.damage.again(mine).items()}

    def spare_memory(self) -> None:
        """Forget what is kept; from now on hidden states of one block are kept."""
        self.bench.cache_clear()
        self.__dict__.pop("attending", None)

    def _bench(self, seed: int) -> Bench:
        worker = self.worker
        mine = [each for each in subjects(worker.spec, worker.store) if each.seed == seed]
        return Bench(
            worker.model, worker.catalogue, self.windows, worker.windows.calibration(seed), self.roles, seed,
            worker.spec.data.batch_size, self.damage.together(mine), self._facts(seed), self.tokenizer,
            worker.damaging.hold,
        )  # fmt: skip

    def _facts(self, seed: int) -> FactPrompts | None:
        """Prompts of facts that the model knows, where the role is asked for."""
        if "fact" not in self.roles.roles:
            return None
        spec = self.worker.spec.facts or FactSpec()
        return fact_prompts(
            self.worker.model, self.tokenizer, spec, limit=self.roles.windows, seed=seed, opening=self.opening
        )

    def _sensitivity(self, seed: int) -> dict[tuple[int, str], float]:
        return sensitivities(self.worker.calibrated(seed))
