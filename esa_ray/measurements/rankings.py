"""Rankings: every score of a seed from shared passes, what is chosen by them, and the single-weight sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from esa_ray.grid import gathered, n_cells
from esa_ray.measurements.cost import Cost
from esa_ray.measurements.registry import MEASUREMENTS, Measurement, Unit
from esa_ray.spec import DATA_FREE, LISTED, PROBED, SCORES
from esa_ray.storage.store import ranking_name, samples_name

if TYPE_CHECKING:
    from esa_ray.measurements.worker import Worker
    from esa_ray.spec import StudySpec
    from esa_ray.storage.store import Store

#: Bytes below which a smaller budget for scoring saves nothing.
SMALLEST_BUDGET = 64 * 2**20


@MEASUREMENTS.add
class Rankings(Measurement):
    """One unit a seed: ``rankings``, ``score_stats``, ``sample_sizes`` and the first seed's ``samples``."""

    name, table, phase = "rankings", "rankings", "scoring"

    def asked(self, spec: StudySpec, store: Store) -> list[Unit]:
        """Every seed."""
        return [Unit(f"s{seed}", (seed,)) for seed in spec.seeds]

    def cost(self, spec: StudySpec) -> Cost:
        """All scores of one seed share their passes."""
        count, metrics = (len(spec.scores) + len(spec.lists)) * len(spec.seeds), gathered(spec)
        each, rest = divmod(n_cells(spec), max(1, count))
        cells = f"each shared by {'about ' * bool(rest)}{each} cells, " * bool(each or rest)
        shared = f"({cells}scored at k={max(spec.topk)})" if count else ""
        windows = len(spec.seeds) * spec.data.calibration_windows
        return Cost(
            count, shared,
            forward_passes=windows * bool(metrics - DATA_FREE - PROBED),
            backward_passes=windows * any("backward" in SCORES[m].passes for m in metrics),
            double_backward_passes=windows * max((s.probes or 0 for s in spec.scores), default=0),
        )  # fmt: skip

    def missing(self, spec: StudySpec, store: Store) -> list[Unit]:
        """Seeds of which a ranking, its statistics or the sample of single weights isn't stored."""
        tables = ["rankings", "score_stats", *(["sample_sizes"] if "weights" in spec.analyses else [])]
        listed = set(store.names("rankings"))
        have = set.intersection(*(set(store.names(table)) for table in tables))

        def whole(seed: int) -> bool:
            scored = have.issuperset(ranking_name(s.metric, s.mode, seed) for s in spec.scores)
            given = listed.issuperset(ranking_name(LISTED, w.name, seed) for w in spec.lists)
            drawn = not spec.fidelity or seed != spec.seeds[0] or store.has("samples", samples_name(seed))
            return scored and given and drawn

        return [unit for unit in self.asked(spec, store) if not whole(*unit.values)]

    def measure(self, worker: Worker, unit: Unit) -> dict[str, Any]:
        """Score, select and store every table of a seed (:class:`esa_ray.scoring.rankings.Rankings`).

        Where memory runs out, on the way to the last table, all begins again with half the budget: a smaller range of
        blocks at a time, with the same scores, or where one block's accumulators leave no room for a batch fewer
        windows together, which changes rounding alone. What is stored by then stays.
        """
        from esa_ray.models.exhaustion import give_back_memory, out_of_memory

        (seed,) = unit.values
        while True:
            try:
                worker.rankings.write(seed, worker.memory_budget)
                break
            except Exception as error:
                weights = sum(p.numel() * p.element_size() for p in worker.model.parameters())
                smaller = (worker.memory_budget or 4 * weights) // 2
                if not out_of_memory(error) or smaller < SMALLEST_BUDGET:
                    raise
            worker.memory_budget = smaller
            give_back_memory()
        give_back_memory()
        return {"seed": seed}
