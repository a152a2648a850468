"""One injection: faults are drawn, pass through the protection, and become an edit of the model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from esa_ray.security.decoding import reading
from esa_ray.security.drawing import flips

if TYPE_CHECKING:
    from esa_ray.models.addressing import WeightTensor
    from esa_ray.perturb.edit import Edit
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
    stopped
        Whether an error was detected whose policy is to stop: there is no outcome.
    """

    edit: Edit | None
    columns: dict[str, Any]
    stopped: bool = False

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
    return Injection(None if stopped or not edit.applied.n_changed else edit, columns, stopped)
