"""The worker without Ray: cells from their row alone, exact restoration, errors as rows."""

import math
import shutil
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from esa_ray.engine.actor import Meters, ModelActor
from esa_ray.errors import EsaError
from esa_ray.evaluation import damaging as damaging_module
from esa_ray.grid import Cell, cell_id, cells
from esa_ray.measurements import Unit
from esa_ray.measurements.cells import missing_cells, unit_of
from esa_ray.measurements.worker import Worker
from esa_ray.models.sources import find
from esa_ray.scoring import rankings as rankings_module
from esa_ray.spec import PerturbSpec, Subset, WeightList, WeightName
from tests.measuring import measure, run
from tests.tiny import state_bits

DOWN = "model.layers.1.mlp.down_proj.weight"
#: What torch raises for the device's own errors: of this type from 2.8 on.
DEVICE_ERROR = getattr(torch, "AcceleratorError", RuntimeError)


@pytest.fixture
def new_worker(tiny_study, tmp_path):
    def make(directory=None):
        return Worker(tiny_study, find(tiny_study.model), str(directory or tmp_path))

    return make


def _stored(worker, cell):
    name = f"{cell.label}-{cell_id(cell, worker.spec.data, worker.resolved)}"
    return worker.store.read("cells", name).to_pylist()[0]


def test_a_cell_has_the_loss_of_a_model_damaged_by_hand(new_worker):
    worker = new_worker()
    measure(worker, "rankings", 7)
    cell = Cell(score=worker.spec.scores[0], k=3, seed=7, group="super", perturbation=PerturbSpec(kind="zero"))
    run(worker, cell)
    row = _stored(worker, cell)

    ranking = worker.store.read("rankings", "grad_x_weight-per_layer-s7").to_pylist()
    twin = new_worker().model.double()
    parameters = dict(twin.named_parameters())
    for r in ranking:
        if r["group"] == "super" and r["rank"] <= 3:
            parameters[r["tensor"]].data[r["row"], r["col"]] = 0.0
    windows = torch.as_tensor(worker.windows.evaluation)
    for got, window in zip(row["nll"], windows, strict=True):
        want = cross_entropy(twin(window[None]).logits[0, :-1], window[1:], reduction="sum")
        assert got == pytest.approx(float(want), rel=1e-5)
    assert row["n_weights"] == row["n_changed"] == 2 * 3
    assert row["status"] == "ok"
    assert row["restored"]


def test_a_model_that_is_overwritten_while_cells_run_gives_no_more_rows(tiny_study, tmp_path):
    """The weights are a map of the file, so what is written there would be damaged and measured as this model."""
    shutil.copytree(tiny_study.model.source, tmp_path / "m")
    study = tiny_study.replace(model={"source": str(tmp_path / "m")})
    worker = Worker(study, find(study.model), str(tmp_path / "out"))
    measure(worker, "rankings", 7)
    first, second = [c for c in cells(worker.spec) if c.seed == 7][:2]
    run(worker, first)
    with (tmp_path / "m" / "model.safetensors").open("r+b") as stream:
        stream.seek(-4, 2)
        stream.write(b"\0\0\0\0")
    with pytest.raises(EsaError, match="its files were written to since it was found"):
        run(worker, second)
    assert len(worker.store.names("cells")) == 1


def test_cells_are_the_same_from_two_workers_in_any_order(new_worker, tmp_path):
    first, second = new_worker(tmp_path / "a"), new_worker(tmp_path / "b")
    some = [c for c in cells(first.spec) if c.seed == 7][::3]
    for worker, order in ((first, some), (second, some[::-1])):
        measure(worker, "rankings", 7)
        for cell in order:
            run(worker, cell)
    for cell in some:
        a, b = _stored(first, cell), _stored(second, cell)
        np.testing.assert_array_equal(a["nll"], b["nll"])
        assert (a["n_changed"], a["cell_id"]) == (b["n_changed"], b["cell_id"])


def test_weights_are_bit_identical_after_all_cells_and_after_an_exception(new_worker, monkeypatch):
    worker = new_worker()
    before = state_bits(worker.model)
    measure(worker, "rankings", 7)
    for cell in cells(worker.spec):
        if cell.seed == 7:
            run(worker, cell)
    assert state_bits(worker.model) == before

    def fail(*_, **__):
        raise RuntimeError("out of memory, say")

    monkeypatch.setattr(damaging_module, "evaluate", fail)
    cell = cells(worker.spec)[0].model_copy(update={"repeat": 1})  # what is stored isn't run again
    run(worker, cell)
    row = _stored(worker, cell)
    assert row["status"] == "error"
    assert "out of memory, say" in row["error"]
    assert row["nll"] is None
    assert state_bits(worker.model) == before


