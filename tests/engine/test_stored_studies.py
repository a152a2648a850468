"""Faults and attacks through Ray: one command's study, to the same rows as a worker's without it."""

import pytest

from esa_ray.engine.sweep import run_study
from esa_ray.measurements import MEASUREMENTS
from esa_ray.measurements.worker import Worker
from esa_ray.models.sources import find
from esa_ray.spec import AttackSpec, FaultSpec
from esa_ray.storage.store import Store

pytestmark = pytest.mark.ray
#: What a row says that isn't a result.
NOISE = ("seconds", "created", "worker", "device")


def rows(store, table):
    found = [row for name in store.names(table) for row in store.read(table, name).to_pylist()]
    return sorted(repr({k: v for k, v in row.items() if k not in NOISE}) for row in found)


def test_a_study_of_faults_and_attacks_has_the_rows_of_a_worker_without_ray_and_is_done_after_it(
    ray_cluster, tiny_study, tmp_path
):
    spec = tiny_study.replace(
        perturbations=(), groups=("super",), scores=(),
        faults=(
            FaultSpec(rate=1e-4, dtype="int8", repeats=30),
            FaultSpec(fault="burst", events=1, protect="secded-critical", critical=0.01, repeats=3),
            FaultSpec(rate=1e-4, protect="secded-critical", critical=1e-9, repeats=1),  # which is of no weight
        ),
        attacks=(AttackSpec(arm="random", dtype="bf16", budget=2),),
    )  # fmt: skip
    summary = run_study(spec, tmp_path / "ray")
    assert {name: (c.asked, c.failed, c.refused) for name, c in summary.grids.items() if c.asked} == {
        "faults": (2 * 4, 2, 2), "attacks": (2, 0, 0),
    }  # fmt: skip
    alone = Worker(spec, find(spec.model), str(tmp_path / "alone"))
    for name in ("faults", "attacks"):
        for unit in MEASUREMENTS[name].asked(spec, alone.store):
            alone.measure(name, unit)
        assert rows(alone.store, name) == rows(Store(tmp_path / "ray"), name)
    again = run_study(spec, tmp_path / "ray")
    assert again.computed == 2  # what can't be is tried again, since a mended version may know better
