"""Injections: faults are drawn, pass through the protection, and become edits of the model; and flips one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from esa_ray.applications.tuning.choosing import scores_by
from esa_ray.errors import EsaError
from esa_ray.scoring.strata import Range, ranges
from esa_ray.security.decoding import Counts, reading
from esa_ray.security.drawing import flips
from esa_ray.security.layout import by_tensor
from esa_ray.security.numbers import bit_class
from esa_ray.security.rotation import reflected

if TYPE_CHECKING:
    from esa_ray.applications.calibrated import Calibrated
    from esa_ray.models.addressing import WeightTensor
    from esa_ray.perturb.edit import Edit
    from esa_ray.scoring.scores import Scores
    from esa_ray.security.memory import Memory
    from esa_ray.security.protection import Protection
    from esa_ray.spec.security import FaultSpec


@dataclass(frozen=True)
class Injection:
    """What faults do to a model.

    Parameters
    ----------
    edit
        New values, not standing yet; None where no weight reads otherwise, and where the model is stopped.
    columns
        What its row says of it (:data:`esa_ray.schema.FAULTS`).
    """

    edit: Edit | None
    columns: dict[str, Any]

    @property
    def tensors(self) -> tuple[WeightTensor, ...]:
        """The tensors that are written."""
        return tuple(t for write in (self.edit.writes if self.edit else ()) for t in write.group.tensors)


def inject(memory: Memory, protection: Protection, spec: FaultSpec, seed: int, repeat: int) -> Injection:
    """The ``repeat``-th injection of a fault into an entered memory.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from esa_ray.models.addressing import catalogue
    >>> from esa_ray.security.memory import Memory
    >>> from esa_ray.security.protection import Protection
    >>> from esa_ray.spec.security import FaultSpec
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    >>> spec = FaultSpec(fault="burst", events=1, burst=2, protect="secded")
    >>> with Memory(model, catalogue(model), spec) as memory:
    ...     columns = inject(memory, Protection(memory), spec, seed=0, repeat=0).columns
    >>> columns["n_flips"], columns["n_detected"]
    (2, 1)
    """
    places = flips(spec, protection, seed, repeat)
    found = reading(protection, places)
    stopped = protection.coded and spec.policy == "stop" and found.counts.n_detected > 0
    edit = memory.edit(found.address, found.codes)
    columns = {
        "repeat": repeat, "n_flips": len(places), **asdict(found.counts),
        "n_changed": edit.applied.n_changed, "delta_norm": edit.applied.delta_norm,
    }  # fmt: skip
    return Injection(None if stopped or not edit.applied.n_changed else edit, columns)


def single(
    memory: Memory, spec: FaultSpec, seed: int, bit: int, repeats: range, calibrated: Calibrated
) -> Iterator[Injection]:
    """Flips of one bit, each alone: some of the ``repeats`` of every component and range of the score's quantiles.

    Weights are drawn of each range without replacement, the same ones for every bit and dtype; a range with fewer
    weights gives all it has. Called before the memory is entered, since scores and gradients are of the intact model;
    the flips themselves are made one by one, of the entered memory. Their first-order change is g·Δw with the intact
    model's gradient, in nats a token of the calibration windows; null where Δw is infinite or NaN.

    Raises
    ------
    EsaError
        If the dtype has no such bit.
    """
    if not 0 <= bit < memory.bits:
        raise EsaError(f"a weight in {memory.dtype} has the bits 0 to {memory.bits - 1}; there is no bit {bit}")
    n = max(spec.repeats, repeats.stop)
    key = ("single", seed, spec.score, n)
    if key not in memory.remembered:
        memory.remembered[key] = _drawn(memory, spec.score, seed, n, calibrated)
    return _flips(memory, bit, repeats, memory.remembered[key])


def _drawn(memory: Memory, score: str, seed: int, n: int, calibrated: Calibrated) -> list[tuple[Range, np.ndarray]]:
    """At most n weights of every component and range, and the loss's gradient at each, nats a token."""
    tensors, components = memory.tensors, memory.spec.components
    scores = scores_by(score, calibrated, tensors, components)
    found = ranges(scores, score, n, seed=seed, stream="single", components=components)
    derivatives = calibrated.scores("grad_x_weight", tensors)
    return [(each, _gradient(memory, derivatives, each)) for each in found]


def _gradient(memory: Memory, scores: Scores, drawn: Range) -> np.ndarray:
    found = np.full(len(drawn.flat), np.nan)
    for index, mine in by_tensor(drawn.tensors):
        flat, stretch = drawn.flat[mine], memory.held[index].stretch
        # Of a reflected weight the derivative is made of those of its row.
        rows_LC = stretch.of_lines(stretch.line(flat)) if memory.held[index].reflected else flat[:, None]
        gradient = scores.signed("gradient", index, torch.from_numpy(rows_LC.ravel()))
        if gradient is not None:
            by_read_LC = gradient.double().cpu().view(rows_LC.shape)
            by_stored_LC = reflected(by_read_LC) if memory.held[index].reflected else by_read_LC
            found[mine] = by_stored_LC.numpy()[rows_LC == flat[:, None]]
    return found


def _flips(memory: Memory, bit: int, repeats: range, drawn: list[tuple[Range, np.ndarray]]) -> Iterator[Injection]:
    for each, gradient in drawn:
        for repeat in repeats[: max(0, len(each.flat) - repeats.start)]:
            tensor, flat = memory.tensors[int(each.tensors[repeat])], each.flat[repeat : repeat + 1]
            columns = {"repeat": repeat, "stratum": each.stratum, "population": each.population}
            yield _flip(memory, bit, tensor, flat, columns, float(gradient[repeat]))


def _flip(
    memory: Memory, bit: int, tensor: WeightTensor, flat: np.ndarray, columns: dict[str, Any], gradient: float
) -> Injection:
    address = memory.address(tensor.name, flat)
    before = memory.codes(address)
    edit = memory.edit(address, before ^ np.uint64(1 << bit))
    weight, damaged = (float(memory.values(address, codes)[0]) for codes in (before, edit.codes))
    predicted = gradient * (damaged - weight)
    columns |= {
        "bit": bit, "bit_class": bit_class(memory.dtype, bit), "tensor": tensor.name, "layer": tensor.layer,
        **_where(tensor, flat), "weight": weight, "damaged": damaged,
        "predicted": predicted if math.isfinite(predicted) else None, "n_flips": 1, **asdict(Counts(n_undetected=1)),
        "n_changed": edit.applied.n_changed, "delta_norm": edit.applied.delta_norm,
    }  # fmt: skip
    return Injection(edit if edit.applied.n_changed else None, columns)


def _where(tensor: WeightTensor, flat: np.ndarray) -> dict[str, Any]:
    where = tensor.locate(flat)
    return {"component": where["component"][0], "expert": where["expert"][0]} | {
        axis: int(where[axis][0]) for axis in ("row", "col")
    }
