"""The Arrow schemas of the store: the meaning and unit of every column.

Columns may be added; those here keep their names and meanings. ``SCHEMA_VERSION`` is written into every
file.
"""

import pyarrow as pa

from esa_ray.schema.applications import COMPRESSIONS, TUNINGS
from esa_ray.schema.backdoors import BACKDOORS, MITIGATIONS
from esa_ray.schema.columns import SCHEMA_VERSION
from esa_ray.schema.roles import ATTENTION, FACTS_TABLE, MEDIATIONS, ROLES_TABLE
from esa_ray.schema.security import ATTACKS, FAULTS
from esa_ray.schema.sensitivity import (
    ABLATIONS,
    BASELINES,
    CELLS,
    FIDELITY,
    PROTOCOLS,
    RANKINGS,
    SAMPLE_SIZES,
    SAMPLES,
    SCORE_STATS,
    TASKS,
)

#: The probabilities of ``score_stats.quantiles``.
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 0.9999)

#: A cell's outcome. ``diverged``: the loss was NaN or infinite, which is a result; ``empty``: the set, or
#: its part, holds no weights that the damage can ever change, so there was nothing to do; ``error``: no result.
STATUSES = ("ok", "diverged", "empty", "error")

TABLES: dict[str, pa.Schema] = {
    "cells": CELLS,
    "baselines": BASELINES,
    "rankings": RANKINGS,
    "score_stats": SCORE_STATS,
    "sample_sizes": SAMPLE_SIZES,
    "samples": SAMPLES,
    "fidelity": FIDELITY,
    "ablations": ABLATIONS,
    "protocols": PROTOCOLS,
    "tasks": TASKS,
    "compressions": COMPRESSIONS,
    "tunings": TUNINGS,
    "faults": FAULTS,
    "attacks": ATTACKS,
    "backdoors": BACKDOORS,
    "mitigations": MITIGATIONS,
    "roles": ROLES_TABLE,
    "mediations": MEDIATIONS,
    "attention": ATTENTION,
    "facts": FACTS_TABLE,
}


def define(table: str, schema: pa.Schema) -> None:
    """Make a table known that isn't among these: a measurement of somebody else's.

    >>> define("depth", pa.schema({"layer": pa.int64()}))
    >>> TABLES.pop("depth").metadata
    {b'esa_ray.schema': b'1'}
    """
    TABLES[table] = schema.with_metadata({"esa_ray.schema": SCHEMA_VERSION})
