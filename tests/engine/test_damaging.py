"""Cells of every kind of set without Ray: lists, parts, repetitions, resumption, and all kinds of damage."""

import numpy as np
import pytest
import torch

from esa_ray.engine.search import mean_damage
from esa_ray.errors import EsaError
from esa_ray.evaluation import damaging as damaging_module
from esa_ray.evaluation import evaluate
from esa_ray.grid import cell_id, cells
from esa_ray.measurements.worker import Worker
from esa_ray.models.addressing import WeightTensor
from esa_ray.models.sources import find
from esa_ray.perturb.edit import NotRestoredError
from esa_ray.spec import KINDS, PerturbSpec, ScoreSpec, Subset, WeightList, WeightName
from tests.measuring import measure, run
from tests.tiny import state_bits

DOWN, UP = "model.layers.1.mlp.down_proj.weight", "model.layers.1.mlp.up_proj.weight"
GIVEN = WeightList(
    name="given",
    weights=tuple(WeightName(tensor=t, row=r, col=c) for t, r, c in ((DOWN, 3, 5), (UP, 7, 2), (DOWN, 0, 1))),
)


@pytest.fixture
def run_all(tiny_study, tmp_path):
    """Runs a study's cells in one worker and returns (worker, rows by label)."""

    def run_cells(**changes):
        spec = tiny_study.replace(seeds=(7,), topk=(4,), groups=("super", "random_k"), **changes)
        worker = Worker(spec, find(spec.model), str(tmp_path))
        before = state_bits(worker.model)
        measure(worker, "rankings", 7)
        rows = {}
        for cell in cells(spec):
            run(worker, cell)
            name = f"{cell.label}-{cell_id(cell, spec.data, worker.resolved)}"
            rows[cell.label] = worker.store.read("cells", name).to_pylist()[0]
        assert state_bits(worker.model) == before
        return worker, rows

    return run_cells


def by_hand(worker, weights, value=0.0) -> list[float]:
    """Losses of a copy of the model in which named weights are set to a value, by full forward passes."""
    parameters, old = dict(worker.model.named_parameters()), []
    with torch.no_grad():
        for w in weights:
            old.append(float(parameters[w.tensor][w.row, w.col]))
            parameters[w.tensor][w.row, w.col] = value
        found = evaluate(worker.model, worker.windows.evaluation, worker.spec.data.batch_size).nll
        for w, was in zip(weights, old, strict=True):
            parameters[w.tensor][w.row, w.col] = was
    return found


def test_a_list_is_damaged_together_and_one_by_one_and_from_its_block_on(run_all):
    worker, rows = run_all(perturbations=(PerturbSpec(kind="zero"),), lists=(GIVEN,), one_by_one=True)
    mine = {label: r for label, r in rows.items() if r["metric"] == "listed"}
    assert len(mine) == 2 + 3
    joint = mine["listed-given-s7-k3-listed-zero"]
    assert joint["nll"] == pytest.approx(by_hand(worker, GIVEN.weights), rel=2e-6)
    assert (joint["n_weights"], joint["n_changed"], joint["mode"], joint["resumed_at"]) == (3, 3, "given", 1)
    for number, weight in enumerate(GIVEN.weights, 1):
        single = mine[f"listed-given-s7-k3-listed-zero-only-{number}"]
        assert single["nll"] == pytest.approx(by_hand(worker, [weight]), rel=2e-6)
        assert (single["n_weights"], single["part"], single["part_value"]) == (1, "only", number)
    control = worker.store.read("rankings", "listed-given-s7").to_pylist()
    drawn = [r for r in control if r["group"] == "random_k"]
    assert sorted(r["tensor"] for r in drawn) == sorted(w.tensor for w in GIVEN.weights)
    assert not {(r["tensor"], r["row"], r["col"]) for r in drawn} & {(w.tensor, w.row, w.col) for w in GIVEN.weights}


