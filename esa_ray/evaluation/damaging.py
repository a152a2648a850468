"""One model under damage: a cell's edit applied, measured and taken back, from the earliest block that it touches."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from esa_ray.evaluation import Intact, Outcome, continued, evaluate, loops
from esa_ray.evaluation.resuming import Resuming
from esa_ray.grid import Cell, continuation
from esa_ray.models.units import Units
from esa_ray.perturb.edit import planned
from esa_ray.perturb.sites import Sites
from esa_ray.scoring.chosen import chosen_and_known
from esa_ray.scoring.chosen_units import chosen_units_and_known, unit_of

if TYPE_CHECKING:
    from esa_ray.perturb.known import Known

#: Sets of weights that are known at a time, and how many weights there may be in all of them.
SETS, LARGEST = 8, 1 << 22


@dataclass(frozen=True)
class _Set:
    """The weights that a cell damages; its ranking is held so that no other one gets its ``id``."""

    ranking: pa.Table
    sites: Sites
    known: dict[str, Known]


@dataclass
class Damaging(Resuming):
    """Runs cells on a model, which is intact before and after each.

    ``head_stays`` promises that no cell touches the head, ``tail_stays`` that none touches anything after the last
    block; ``budget`` are the bytes that it may take above the weights (None: no limit).
    """

    head_stays: bool = True
    tail_stays: bool = False
    _sets: OrderedDict[tuple, _Set] = field(default_factory=OrderedDict, init=False, repr=False)
    _known_units: dict[str, Units] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def intact(self) -> Intact:
        """What the intact model predicts on the evaluation windows; first asked for while it is intact."""
        return Intact(
            self.model, self.windows.evaluation, self.data.batch_size, head_stays=self.head_stays,
            tail_stays=self.tail_stays,
        )  # fmt: skip

    def spare_memory(self) -> None:
        """Forget all hidden states of intact passes and all sets; from now on states of one block are kept."""
        super().spare_memory()
        self._sets.clear()

    def outcome(self, start: int | None = None, error_rate: float | None = None) -> Outcome:
        """Loss of the model as it is now, run from block ``start`` on."""
        resumable = self._resumable if start is not None else None
        return evaluate(
            self.model, self.windows.evaluation, self.data.batch_size, intact=self.intact, error_rate=error_rate,
            forward=(lambda number, _: resumable.logits(start, number)) if resumable else None,
        )  # fmt: skip

    def measure(self, start: int | None = None, error_rate: float | None = None) -> dict[str, Any]:
        """Outcome columns of the model as it is now, run from block ``start`` on."""
        outcome = self.outcome(start, error_rate)
        return vars(outcome) | {"loops": self._loops(outcome)}

    def baseline(self) -> dict[str, Any]:
        """Outcome columns of the intact model."""
        return vars(self.intact.outcome) | {"loops": self._intact_loops}

    @cached_property
    def _intact_loops(self) -> list[int] | None:
        return self._loops(self.intact.outcome)

    def unchanged(self) -> dict[str, Any]:
        """Outcome columns of a model none of whose weights changed: the intact one's, to the bit and without a pass."""
        return self.baseline() | {"kl": [0.0] * len(self.intact.outcome.nll)}

    def _loops(self, outcome: Outcome) -> list[int] | None:
        if not self.data.prompts or outcome.diverged:
            return None
        prompts = self.windows.evaluation[: self.data.prompts, : self.data.window // 2]
        return [int(loops(text)) for text in continued(self.model, prompts, continuation(self.data))]

    def _units(self, unit: str) -> Units:
        if unit not in self._known_units:
            self._known_units[unit] = Units(self.model, self.catalogue, unit)
        return self._known_units[unit]

    def _chosen(self, cell: Cell, ranking: pa.Table) -> tuple[Sites, dict[str, Known]]:
        """The weights of a cell: those of the last few sets are known, since a set is damaged in many ways."""
        key = (id(ranking), cell.group, cell.control_draw, cell.k, cell.part)
        if key not in self._sets:
            what, unit = (cell.group, cell.k, cell.part, cell.control_draw), unit_of(ranking)
            weights, known = (
                chosen_and_known(ranking, *what) if unit == "weight"
                else chosen_units_and_known(self._units(unit), ranking, *what)
            )  # fmt: skip
            self._sets[key] = _Set(ranking, Sites(self.catalogue, weights, intact=True), known)
        self._sets.move_to_end(key)
        mine = self._sets[key]
        while len(self._sets) > SETS or (self._sets and sum(s.sites.n for s in self._sets.values()) > LARGEST):
            self._sets.popitem(last=False)
        return mine.sites, mine.known

    def run(self, cell: Cell, ranking: pa.Table) -> dict[str, Any]:
        """Damage, measure, restore: the columns of what was done and what came of it."""
        weights, known = self._chosen(cell, ranking)
        assert self.intact  # measured before anything is damaged
        edit, start = planned(self.catalogue, weights, cell.perturbation, cell.draw, known), None
        if edit.applied.n_changed:
            start = self.prepared([self.catalogue[name] for name in weights])
            with edit.standing():
                found = self.measure(start, cell.early_stop)
        else:
            found = self.unchanged()
        # The edit has checked its restoration bit for bit, or raised.
        diverged = Outcome(found["nll"], found["tokens"], found["hits"]).diverged
        return vars(edit.applied) | found | {
            "windows": len(found["nll"]), "resumed_at": start, "restored": True,
            "status": "diverged" if diverged else "ok",
        }  # fmt: skip
