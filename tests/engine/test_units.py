"""Cells of rows, columns, neurons and heads without Ray: every kind of damage, pairs, and what is refused."""

import numpy as np
import pytest
import torch

from esa_ray.errors import EsaError
from esa_ray.evaluation import evaluate
from esa_ray.grid import by_twos, cell_id, cells
from esa_ray.measurements.cells import by_first_block
from esa_ray.measurements.worker import Worker
from esa_ray.models.sources import find
from esa_ray.models.units import Units
from esa_ray.spec import KINDS, PerturbSpec, ScoreSpec, Subset, WeightList, WeightName
from tests.measuring import measure, run
from tests.tiny import state_bits

ZERO = (PerturbSpec(kind="zero"),)
GROUPS = ("super", "random_k", "matched_k", "largest_k", "bottom_k")


@pytest.fixture
def run_all(tiny_study, tmp_path):
    """Runs a study's cells in one worker and returns (worker, rows by label)."""

    def run_cells(unit, *, k=1, groups=GROUPS, **changes):
        scores = changes.pop("scores", (ScoreSpec(unit=unit),))
        spec = tiny_study.replace(seeds=(7,), topk=(k,), groups=groups, scores=scores, **changes)
        worker = Worker(spec, find(spec.model), str(tmp_path))
        before = state_bits(worker.model)
        measure(worker, "rankings", 7)
        rows = {}
        for cell in by_first_block(worker.store, cells(spec)):
            run(worker, cell)
            name = f"{cell.label}-{cell_id(cell, spec.data, worker.resolved)}"
            rows[cell.label] = worker.store.read("cells", name).to_pylist()[0]
        assert state_bits(worker.model) == before
        return worker, rows

    return run_cells


def by_hand(worker, rows) -> list[float]:
    """Losses of the model with these units of a ranking zeroed, by full forward passes."""
    units = Units(worker.model, worker.catalogue, rows[0]["unit"])
    parameters, kept = dict(worker.model.named_parameters()), {}
    with torch.no_grad():
        for row in rows:
            family, number = units.find(row["tensor"], row["flat"])
            for name, flat in family.weights(number).items():
                kept.setdefault(name, parameters[name].clone())
                parameters[name].view(-1)[torch.as_tensor(flat)] = 0
        found = evaluate(worker.model, worker.windows.evaluation, worker.spec.data.batch_size).nll
        for name, values in kept.items():
            parameters[name].copy_(values)
    return found


@pytest.mark.parametrize("unit", ["row", "col", "neuron", "head"])
def test_a_cell_damages_all_weights_of_its_units_and_of_as_many_controls(run_all, unit):
    worker, rows = run_all(unit, perturbations=ZERO)
    ranking = worker.store.read("rankings", "grad_x_weight-per_layer-s7").to_pylist()
    assert {label.split("-")[4] for label in rows} == set(GROUPS)
    for row in rows.values():
        mine = [r for r in ranking if r["group"] == row["group"]]
        assert row["nll"] == pytest.approx(by_hand(worker, mine), rel=2e-6)
        assert row["n_weights"] == row["n_changed"] == sum(r["members"] for r in mine)
        assert (row["unit"], row["status"], row["restored"]) == (unit, "ok", True)
    counts = {g: row["n_weights"] for row in rows.values() if (g := row["group"]) != "bottom_k"}
    assert len(set(counts.values())) == 1
    assert {row["depth"] for row in rows.values() if row["group"] in ("random_k", "matched_k", "largest_k")} == {1}


def test_a_unit_in_a_later_block_resumes_from_there(run_all):
    parts = (Subset(kind="layer", value=1),)
    worker, rows = run_all("neuron", groups=("super",), perturbations=ZERO, parts=parts)
    row = rows["grad_x_weight-per_layer-s7-k1-super-zero-layer-1"]
    mine = [r for r in worker.store.read("rankings", "grad_x_weight-per_layer-s7").to_pylist() if r["layer"] == 1]
    assert row["resumed_at"] == 1
    assert row["nll"] == pytest.approx(by_hand(worker, mine), rel=2e-6)


@pytest.mark.parametrize("unit", ["row", "head"])
def test_every_kind_of_damage_can_be_done_to_units(run_all, unit):
    strengths = {"bit_flip": 0.5, "scale": 0.5, "dropout": 0.8}
    kinds = tuple(PerturbSpec(kind=name, strength=strengths.get(name)) for name in KINDS)
    _, rows = run_all(unit, groups=("super", "random_k"), perturbations=kinds)
    assert len(rows) == 2 * len(KINDS)
    assert {row["status"] for row in rows.values()} <= {"ok", "diverged"}
    assert all(row["n_changed"] > 0.5 * row["n_weights"] for row in rows.values())


def test_steps_along_the_gradient_follow_each_weights_own(run_all):
    worker, rows = run_all(
        "row", groups=("super",), perturbations=(PerturbSpec(kind="gradient_aligned", strength=0.01),)
    )
    (row,) = rows.values()
    mine = worker.store.read("rankings", "grad_x_weight-per_layer-s7").to_pylist()
    units, steps = Units(worker.model, worker.catalogue, "row"), []
    parameters = dict(worker.model.named_parameters())
    for r in mine:
        family, number = units.find(r["tensor"], r["flat"])
        ((name, flat),) = family.weights(number).items()
        steps.append(0.01 * np.linalg.norm(parameters[name].detach().view(-1)[torch.as_tensor(flat)]))
        assert len(r["gradients"]) == r["members"]
    assert row["delta_norm"] == pytest.approx(np.linalg.norm(steps), rel=1e-5)
    assert sum(row["nll"]) > sum(worker.damaging.intact.outcome.nll)