def test_parts_of_a_set_are_its_layers_and_what_is_left_when_some_is_restored(run_all):
    parts = (
        Subset(kind="layer", value=1),
        Subset(kind="all_but_first", value=0.25),
        Subset(kind="all_but_last", value=0.5),
    )
    worker, rows = run_all(perturbations=(PerturbSpec(kind="zero"),), parts=parts)
    ranking = worker.store.read("rankings", "grad_x_weight-per_layer-s7").to_pylist()
    wanted = {
        "layer-1": [r for r in ranking if r["group"] == "super" and r["layer"] == 1],
        "all_but_first-0.25": [r for r in ranking if r["group"] == "super" and r["rank"] > 1],
        "all_but_last-0.5": [r for r in ranking if r["group"] == "super" and r["rank"] <= 2],
    }
    for name, weights in wanted.items():
        row = rows[f"grad_x_weight-per_layer-s7-k4-super-zero-{name}"]
        named = [WeightName(tensor=r["tensor"], row=r["row"], col=r["col"]) for r in weights]
        assert row["nll"] == pytest.approx(by_hand(worker, named), rel=2e-6)
        assert row["n_weights"] == len(weights)
        assert row["resumed_at"] == (1 if name == "layer-1" else None)
    # Of controls, whole sets and layers alone.
    assert {r["part"] for r in rows.values() if r["group"] == "random_k"} == {None, "layer"}


def test_repetitions_of_a_kind_that_draws_differ_and_of_others_are_equal_to_the_bit(run_all):
    kinds = (PerturbSpec(kind="zero"), PerturbSpec(kind="gauss_noise", strength=0.5))
    _, rows = run_all(perturbations=kinds, repeats=3)
    stem = "grad_x_weight-per_layer-s7-k4-super-"
    zeros = [rows[f"{stem}zero{end}"]["nll"] for end in ("", "-r1", "-r2")]
    assert zeros[0] == zeros[1] == zeros[2]
    noises = [tuple(rows[f"{stem}gauss_noise-0.5{end}"]["nll"]) for end in ("", "-r1", "-r2")]
    assert len(set(noises)) == 3
    assert [rows[f"{stem}zero{end}"]["repeat"] for end in ("", "-r1", "-r2")] == [0, 1, 2]


@pytest.mark.parametrize("metric", ["grad_x_weight", "act_mag", "grad_x_weight+act_mag"])
def test_every_kind_of_damage_runs_whatever_the_score(run_all, metric):
    kinds = tuple(PerturbSpec(kind=kind, bits="mantissa" if kind == "bit_flip" else None) for kind in KINDS)
    worker, rows = run_all(perturbations=kinds, scores=(ScoreSpec(metric=metric),))
    assert {r["status"] for r in rows.values()} == {"ok"}, [r["error"] for r in rows.values()]
    assert all(r["delta_norm"] > 0 and r["n_changed"] > 0 for r in rows.values())
    ranking = worker.store.read("rankings", f"{metric}-per_layer-s7").to_pylist()
    # The stored gradient is that of the calibration loss: grad_x_weight is |g·w|.
    if metric == "grad_x_weight":
        for r in ranking:
            assert abs(r["gradient"] * r["weight"]) == pytest.approx(r["score"], rel=1e-5)
    assert all(r["gradient"] is not None for r in ranking)


def test_without_a_kind_that_needs_it_a_score_without_gradients_gathers_none(run_all):
    worker, _ = run_all(perturbations=(PerturbSpec(kind="zero"),), scores=(ScoreSpec(metric="magnitude"),))
    assert {r["gradient"] for r in worker.store.read("rankings", "magnitude-per_layer-s7").to_pylist()} == {None}


def test_kl_and_loops_stand_in_every_row_that_can_have_them(run_all, tiny_study):
    data = tiny_study.data.model_copy(update={"prompts": 2})
    kinds = (PerturbSpec(kind="zero"), PerturbSpec(kind="gauss_noise", strength=1e40))
    worker, rows = run_all(perturbations=kinds, data=data)
    measure(worker, "baseline")
    base = worker.store.read("baselines", "baseline").to_pylist()[0]
    assert len(base["loops"]) == 2
    assert base["kl"] is None
    for row in rows.values():
        assert len(row["kl"]) == row["windows"] == 5
        if row["status"] == "ok":
            assert len(row["loops"]) == 2
            assert sum(row["kl"]) > -1e-4
        else:
            assert row["loops"] is None


