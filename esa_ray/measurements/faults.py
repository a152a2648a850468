"""Faults: stored bits that flip, many times over, and what the model then makes of the evaluation windows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from esa_ray.errors import EsaError
from esa_ray.grid import Fingerprints
from esa_ray.identity import IDENTITY_VERSION, digest
from esa_ray.measurements.memory_cost import cost_of_faults
from esa_ray.measurements.registry import MEASUREMENTS, Unit
from esa_ray.measurements.swept import Swept
from esa_ray.spec import STORED, FaultSpec, Spec
from esa_ray.spec.security import stored_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from esa_ray.measurements.cost import Cost
    from esa_ray.measurements.worker import Worker
    from esa_ray.spec import StudySpec
    from esa_ray.storage.store import Store

#: Injections that are measured together and stored in one file; of single flips, those of each stratum.
PACKET, PACKET_OF_SINGLE = 25, 5


class Packet(Spec):
    """One unit: ``count`` injections of a fault by a seed, the ``packet``-th so many; of single flips, of one bit."""

    how: FaultSpec
    seed: int
    packet: int = 0
    count: int = PACKET
    bit: int | None = None

    @property
    def label(self) -> str:
        """Readable file stem, e.g. ``uniform-bf16-1e-06-secded-s1337-0000``."""
        bit = "" if self.bit is None else f"-bit{self.bit:02d}"
        return f"{self.how.label}-s{self.seed}{bit}-{self.packet:04d}"

    @property
    def repeats(self) -> range:
        """The numbers of its injections."""
        first = self.packet * _size(self.how)
        return range(first, first + self.count)


def _size(how: FaultSpec) -> int:
    return PACKET_OF_SINGLE if how.fault == "single" else PACKET


def packets(how: FaultSpec, seed: int) -> list[Packet]:
    """The packets of a fault and seed; only the last may hold fewer than its size.

    >>> [(packet.label, packet.repeats) for packet in packets(FaultSpec(rate=1e-6, repeats=30), 7)]
    [('uniform-bf16-1e-06-none-s7-0000', range(0, 25)), ('uniform-bf16-1e-06-none-s7-0001', range(25, 30))]
    """
    size = _size(how)
    bits: Sequence[int | None] = range(STORED[how.dtype]) if how.fault == "single" else (None,)
    return [
        Packet(how=how, seed=seed, packet=n, count=min(size, how.repeats - n * size), bit=bit)
        for bit in bits for n in range(math.ceil(how.repeats / size))
    ]  # fmt: skip


def unit_of(packet: Packet) -> Unit:
    """A packet as a unit."""
    return Unit(packet.label, (packet.model_dump_json(),))


def packet_of(unit: Unit) -> Packet:
    """The packet of a unit."""
    return Packet.model_validate_json(unit.values[0])


@MEASUREMENTS.add
class Faults(Swept):
    """One unit a packet of injections of one fault and seed; a row for each."""

    name, table, phase, identity = "faults", "faults", "faults", "fault_id"
    passes = float(PACKET)

    def asked(self, spec: StudySpec, store: Store) -> list[Unit]:
        """Every fault by every seed, in packets."""
        return [unit_of(packet) for how in spec.faults for seed in spec.seeds for packet in packets(how, seed)]

    def cost(self, spec: StudySpec) -> Cost:
        """See :func:`esa_ray.measurements.memory_cost.cost_of_faults`."""
        return cost_of_faults(spec)

    def ordered(self, store: Store, units: Sequence[Unit]) -> list[Unit]:
        """What is stored and protected alike stands together: it is rounded, and its states are kept, once."""
        return sorted(units, key=lambda unit: _storage(packet_of(unit)))

    def id_of(self, unit: Unit, spec: StudySpec, found: Fingerprints) -> str:
        """Model, dtype, text, windows, fault, seed and which injections; not how many there are in all."""
        stop = {} if spec.early_stop is None else {"early_stop": spec.early_stop}
        return digest(
            {
                "version": IDENTITY_VERSION, "measurement": self.name, "model": found.model, "dtype": found.dtype,
                "data": {"text": found.text, **spec.data.content()}, **packet_of(unit).content(), **stop,
            }
        )  # fmt: skip

    def columns(self, unit: Unit) -> dict[str, Any]:
        """What was asked: the fault, how weights are stored and protected, and the seed."""
        packet = packet_of(unit)
        how, unsaid = packet.how, packet.how.unused()
        fields = {name: None if name in unsaid else getattr(how, name) for name in ("burst", "row_bytes")}
        return fields | stored_columns(how) | {
            "label": how.label, "fault": how.fault, "rate": how.rate, "events": how.events, "bit": packet.bit,
            "seed": packet.seed,
        }  # fmt: skip

    def heard(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """What the driver hears of a packet: the median injection's loss, and that without a fault."""
        told = {k: rows[0].get(k) for k in (self.identity, "status", "error")}
        told["seconds"] = sum(row.get("seconds") or 0.0 for row in rows)
        if (stored := rows[0].get("stored_nll")) is None:
            return told
        losses = sorted(sum(row["nll"]) / sum(row["tokens"]) for row in rows if row["status"] == "ok")
        middle = losses[len(rows) // 2] if len(losses) > len(rows) // 2 else math.inf
        tokens, each = sum(sum(row["tokens"]) for row in rows), rows[0]["tokens"][0]
        return told | {"nll": [middle * tokens], "tokens": [tokens], "intact": sum(stored) / (len(stored) * each)}

    def outcome(self, worker: Worker, unit: Unit) -> list[dict[str, Any]]:
        """Store, hit, evaluate from the hit block on, and take back, injection by injection."""
        from esa_ray.security.campaign import flipped, injected

        packet, intact = packet_of(unit), worker.damaging.intact.outcome.nll
        try:
            found = worker.memories.of(packet.how, packet.seed)
            if packet.bit is None:
                rows = injected(found, packet.repeats, worker.spec.early_stop)
            else:
                rows = flipped(found, packet.bit, packet.repeats, worker.spec.early_stop)
        except EsaError as error:  # of this fault alone: the others of the grid have a right to a result
            return [{"status": "error", "error": str(error), "refused": True}]
        if not rows:  # no range has so many weights; the packet is done all the same
            return [{"status": "empty", "error": "no range of scores has so many weights"}]
        return [row | {"computed": worker.dtype, "intact_nll": intact} for row in rows]


def _storage(packet: Packet) -> tuple[Any, ...]:
    return packet.seed, *sorted((k, str(v)) for k, v in stored_columns(packet.how).items())