def test_the_first_members_are_damaged_by_twos_in_pools_and_in_lists(run_all):
    down = "model.layers.1.mlp.down_proj.weight"
    given = WeightList(name="given", weights=tuple(WeightName(tensor=down, row=r, col=1) for r in (3, 1, 2)))
    worker, rows = run_all("row", k=2, groups=("super",), perturbations=ZERO, pairs=3, lists=(given,))
    parts = [part.label for part in by_twos(3)]
    assert parts == ["single-1", "single-2", "single-3", "pair-1-2", "pair-1-3", "pair-2-3"]
    ranking = worker.store.read("rankings", "grad_x_weight-per_layer-s7").to_pylist()
    order = sorted(ranking, key=lambda r: -r["score"])
    for part in by_twos(3):
        row = rows[f"grad_x_weight-per_layer-s7-k2-super-zero-{part.label}"]
        mine = [order[int(part.value) - 1], *([order[part.other - 1]] if part.other else [])]
        assert row["nll"] == pytest.approx(by_hand(worker, mine), rel=2e-6)
        assert (row["part"], row["part_value"], row["part_other"]) == (part.kind, part.value, part.other)
    pair = rows["listed-given-s7-k3-listed-zero-pair-1-3"]
    assert (pair["n_weights"], pair["unit"]) == (2, "weight")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"groups": ("super", "largest_k")}, "largest_k is a control of rows"),
        ({"pairs": 1}, "--pairs 1 makes no pair"),
        ({"pairs": 9, "scores": (ScoreSpec(mode="global"),)}, "--pairs 9: --topk has 5 members"),
        ({"pairs": 2, "perturbations": (), "groups": ("super",)}, "--pairs is about damage"),
        ({"scores": (ScoreSpec(unit="row"), ScoreSpec(metric="magnitude"))}, "rank one kind of unit"),
        ({"scores": (ScoreSpec(unit="row"),), "fidelity": 5}, "--fidelity damages single weights"),
        ({"scores": (ScoreSpec(unit="row"),), "analyses": ("weights",)}, "--weight-analysis ranks single weights"),
    ],
)  # fmt: skip
def test_what_no_study_of_units_can_do_is_refused_with_a_mend(tiny_study, changes, words):
    with pytest.raises(ValueError, match=words):
        tiny_study.replace(**changes)


def test_a_list_of_whole_rows_is_damaged_with_controls_of_its_matrices_and_by_twos(run_all):
    down, up = "model.layers.1.mlp.down_proj.weight", "model.layers.1.mlp.up_proj.weight"
    lines = tuple(WeightName(tensor=t, row=r, col=None) for t, r in ((down, 3), (up, 7), (down, 0)))
    rows = WeightList(name="rows", weights=lines)
    uphill = PerturbSpec(kind="gradient_aligned", strength=0.01)
    worker, found = run_all(
        "row", groups=("super", "random_k", "matched_k", "largest_k"), perturbations=(*ZERO, uphill), lists=(rows,),
        scores=(ScoreSpec(metric="magnitude", unit="row"),), k=2, pairs=2,
    )  # fmt: skip
    row = found["listed-rows-s7-k3-listed-zero"]
    table = worker.store.read("rankings", "listed-rows-s7").to_pylist()
    mine = sorted((r for r in table if r["group"] == "listed"), key=lambda r: r["rank"])
    assert [(r["tensor"], r["row"], r["col"], r["score"]) for r in mine] == [
        (w.tensor, w.row, None, None) for w in lines
    ]
    assert row["nll"] == pytest.approx(by_hand(worker, mine), rel=2e-6)
    assert (row["unit"], row["n_weights"], row["resumed_at"]) == ("row", 2 * 48 + 32, 1)
    pair = found["listed-rows-s7-k3-listed-zero-pair-1-2"]
    assert pair["nll"] == pytest.approx(by_hand(worker, mine[:2]), rel=2e-6)
    assert found["listed-rows-s7-k3-largest_k-zero"]["n_weights"] == row["n_weights"]
    for group in ("random_k", "matched_k", "largest_k"):
        drawn = [r for r in table if r["group"] == group]
        assert sorted(r["tensor"] for r in drawn) == sorted(w.tensor for w in lines)
        assert not {(r["tensor"], r["row"]) for r in drawn} & {(w.tensor, w.row) for w in lines}
    assert found["listed-rows-s7-k3-listed-gradient_aligned-0.01"]["status"] == "ok"


def test_a_row_that_stands_in_a_list_under_two_names_is_refused(run_all):
    names = ("model.layers.1.mlp.down_proj.weight", "model.layers.1.mlp.down_proj")
    twice = WeightList(name="twice", weights=tuple(WeightName(tensor=t, row=3, col=None) for t in names))
    with pytest.raises(EsaError, match=r"the list twice names a row of .*down_proj.* twice; take one out"):
        run_all(
            "weight", groups=("super",), perturbations=ZERO, lists=(twice,), scores=(ScoreSpec(metric="magnitude"),)
        )
