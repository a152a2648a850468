"""An attack, flip by flip, until the model collapses; and its state, from which another process goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from esa_ray.errors import EsaError
from esa_ray.security.attack.guided import Guided
from esa_ray.security.attack.rows import flipped, measured, vocabulary
from esa_ray.security.attack.unguided import Among, Anywhere, Signs
from esa_ray.security.attack.victim import Victim
from esa_ray.spec.security import CONFINED, GUIDED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from esa_ray.evaluation import Outcome
    from esa_ray.security.attack.moves import Arm, Move
    from esa_ray.security.memory import Memory
    from esa_ray.security.protection import Protection
    from esa_ray.spec.security import AttackSpec

Report = Callable[[], "Outcome"]


def attack(
    model: PreTrainedModel,
    memory: Memory,
    protection: Protection,
    spec: AttackSpec,
    seed: int,
    search: np.ndarray | None = None,
    selection: np.ndarray | None = None,
    *,
    report: Report,
    within: Mapping[str, np.ndarray] | None = None,
    state: bytes | None = None,
    checkpoint: Callable[[Callable[[], bytes]], None] | None = None,
    batch_size: int = 8,
) -> Iterator[dict[str, Any]]:
    """Flip bits of stored weights, one after the other, until the model collapses or the budget is spent.

    It has collapsed once its loss on the reported windows is that of guessing, ln V nats a token with V tokens that it
    tells apart, or more, or isn't finite. Every step is a function of the flips before it, so an attack that was
    interrupted goes on as it would have. At the end, or where the iterator is closed, all flips are taken back, bit for
    bit, and ``memory`` stands as before.

    Parameters
    ----------
    memory
        Stands in the model for as long as the iterator lives.
    search, selection
        Windows (N, T) and (M, T) that guided arms look at, integers; no one of them is in both, or is reported on.
    report
        Measures the model as it stands.
    within
        The weights that a confined arm may flip (:func:`esa_ray.security.attack.confined`), flat indices by tensor.
    state
        What an interrupted attack stored last; only the rows that come after it are made.
    checkpoint
        Called after each row with what makes the state.

    Yields
    ------
    Columns of ``schema.ATTACKS`` that say what a step did: a row for the model as it is stored, then one a flip.

    Raises
    ------
    EsaError
        If the state is of another attack, or the model gives no gradients.
    ValueError
        If a confined arm isn't told its weights, or a guided one its windows.
    """
    with Victim(memory, protection, spec.threat) as victim:
        arm = _arm(model, victim, spec, seed, search, selection, within, batch_size)
        course = _Course(victim, arm, spec, report, vocabulary(model))
        rows = course.rows() if state is None else course.resumed(state)
        for row in rows:
            yield row
            if checkpoint:
                checkpoint(course.state)


class _Course:
    """The steps of one attack so far."""

    def __init__(self, victim: Victim, arm: Arm, spec: AttackSpec, report: Report, words: int):
        self._victim, self._arm, self._spec, self._report, self._words = victim, arm, spec, report, words
        self._made: list[tuple[int, int]] = []
        self._spent = 0
        self._next: Move | None = None

    def rows(self) -> Iterator[dict[str, Any]]:
        """From the model as it is stored."""
        yield self._looked({"step": 0, "bits_spent": 0})
        yield from self._rest()

    def resumed(self, state: bytes) -> Iterator[dict[str, Any]]:
        """From a state on."""
        told = json.loads(state)
        for address, bit in told["flips"]:
            flips = self._victim.allowed(np.array([address]), np.array([bit]))
            if not len(flips):
                raise EsaError("the checkpoint is of another attack; delete the study's folder unfinished")
            self._take(flips[0])
        self._next = None if told["ended"] else self._arm.next()
        yield from self._rest()

    def state(self) -> bytes:
        """All that the next step depends on beside the model and what was asked for."""
        return json.dumps({"flips": self._made, "ended": self._next is None}).encode()

    def _rest(self) -> Iterator[dict[str, Any]]:
        while self._next is not None:
            move = self._next
            self._take(move.flip)
            self._arm.committed(move)
            done = flipped(move, *self._victim.at(move.flip.address), self._spec.dtype)
            yield self._looked(done | {"step": len(self._made), "bits_spent": self._spent})

    def _take(self, flip: Any) -> None:
        self._victim.commit(flip)
        self._made.append((flip.address, flip.bit))
        self._spent += flip.price

    def _looked(self, done: dict[str, Any]) -> dict[str, Any]:
        """A row of the model as it stands, and whether it is the last one: what comes next is chosen before."""
        found = measured(self._report(), self._words)
        ended = found["collapsed"] or len(self._made) >= self._spec.budget
        self._next = None if ended else self._arm.next()
        return done | found | {"last": self._next is None}


def _arm(
    model: PreTrainedModel, victim: Victim, spec: AttackSpec, seed: int, search: np.ndarray | None,
    selection: np.ndarray | None, within: Mapping[str, np.ndarray] | None, batch_size: int,
) -> Arm:  # fmt: skip
    if (within is None) == (spec.arm in CONFINED):
        raise ValueError(f"the arm {spec.arm} " + ("needs" if within is None else "takes no") + " weights, within=")
    if spec.arm in GUIDED:
        if search is None or selection is None:
            raise ValueError(f"the arm {spec.arm} needs windows to search and to select on")
        return Guided(model, victim, spec, search, selection, within, batch_size)
    if within is not None:
        return Among(victim, spec, seed, within)
    return Anywhere(victim, spec, seed) if spec.arm == "random" else Signs(victim, spec)
