"""Cells in which nothing changed, and controls of models with zeros, through the worker that a study runs on."""

import itertools
import math

import numpy as np
import pytest
import torch

from esa_ray.evaluation import evaluate
from esa_ray.grid import cell_id, cells
from esa_ray.measurements.worker import Worker
from esa_ray.models.sources import find
from esa_ray.spec import PerturbSpec, ScoreSpec, WeightList, WeightName
from tests.measuring import measure, run

GROUPS = ("super", "random_k", "matched_k")


def rows_of(worker):
    """Rows of all of a worker's cells, by label."""
    rows = {}
    for cell in cells(worker.spec):
        run(worker, cell)
        name = f"{cell.label}-{cell_id(cell, worker.spec.data, worker.resolved)}"
        rows[cell.label] = worker.store.read("cells", name).to_pylist()[0]
    return rows


def nats_per_token(worker):
    return sum(evaluate(worker.model, worker.windows.evaluation, 2).nll) / (5 * 23)


def test_the_mean_of_a_rare_flip_over_its_draws_is_the_sum_over_all_subsets_of_bits(tiny_study, tmp_path):
    p, repeats = 0.1, 400
    spec = tiny_study.replace(
        seeds=(7,), topk=(2,), groups=("super",), scores=(ScoreSpec(mode="global"),), repeats=repeats,
        perturbations=(PerturbSpec.parse(f"bit_flip-sign-{p}"),),
    )  # fmt: skip
    worker = Worker(spec, find(spec.model), str(tmp_path))
    measure(worker, "rankings", 7)
    ranking = worker.store.read("rankings", "grad_x_weight-global-s7")
    members = [(r["tensor"], r["flat"]) for r in ranking.to_pylist() if r["group"] == "super"]

    intact, expected, square = nats_per_token(worker), 0.0, 0.0
    for flipped in itertools.product((False, True), repeat=2):
        signs = [-1.0 if f else 1.0 for f in flipped]
        with torch.no_grad():
            for (name, flat), sign in zip(members, signs, strict=True):
                worker.catalogue[name].flat_weights()[flat] *= sign
            delta = nats_per_token(worker) - intact
            for (name, flat), sign in zip(members, signs, strict=True):
                worker.catalogue[name].flat_weights()[flat] *= sign
        probability = math.prod(p if f else 1 - p for f in flipped)
        expected, square = expected + probability * delta, square + probability * delta**2

    found = [worker.damaging.run(cell, ranking) for cell in cells(spec)]
    damage = [sum(row["nll"]) / sum(row["tokens"]) - intact for row in found]
    error = math.sqrt((square - expected**2) / repeats)
    assert np.mean(damage) == pytest.approx(expected, abs=4 * error)
    # The mean of those draws alone in which a bit flipped is another number.
    assert abs(expected / (1 - (1 - p) ** 2) - expected) > 8 * error
    unchanged = [d for d, row in zip(damage, found, strict=True) if row["n_changed"] == 0]
    assert set(unchanged) == {0.0}
    assert len(unchanged) / repeats == pytest.approx((1 - p) ** 2, abs=4 * math.sqrt(0.81 * 0.19 / repeats))


def test_the_largest_weight_of_a_row_lies_on_the_rows_grid_and_costs_nothing(tiny_study, tmp_path):
    spec = tiny_study.replace(
        seeds=(7,), topk=(1,), groups=("super",), scores=(ScoreSpec(metric="magnitude"),),
        perturbations=tuple(PerturbSpec.parse(k) for k in ("quantize-4", "quantize-2", "progressive-quantize-3-0.5")),
    )  # fmt: skip
    worker = Worker(spec, find(spec.model), str(tmp_path))
    measure(worker, "rankings", 7)
    intact = worker.damaging.intact.outcome.nll
    for row in rows_of(worker).values():
        assert (row["status"], row["n_weights"], row["n_changed"]) == ("ok", 2, 0)
        assert row["nll"] == intact


@pytest.fixture(params=["magnitude", "grad_squared", "listed"])
def half_zero(request, tiny_study, tmp_path):
    """A worker on a model of which every second weight is 0, with rankings; sets of some scores hold zeros."""
    down = "model.layers.1.mlp.down_proj.weight"
    listed = (WeightList(name="given", weights=tuple(WeightName(tensor=down, row=r, col=r) for r in range(6))),)
    given = request.param == "listed"
    spec = tiny_study.replace(
        seeds=(7,), topk=(50,), groups=GROUPS, lists=listed if given else (),
        scores=(ScoreSpec(metric="magnitude" if given else request.param),),
        perturbations=tuple(PerturbSpec.parse(k) for k in ("sign_flip", "zero", "scale-0.5", "gauss_noise-0.5")),
    )  # fmt: skip
    worker = Worker(spec, find(spec.model), str(tmp_path))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in worker.catalogue.tensors:
            if tensor.layer is not None:
                weights = tensor.flat_weights()
                weights[torch.rand(len(weights), generator=generator) < 0.5] = 0.0
    measure(worker, "rankings", 7)
    return worker, request.param


def test_damage_in_proportion_to_the_weight_changes_as_many_controls_as_super_weights(half_zero):
    worker, metric = half_zero
    rows = [r for r in rows_of(worker).values() if metric != "listed" or r["metric"] == "listed"]
    changed = {}
    for row in rows:
        changed.setdefault((row["perturbation"], row["strength"]), {})[row["group"]] = row["n_changed"]
    size = rows[0]["n_weights"]
    for kind, by_group in changed.items():
        assert len(set(by_group.values())) == 1, (kind, by_group)
        assert len(by_group) == 3
        n = next(iter(by_group.values()))
        assert n == size if metric == "magnitude" else 0 < n < size  # the other two sets hold zeros
