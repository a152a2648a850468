"""What is measured of a model, one file a measurement, and the worker that they run on. No Ray here.

They stand in the order in which their phases run.
"""

from esa_ray.measurements.registry import MEASUREMENTS, Measurement, Unit  # isort: skip
from esa_ray.measurements import rankings, baseline, cells, single_weights, blocks, protocols, compressions, tunings  # isort: skip
from esa_ray.measurements import faults, attacks, backdoors, mitigations  # isort: skip
from esa_ray.measurements import roles, mediations, attention, facts  # isort: skip

__all__ = [
    "MEASUREMENTS",
    "Measurement",
    "Unit",
    "attacks",
    "attention",
    "backdoors",
    "baseline",
    "blocks",
    "cells",
    "compressions",
    "facts",
    "faults",
    "mediations",
    "mitigations",
    "protocols",
    "rankings",
    "roles",
    "single_weights",
    "tunings",
]
