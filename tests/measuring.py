"""What an actor is asked for, asked of a worker directly."""

from esa_ray.grid import cells
from esa_ray.measurements import MEASUREMENTS, Unit
from esa_ray.measurements.cells import unit_of
from esa_ray.measurements.worker import Worker
from esa_ray.models.sources import find
from esa_ray.storage.store import Store


def by_one_worker(study, directory) -> Store:
    """A whole study, computed in this process by one worker: what the engine must come to."""
    worker = Worker(study, find(study.model), str(directory))
    found = worker.describe()
    worker.store.save_study(study, found, found.pop("versions"), cells=len(cells(study)))
    for name, measurement in MEASUREMENTS.items():
        for unit in measurement.missing(study, worker.store):
            worker.measure(name, unit)
    return worker.store


def measure(worker, name, *values):
    """Measure one unit: a seed's rankings, the baseline, a packet of single weights, a block, a protocol's windows."""
    stems = {
        "baseline": lambda: "baseline",
        "rankings": lambda seed: f"s{seed}",
        "single_weights": lambda packet: f"s{worker.spec.seeds[0]}-{packet:04d}",
        "blocks": lambda block: f"block-{block:04d}",
        "protocols": lambda names, context, seed: f"{'+'.join(names)}-c{context}-s{seed}",
    }
    return worker.measure(name, Unit(stems[name](*values), values))


def run(worker, cell):
    """Damage and measure one cell."""
    return worker.measure("cells", unit_of(cell))