def test_a_diverged_cell_is_an_outcome_of_its_own(new_worker):
    worker = new_worker()
    measure(worker, "rankings", 7)
    cell = cells(worker.spec)[0].model_copy(update={"perturbation": PerturbSpec(kind="gauss_noise", strength=1e40)})
    run(worker, cell)
    row = _stored(worker, cell)
    # 1e40 exceeds fp32, so the weights are infinite and the loss can't be finite.
    assert row["status"] == "diverged"
    assert not all(map(math.isfinite, row["nll"]))
    assert row["error"] is None


def test_noise_too_weak_to_change_anything_costs_nothing_and_takes_no_pass(new_worker, monkeypatch):
    worker = new_worker()
    measure(worker, "rankings", 7)
    base = worker.damaging.baseline()
    for name in ("evaluate", "continued"):
        monkeypatch.setattr(damaging_module, name, None)  # a call would fail
    for changes in ({}, {"early_stop": 0.2}):
        weak = PerturbSpec(kind="gauss_noise", strength=1e-12)
        cell = cells(worker.spec)[0].model_copy(update={"perturbation": weak, **changes})
        run(worker, cell)
        row = _stored(worker, cell)
        assert (row["status"], row["error"], row["restored"], row["resumed_at"]) == ("ok", None, True, None)
        assert (row["n_weights"], row["n_changed"], row["delta_norm"], row["windows"]) == (6, 0, 0.0, 5)
        assert (row["nll"], row["hits"], row["tokens"]) == (base["nll"], base["hits"], base["tokens"])
        assert row["kl"] == [0.0] * 5


def test_prompts_of_a_cell_that_changed_nothing_end_as_those_of_the_intact_model(tiny_study, tmp_path, monkeypatch):
    worker = Worker(
        tiny_study.replace(data=tiny_study.data.model_copy(update={"prompts": 2})),
        find(tiny_study.model),
        str(tmp_path),
    )
    measure(worker, "rankings", 7)
    measure(worker, "baseline")
    monkeypatch.setattr(damaging_module, "continued", None)  # nothing is generated again
    cell = cells(worker.spec)[0].model_copy(update={"perturbation": PerturbSpec(kind="bit_flip", strength=1e-12)})
    run(worker, cell)
    assert _stored(worker, cell)["loops"] == worker.store.read("baselines", "baseline").to_pylist()[0]["loops"]


def test_damage_that_can_change_no_weight_of_its_set_is_refused_in_its_own_cell(tiny_study, tmp_path):
    spec = tiny_study.replace(groups=("super", "random_k", "matched_k"))
    worker = Worker(spec, find(spec.model), str(tmp_path))
    with torch.no_grad():  # all weights that the score could choose, of one block
        for name, parameter in worker.model.named_parameters():
            if ".layers.1." in name and parameter.dim() > 1:
                parameter.zero_()
    measure(worker, "rankings", 7)
    whole = cells(worker.spec)[0]
    part = whole.model_copy(update={"part": Subset(kind="layer", value=1)})
    run(worker, whole)
    told = run(worker, part)
    assert _stored(worker, whole)["status"] == "ok"
    row = _stored(worker, part)
    assert (row["status"], row["nll"], row["n_weights"], row["n_changed"]) == ("empty", None, 3, 0)
    assert row["error"] == "zero can't change any of the 3 weights, as every one is 0"
    assert told["status"] == "empty"


def test_cells_of_older_versions_that_failed_because_nothing_changed_are_run_again(new_worker):
    worker = new_worker()
    measure(worker, "rankings", 7)
    cell = cells(worker.spec)[0].model_copy(update={"perturbation": PerturbSpec(kind="gauss_noise", strength=1e-12)})
    spec = worker.spec.replace(perturbations=(cell.perturbation,), seeds=(7,), topk=(3,), groups=("super",))
    identity = cell_id(cell, spec.data, worker.resolved)
    old = {"cell_id": identity, **cell.columns, "status": "error", "error": "NothingChangedError: changed none of 6"}
    worker.store.write("cells", f"{cell.label}-{identity}", [old])
    assert [c.label for c in missing_cells(worker.store, spec, worker.resolved)] == [cell.label]
    run(worker, cell)
    assert (_stored(worker, cell)["status"], _stored(worker, cell)["n_changed"]) == ("ok", 0)
    assert missing_cells(worker.store, spec, worker.resolved) == []


