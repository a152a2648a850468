"""Roles and facts through Ray: the rows of a worker without it, and files that actors elsewhere find."""

import pytest

from esa_ray.engine.sweep import run_study
from esa_ray.spec import FactSpec, RoleSpec, ScoreSpec
from esa_ray.storage.store import Store
from tests.measuring import by_one_worker

pytestmark = pytest.mark.ray
#: What a row says that isn't a result.
NOISE = ("seconds", "created", "worker", "device")
GRIDS = ("roles", "mediations", "attention", "facts")


def rows(store, table):
    found = [row for name in store.names(table) for row in store.read(table, name).to_pylist()]
    return sorted(repr({k: v for k, v in row.items() if k not in NOISE}) for row in found)


def test_a_study_of_roles_has_the_rows_of_a_worker_without_ray_and_repeats_nothing(
    ray_cluster, tiny_study, tmp_path, monkeypatch
):
    (tmp_path / "mine.csv").write_text("prompt,subject,answer,alternative\nThe colour of grass is,grass,green,blue\n")
    monkeypatch.chdir(tmp_path)  # actors run elsewhere
    spec = tiny_study.replace(
        perturbations=(), topk=(3,), seeds=(7,), groups=("matched_k",), control_draws=2,
        scores=(ScoreSpec(metric="grad_x_weight_abs", mode="global"),),
        roles=RoleSpec(roles=("frequency", "token-specific", "fact"), windows=4, null_weights=2),
        facts=FactSpec(sources=("mine.csv",), draws=2, restored=(1,)),
    )  # fmt: skip
    summary = run_study(spec, tmp_path / "ray")
    assert summary.complete
    asked = {name: counts.asked for name, counts in summary.grids.items() if counts.asked}
    assert asked.keys() >= {"roles", "attention", "facts"}
    again = run_study(spec, tmp_path / "ray")
    assert (again.computed, again.complete) == (0, True)
    alone = by_one_worker(spec, tmp_path / "alone")
    for name in GRIDS:
        assert rows(alone, name) == rows(Store(tmp_path / "ray"), name)