def test_early_stopping_uses_fewer_windows_and_says_how_many(run_all, tiny_study):
    data = tiny_study.data.model_copy(update={"evaluation_windows": 16, "batch_size": 1})
    kinds = (PerturbSpec(kind="scale", strength=-40.0),)
    _, stopped = run_all(perturbations=kinds, data=data, early_stop=0.2, scores=(ScoreSpec(mode="global"),))
    used = {label: r["windows"] for label, r in stopped.items()}
    assert all(len(r["nll"]) == len(r["hits"]) == len(r["kl"]) == r["windows"] for r in stopped.values())
    assert min(used.values()) < 16


@pytest.mark.parametrize(
    ("weight", "sentence"),
    [
        (WeightName(tensor="no.such", row=0), "no weights named no.such"),
        (WeightName(tensor=DOWN, row=99999, col=0), "has no row 99999"),
        (WeightName(tensor=DOWN, row=0, col=99999), "has no col 99999"),
    ],
)
def test_a_list_that_names_what_the_model_has_not_is_refused_before_anything_is_scored(
    tiny_study, tmp_path, weight, sentence
):
    spec = tiny_study.replace(lists=(WeightList(name="wrong", weights=(weight,)),))
    with pytest.raises(EsaError, match=sentence):
        Worker(spec, find(spec.model), str(tmp_path))


def test_a_part_of_adaptive_noise_is_what_it_is_in_the_whole_set(run_all, monkeypatch):
    change, current = [], {}
    plan, measure = damaging_module.planned, damaging_module.Damaging.measure

    def listen(catalogue, chosen, *arguments):
        current["where"] = (catalogue, chosen)
        return plan(catalogue, chosen, *arguments)

    def look(self, *arguments):
        catalogue, chosen = current["where"]
        change.append({(n, int(i)): float(catalogue[n].flat_weights()[i]) for n, flat in chosen.items() for i in flat})
        return measure(self, *arguments)

    monkeypatch.setattr(damaging_module, "planned", listen)
    monkeypatch.setattr(damaging_module.Damaging, "measure", look)
    run_all(
        perturbations=(PerturbSpec(kind="adaptive"),), scores=(ScoreSpec(mode="global"),), one_by_one=True,
        parts=(Subset(kind="all_but_first", value=0.5),),
    )  # fmt: skip
    supers = [c for c in change if set(c) <= set(change[0])]
    assert sorted(map(len, supers)) == [1, 1, 1, 1, 2, 4]
    for part in supers:
        assert part == {place: change[0][place] for place in part}


def test_with_a_small_budget_states_of_few_blocks_are_held_and_nothing_changes(run_all, tiny_study, tmp_path):
    worker, rows = run_all(perturbations=(PerturbSpec(kind="zero"),), lists=(GIVEN,), one_by_one=True)
    tight = Worker(worker.spec, worker.source, str(tmp_path / "tight"), memory_budget=1)
    tight.damaging.budget = 1
    ranking = worker.store.read("rankings", "listed-given-s7")
    for cell in (c for c in cells(worker.spec) if c.listed):
        found = tight.damaging.run(cell, ranking)
        np.testing.assert_array_equal(found["nll"], rows[cell.label]["nll"])


def test_workers_whose_hardware_rounds_otherwise_store_their_own_intact_loss(tiny_study, tmp_path):
    """One worker's arithmetic is planted off; each cell's ΔNLL must be what its own worker measured."""
    spec = tiny_study.replace(
        seeds=(7,),
        topk=(4,),
        groups=("super",),
        perturbations=(PerturbSpec(kind="zero"), PerturbSpec(kind="sign_flip")),
    )
    here, there = (Worker(spec, find(spec.model), str(tmp_path)) for _ in range(2))
    measure(here, "rankings", 7)
    measure(here, "baseline")
    there.model.get_output_embeddings().register_forward_hook(lambda module, args, logits: logits * 1.001)
    average = here.damaging.intact.outcome.nll_per_token
    for worker, cell in zip((here, there), cells(spec), strict=True):
        told = run(worker, cell)
        (row,) = worker.store.read("cells", f"{cell.label}-{told['cell_id']}").to_pylist()
        intact = evaluate(worker.model, worker.windows.evaluation, worker.spec.data.batch_size).nll
        truth = np.subtract(row["nll"], intact).sum() / sum(row["tokens"])
        assert row["intact_nll"] == (None if worker is here else intact)
        assert told["intact"] == (None if worker is here else pytest.approx(sum(intact) / sum(row["tokens"])))
        assert mean_damage([told], average) == pytest.approx(truth, rel=1e-9)
    measure(there, "blocks", 1)
    for row in there.store.read("ablations", "block-0001").to_pylist():
        assert row["intact_nll"] == intact