@pytest.mark.parametrize(("dtype", "refused"), [("bf16", True), ("fp16", False)])
def test_a_step_that_always_rounds_away_is_refused_once_the_dtype_is_known(tiny_study, tmp_path, dtype, refused):
    spec = tiny_study.replace(
        model=tiny_study.model.model_copy(update={"dtype": dtype}),
        perturbations=(PerturbSpec(kind="scale", strength=1.001),),
    )
    with ExitStack() as stack:
        if refused:
            words = r"scale-1.001 can never change a weight in bf16, where 0.001 of one rounds away; .* --dtype fp32"
            stack.enter_context(pytest.raises(EsaError, match=words))
        Worker(spec, find(spec.model), str(tmp_path))


def _once_out_of_memory(monkeypatch, module, name, error, *, work_first=False):
    """Replace a function by one that finds no memory the first time, before or after it did its work."""
    real, calls = getattr(module, name), []

    def scarce(*arguments, **options):
        calls.append(options)
        if work_first or len(calls) > 1:
            found = real(*arguments, **options)
        if len(calls) == 1:
            raise error
        return found

    monkeypatch.setattr(module, name, scarce)
    return calls


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("can't allocate memory"),
        RuntimeError("CUDA error: out of memory"), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
    ],
)  # fmt: skip
def test_a_cell_that_runs_out_of_memory_is_tried_once_more_and_comes_out_the_same(
    new_worker, monkeypatch, tmp_path, error
):
    plenty, short = new_worker(tmp_path / "plenty"), new_worker(tmp_path / "short")
    cell = Cell(score=plenty.spec.scores[0], k=3, seed=7, group="super", perturbation=PerturbSpec(kind="zero"))
    for worker in (plenty, short):
        measure(worker, "rankings", 7)
    run(plenty, cell)
    before = state_bits(short.model)
    calls = _once_out_of_memory(monkeypatch, damaging_module, "evaluate", error, work_first=True)
    run(short, cell)
    assert len(calls) == 2
    a, b = _stored(plenty, cell), _stored(short, cell)
    assert b["status"] == "ok"
    for column in ("nll", "hits", "kl", "n_changed", "delta_norm"):
        assert a[column] == b[column]
    assert state_bits(short.model) == before


def test_scoring_that_runs_out_of_memory_goes_on_with_half_and_gives_the_same_tables(new_worker, monkeypatch, tmp_path):
    plenty, short = new_worker(tmp_path / "plenty"), new_worker(tmp_path / "short")
    for worker in (plenty, short):
        worker.rankings.spec = worker.spec.replace(analyses=("weights",))
    measure(plenty, "rankings", 7)
    short.memory_budget = 2**30
    calls = _once_out_of_memory(monkeypatch, rankings_module, "score_tensors", MemoryError(), work_first=True)
    measure(short, "rankings", 7)
    assert [c["budget"] for c in calls] == [2**30, 2**29]
    for name in ("rankings", "score_stats", "sample_sizes"):
        (key,) = plenty.store.names(name)
        assert plenty.store.read(name, key).equals(short.store.read(name, key)), name


@pytest.mark.parametrize("step", ["ranked_and_described", "listing"])
def test_ranking_that_runs_out_of_memory_begins_again_with_half_and_gives_the_same_tables(
    new_worker, monkeypatch, tmp_path, step
):
    plenty, short = new_worker(tmp_path / "plenty"), new_worker(tmp_path / "short")
    given = WeightList(name="given", weights=(WeightName(tensor=DOWN, row=3, col=5),))
    for worker in (plenty, short):
        worker.rankings.spec = worker.spec.replace(analyses=("weights",), lists=(given,))
    measure(plenty, "rankings", 7)
    short.memory_budget = 2**30
    budgets, score = [], rankings_module.score_tensors
    monkeypatch.setattr(
        rankings_module,
        "score_tensors",
        lambda *a, budget, **kw: budgets.append(budget) or score(*a, budget=budget, **kw),
    )
    error = RuntimeError("CUDA error: out of memory")
    calls = _once_out_of_memory(monkeypatch, rankings_module, step, error, work_first=True)
    measure(short, "rankings", 7)
    assert budgets == [2**30, 2**29]
    assert len(calls) == 2
    for name in ("rankings", "score_stats", "sample_sizes"):
        assert plenty.store.names(name) == short.store.names(name)
        for key in plenty.store.names(name):
            assert plenty.store.read(name, key).equals(short.store.read(name, key)), (name, key)


