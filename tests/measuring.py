"""What an actor is asked for, asked of a worker directly."""

from esa_ray.measurements import Unit
from esa_ray.measurements.cells import unit_of


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