def a_cell(worker, *names: str):
    """Cells of a study's super weights by their label's end, and the ranking that they are chosen from."""
    mine = {cell.label: cell for cell in cells(worker.spec) if cell.group == "super"}
    ranking = worker.store.read("rankings", "grad_x_weight-per_layer-s7")
    return [next(c for label, c in mine.items() if label.endswith(name)) for name in names], ranking


def test_a_set_is_looked_up_once_for_all_kinds_of_its_damage_and_the_last_few_are_known(run_all, monkeypatch):
    kinds = (PerturbSpec(kind="zero"), PerturbSpec(kind="set_mean"))
    parts = (Subset(kind="layer", value=1), Subset(kind="layer", value=0))
    worker, rows = run_all(perturbations=kinds, parts=parts)
    (*mine, first), ranking = a_cell(worker, "zero", "set_mean", "zero-layer-1", "set_mean-layer-1", "zero")
    looked, real = [], damaging_module.chosen_and_known
    monkeypatch.setattr(damaging_module, "chosen_and_known", lambda *a: looked.append(a[1:]) or real(*a))
    monkeypatch.setattr(damaging_module, "SETS", 2)
    worker.damaging._sets.clear()
    for cell in (*mine, *mine):
        assert worker.damaging.run(cell, ranking)["nll"] == rows[cell.label]["nll"]
    assert [(group, part and part.value) for group, _, part, _ in looked] == [("super", None), ("super", 1)]
    (other,), _ = a_cell(worker, "zero-layer-0")
    for cell in (other, first):  # the whole set was used longest ago, and so made room
        worker.damaging.run(cell, ranking)
    assert len(looked) == 4
    again = ranking.slice(0)  # another ranking may hold other weights
    worker.damaging.run(first, again)
    assert len(looked) == 5


def test_sets_too_large_to_be_known_are_looked_up_each_time(run_all, monkeypatch):
    worker, rows = run_all(perturbations=(PerturbSpec(kind="zero"),))
    (cell,), ranking = a_cell(worker, "zero")
    monkeypatch.setattr(damaging_module, "LARGEST", 3)
    for _ in range(2):
        assert worker.damaging.run(cell, ranking)["nll"] == rows[cell.label]["nll"]
        assert not worker.damaging._sets


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: ECC")])
def test_a_cell_that_isn_t_taken_back_ends_the_process_and_is_not_run_again(tiny_study, tmp_path, monkeypatch, error):
    spec = tiny_study.replace(seeds=(7,), topk=(4,), groups=("super",), perturbations=(PerturbSpec(kind="zero"),))
    worker = Worker(spec, find(spec.model), str(tmp_path))
    measure(worker, "rankings", 7)
    (cell,), _ = a_cell(worker, "zero")
    calls, real = [], WeightTensor.write

    def write(self, at, new):
        calls.append(self.name)
        if len(calls) > len(set(calls)):  # a tensor's second write takes its edit back
            raise error
        real(self, at, new)

    monkeypatch.setattr(WeightTensor, "write", write)
    with pytest.raises(NotRestoredError) as raised:
        run(worker, cell)
    assert raised.value.__cause__ is error
    (row,) = worker.store.read("cells", worker.store.names("cells")[0]).to_pylist()
    assert row["status"] == "error"  # until a fresh process has run it


@pytest.mark.parametrize(("components", "stays"), [(("down", "q"), True), (("down", "norm"), False)])
def test_what_comes_after_the_blocks_is_promised_to_stay_only_where_no_cell_can_touch_it(
    tiny_study, tmp_path, components, stays
):
    spec = tiny_study.replace(scores=(ScoreSpec(components=components),))
    assert Worker(spec, find(spec.model), str(tmp_path)).damaging.tail_stays is stays
