"""What each block's sub-layers and experts are worth, silenced one at a time, and how experts are used."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from esa_ray.measurements.registry import MEASUREMENTS, Measurement, Unit

if TYPE_CHECKING:
    from esa_ray.measurements.worker import Worker
    from esa_ray.spec import StudySpec
    from esa_ray.storage.store import Store

#: Blocks that a model which wasn't loaded yet has at least, or nearly.
SOME = 8


@MEASUREMENTS.add
class Blocks(Measurement):
    """One unit a block, for studies with the analysis "architecture"."""

    name, table, phase = "blocks", "ablations", "blocks"

    def asked(self, spec: StudySpec, store: Store) -> list[Unit]:
        """Every block; none are known before the model was loaded once."""
        record = store.load_study() if "architecture" in spec.analyses else None
        blocks = range(record["resolved"]["layers"]) if record else ()
        return [Unit(f"block-{block:04d}", (block,)) for block in blocks]

    def pieces(self, spec: StudySpec, store: Store) -> int:
        """Blocks that are left."""
        unknown = "architecture" in spec.analyses and store.load_study() is None
        return SOME if unknown else super().pieces(spec, store)

    def rows(self, worker: Worker, unit: Unit) -> list[dict[str, Any]]:
        """Silence the block's sub-layers and experts."""
        from esa_ray.evaluation.sublayers import observed, silenced, sublayers

        (block,) = unit.values
        damaging, parts = worker.damaging, sublayers(worker.catalogue, block)
        start = damaging.prepared([tensor for part in parts for tensor in part.tensors])
        assert damaging.intact  # measured by passes of its own, which the next one isn't to count
        with observed(worker.model, parts, worker.windows.evaluation) as seen:
            damaging.outcome(start)
        common = {k: v for k, v in worker.common.items() if k not in ("study", "data")}
        rows = []
        for part in parts:
            began = time.perf_counter()
            with silenced(part):
                outcome = damaging.outcome(start)
            used = seen[0].uses.get(part.expert) if part.part == "expert" and part.expert is not None else None
            rows.append(
                {
                    **common, "layer": block, "part": part.part, "expert": part.expert, **(vars(used) if used else {}),
                    "peak": seen[0].peaks[part.part, part.expert], **vars(outcome), **worker.own_intact(),
                    "status": "diverged" if outcome.diverged else "ok", "seconds": time.perf_counter() - began,
                    "created": datetime.now(UTC),
                }
            )  # fmt: skip
        return rows