def test_ranking_that_never_finds_memory_says_so(new_worker, monkeypatch):
    def never(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(rankings_module, "ranked_and_described", never)
    actor = _actor(new_worker())
    actor._worker.memory_budget = 2**28
    with pytest.raises(EsaError, match=r"ran out of memory.*lower --memory-budget"):
        actor.measure("rankings", [Unit("s7", (7,))])
    assert actor._worker.memory_budget == 2**26


def _actor(worker):
    actor = ModelActor()
    actor._worker, actor._meters = worker, Meters("tiny", "tiny")
    return actor


class _ProcessEndedError(BaseException):
    """Instead of the end of this process."""


@pytest.mark.parametrize(("method", "arguments"), [("describe", ()), ("measure", ("rankings", [Unit("s7", (7,))]))])
def test_a_poisoned_device_ends_the_process_whatever_it_was_asked(method, arguments, new_worker, monkeypatch):
    def ended(status):
        raise _ProcessEndedError(status)

    def poison(*_, **__):
        raise DEVICE_ERROR("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("os._exit", ended)
    actor = _actor(new_worker())
    monkeypatch.setattr(actor._worker, method, poison)
    with pytest.raises(_ProcessEndedError):
        getattr(actor, method)(*arguments)


def test_a_cell_that_poisons_the_device_ends_the_process_and_leaves_the_reason_until_another_tries_it(
    new_worker, monkeypatch, tmp_path
):
    def ended(status):
        raise _ProcessEndedError(status)

    def poison(*_, **__):
        raise DEVICE_ERROR("CUDA error: device-side assert triggered")

    actor = _actor(new_worker())
    actor.measure("rankings", [Unit("s7", (7,))])
    cell, other = (c for c in cells(actor._worker.spec)[:2])
    with monkeypatch.context() as patch:
        patch.setattr("os._exit", ended)
        patch.setattr(damaging_module, "evaluate", poison)
        actor._worker.damaging.__dict__["intact"] = object()  # measured while all was well
        with pytest.raises(_ProcessEndedError):
            actor.measure("cells", [unit_of(cell), unit_of(other)])
    row = _stored(actor._worker, cell)
    assert row["status"] == "error"
    assert "device-side assert triggered; its process ended" in row["error"]
    assert len(actor._worker.store.names("cells")) == 1  # the next cell isn't tried on such a device
    fresh = _actor(new_worker())
    assert [told["status"] for told in fresh.measure("cells", [unit_of(cell), unit_of(other)])] == ["ok", "ok"]
    assert _stored(fresh._worker, cell)["error"] is None


def test_scoring_that_finds_no_memory_however_little_it_takes_says_so(new_worker, monkeypatch):
    def never(*_, budget, **__):
        budgets.append(budget)
        raise MemoryError

    budgets = []
    monkeypatch.setattr(rankings_module, "score_tensors", never)
    actor = _actor(new_worker())
    actor._worker.memory_budget = 2**29
    with pytest.raises(EsaError, match=r"ran out of memory.*lower --memory-budget"):
        actor.measure("rankings", [Unit("s7", (7,))])
    assert budgets == [2**29, 2**28, 2**27, 2**26]


def test_a_cell_of_a_further_control_set_damages_that_set(new_worker, tiny_study):
    worker = new_worker()
    worker.rankings.spec = worker.spec.replace(control_draws=3)
    measure(worker, "rankings", 7)
    ranking = worker.store.read("rankings", "grad_x_weight-per_layer-s7").to_pylist()
    common = {"score": worker.spec.scores[0], "k": 3, "seed": 7, "group": "random_k", "depth": 5}
    rows = []
    for draw in (0, 2):
        cell = Cell(**common, perturbation=PerturbSpec(kind="zero"), control_draw=draw)
        run(worker, cell)
        rows.append(_stored(worker, cell))
        twin = dict(new_worker().model.named_parameters())
        mine = [r for r in ranking if r["group"] == "random_k" and r["control_draw"] == draw and r["rank"] <= 3]
        assert rows[-1]["delta_norm"] ** 2 == pytest.approx(
            sum(float(twin[r["tensor"]][r["row"], r["col"]]) ** 2 for r in mine), rel=1e-5
        )
    assert [row["control_draw"] for row in rows] == [0, 2]
    assert rows[0]["nll"] != rows[1]["nll"]
