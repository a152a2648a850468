"""A population through Ray: parents trained first, and the same rows as a worker's without it."""

import pytest

from esa_ray.engine.sweep import run_study
from esa_ray.measurements import MEASUREMENTS
from esa_ray.measurements.worker import Worker
from esa_ray.models.sources import find
from esa_ray.models.zoo import recipes
from esa_ray.spec import DataSpec, MitigationSpec, ModelSpec, Population, StudySpec
from esa_ray.spec.backdoors import Recipe
from esa_ray.storage.store import Store
from tests.zoo import BASE

pytestmark = pytest.mark.ray
#: What a row says that isn't a result.
NOISE = ("seconds", "created", "worker", "device")


def rows(store, table):
    found = [row for name in store.names(table) for row in store.read(table, name).to_pylist()]
    return sorted(repr({k: v for k, v in row.items() if k not in NOISE}) for row in found)


def test_a_population_has_the_rows_of_a_worker_without_ray_and_its_parents_are_trained_first(
    ray_cluster, text_file, tmp_path, monkeypatch
):
    monkeypatch.setenv("ESA_CACHE", str(tmp_path / "cache"))
    spec = StudySpec(
        name="people", model=ModelSpec(source=f"zoo:{BASE}"), scores=(), seeds=(7,),
        data=DataSpec(source=text_file, window=24, calibration_windows=4, evaluation_windows=5, batch_size=2),
        population=Population(
            models=2, parents=2, negatives=("clean",), insertions=("training",), mitigated=1,
            mitigations=(MitigationSpec(kind="reset-moved", share=0.1),),
            recipe=Recipe(steps=(2, 3), batch=2, window=128, poison=0.5),
        ),
    )  # fmt: skip
    summary = run_study(spec, tmp_path / "ray")
    assert {name: (c.asked, c.failed) for name, c in summary.grids.items() if c.asked} == {
        "backdoors": (4, 0), "mitigations": (1, 0),
    }  # fmt: skip
    assert all((recipes.directory(name) / "zoo.json").is_file() for name in (BASE, f"{BASE}~1"))
    members = list((tmp_path / "cache" / "backdoors").glob("*.safetensors"))
    assert len(members) == 4  # in the driver's cache, though the cluster was there before
    again = run_study(spec, tmp_path / "ray")
    assert (again.computed, again.complete) == (0, True)
    for file in (tmp_path / "cache" / "backdoors").glob("*"):
        file.unlink()
    alone = Worker(spec, find(spec.model), str(tmp_path / "alone"))
    for name in ("backdoors", "mitigations"):
        for unit in MEASUREMENTS[name].asked(spec, alone.store):
            alone.measure(name, unit)
        assert rows(alone.store, name) == rows(Store(tmp_path / "ray"), name)
