"""Faults as a grid without Ray: packets, rows, ids, what resumes, and what a model is afterwards."""

import math

import numpy as np
import pytest
import torch

from esa_ray import fault_tolerance_analysis
from esa_ray.evaluation import evaluate
from esa_ray.measurements import MEASUREMENTS, memory_cost
from esa_ray.measurements.faults import packets
from esa_ray.measurements.worker import Worker
from esa_ray.models.load import load_model
from esa_ray.models.sources import find
from esa_ray.scoring.strata import STRATA
from esa_ray.spec import FaultSpec
from tests.tiny import state_bits

GRID = MEASUREMENTS["faults"]
#: What a row says that isn't a result.
NOISE = ("seconds", "created", "worker", "fault_id")
EVERY = (
    FaultSpec(rate=1e-4, repeats=3),
    FaultSpec(rate=1e-3, dtype="int8", protect="secded", repeats=3),
    FaultSpec(fault="burst", events=2, dtype="fp32", protect="secded-critical", critical=0.01, repeats=3),
    FaultSpec(fault="row", events=1, row_bytes=64, dtype="fp16", protect="clamp", repeats=2),
    FaultSpec(fault="column", events=1, row_bytes=64, protect="tmr-critical", critical=0.01, repeats=2),
    FaultSpec(fault="stuck", rate=1e-4, protect="zero-exponent-bit", repeats=2),
    FaultSpec(rate=1e-4, dtype="int8", protect="parity-zero", repeats=2),
    FaultSpec(rate=1e-3, dtype="int8", protect="rotation", repeats=2),
)


@pytest.fixture
def working(tiny_study, tmp_path):
    """A worker of a study of faults, in a directory of its own."""

    def of(faults, place="study", **changes):
        asked = {"perturbations": (), "groups": ("super",), "scores": (), "faults": tuple(faults), "seeds": (7,)}
        spec = tiny_study.replace(**asked | changes)
        worker = Worker(spec, find(spec.model), str(tmp_path / place))
        found = worker.describe()
        worker.store.save_study(spec, found, found.pop("versions"))
        return worker

    return of


def measured(worker, units=None):
    for unit in GRID.asked(worker.spec, worker.store) if units is None else units:
        worker.measure("faults", unit)
    return [row for name in worker.store.names("faults") for row in worker.store.read("faults", name).to_pylist()]


def told(rows):
    """(label, bit, tensor, row, col, repeat) → what came of it."""
    keys = ("label", "bit", "tensor", "row", "col", "repeat")
    return {tuple(row[k] for k in keys): {k: v for k, v in row.items() if k not in NOISE} for row in rows}


def test_every_fault_and_protection_has_its_rows_in_any_order_and_leaves_the_model_as_it_was(working):
    worker = working(EVERY)
    before = state_bits(worker.model)
    forth = told(measured(worker))
    assert state_bits(worker.model) == before
    assert len(forth) == sum(how.repeats for how in EVERY)
    assert {row["status"] for row in forth.values()} <= {"ok", "diverged"}
    again = working(EVERY, "back")
    back = told(measured(again, GRID.asked(again.spec, again.store)[::-1]))
    assert repr(sorted(back.items(), key=repr)) == repr(sorted(forth.items(), key=repr))  # NaN is itself here


def test_without_a_fault_a_row_has_the_loss_of_the_model_rounded_to_the_dtype_of_storage(working):
    ways = [FaultSpec(rate=1e-12, dtype=dtype, repeats=1) for dtype in ("fp32", "fp16", "bf16")]
    worker = working(ways)
    rows = {row["dtype"]: row for row in told(measured(worker)).values()}
    intact = worker.damaging.intact.outcome.nll
    assert rows["fp32"]["nll"] == rows["fp32"]["stored_nll"] == intact
    for dtype, kind in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        twin = Worker(worker.spec, worker.source, str(worker.store.directory))
        with torch.no_grad():
            for parameter in twin.model.parameters():
                parameter.copy_(parameter.to(kind).float())
        expected = evaluate(twin.model, worker.windows.evaluation, 2).nll
        row = rows[dtype]
        assert row["nll"] == row["stored_nll"] == expected != intact
        assert (row["intact_nll"], row["n_flips"], row["n_changed"]) == (intact, 0, 0)
        assert (row["computed"], row["resumed_at"]) == ("fp32", None)


def test_a_row_of_memory_hits_no_more_than_it_holds(working):
    worker = working([FaultSpec(fault="row", events=1, row_bytes=64, dtype="fp32", repeats=4, components=("down",))])
    rows = measured(worker)
    assert {row["n_weights"] for row in rows} == {2 * 32 * 48}
    assert {row["n_bits"] for row in rows} == {32 * 2 * 32 * 48}
    for row in rows:
        assert 0 < row["n_flips"] <= 64 * 8
        assert 0 < row["n_changed"] <= 16
        assert row["n_undetected"] == row["n_changed"]
        assert row["resumed_at"] in (None, 1)


def test_protections_see_the_same_flips_and_a_code_that_corrects_all_of_them_costs_no_pass(working, monkeypatch):
    ways = [FaultSpec(rate=2e-5, protect=protect, repeats=6) for protect in ("none", "secded")]
    worker = working(ways)
    bare, coded = (GRID.asked(worker.spec, worker.store)[i] for i in (0, 1))
    unprotected = [row for row in measured(worker, [bare]) if row["protect"] == "none"]
    worker.memories.of(ways[1], 7)
    passes = []
    worker.model.register_forward_hook(lambda *_: passes.append(1))
    rows = [row for row in measured(worker, [coded]) if row["protect"] == "secded"]
    assert sum(row["n_flips"] for row in unprotected) > 0
    assert sum(row["n_undetected"] for row in unprotected) > 0
    assert all(row["n_corrected"] == row["n_words"] for row in rows)
    assert all(row["nll"] == row["stored_nll"] for row in rows)
    assert rows[0]["overhead"] == pytest.approx(0.125, abs=1e-3)
    assert passes == []  # nothing changed, and what is stored was measured with the other


def test_what_lies_behind_the_damage_alone_is_run_and_comes_to_the_whole_models_loss(working):
    how = FaultSpec(fault="burst", events=3, dtype="int8", repeats=4, components=("o", "down", "norm"))
    resumed = working([how])
    whole = working([how], "whole")
    whole.memories.of(how, 7).resuming.__dict__["_resumable"] = None
    pairs = zip(measured(resumed), measured(whole), strict=True)
    rows = [(one, other) for one, other in pairs if one["resumed_at"] is not None]
    assert rows
    for one, other in rows:
        assert other["resumed_at"] is None
        assert one["nll"] == pytest.approx(other["nll"], abs=1e-4)


def test_more_repeats_are_more_rows_of_the_same_draws_and_whole_packets_stay(working, monkeypatch):
    monkeypatch.setattr("esa_ray.measurements.faults.PACKET", 2)
    few, more = (FaultSpec(rate=1e-4, repeats=n) for n in (3, 5))

    def ids(how):
        worker = working([how], str(how.repeats))
        found = told(measured(worker))
        units = GRID.asked(worker.spec, worker.store)
        return [GRID.id_of(unit, worker.spec, worker.resolved) for unit in units], found

    (first, rows), (second, others) = ids(few), ids(more)
    assert first[0] == second[0]
    assert len({*first, *second}) == 4  # the last packet held one injection, then two
    assert repr(rows.items()) == repr({key: others[key] for key in rows}.items())


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"early_stop": 0.1}, {}),
        ({"seeds": (8,)}, {}),
        ({}, {"rate": 1e-5}),
        ({}, {"protect": "clamp"}),
        ({}, {"dtype": "fp16"}),
        ({}, {"components": ("down",)}),
    ],
)
def test_everything_that_changes_a_number_changes_the_id(working, changes, fields):
    how = FaultSpec(rate=1e-4, repeats=3)

    def ids(worker):
        return {GRID.id_of(unit, worker.spec, worker.resolved) for unit in GRID.asked(worker.spec, worker.store)}

    plain, other = working([how]), working([how.model_copy(update=fields)], "other", **changes)
    assert not ids(plain) & ids(other)
    assert ids(plain) == ids(working([how], "again", name="called"))


def test_an_evaluation_may_stop_at_the_batch_that_decides(working):
    how = FaultSpec(fault="row", events=4, row_bytes=512, dtype="bf16", repeats=8)
    whole, stopping = measured(working([how])), measured(working([how], "stop", early_stop=0.4))
    assert {row["windows"] for row in whole} == {5}
    assert min(row["windows"] for row in stopping) < 5
    for one, other in zip(whole, stopping, strict=True):
        n = other["windows"]
        assert len(other["nll"]) == len(other["tokens"]) == len(other["hits"]) == n
        np.testing.assert_array_equal(other["nll"], one["nll"][:n])


def test_a_killed_packet_is_missing_and_the_others_arent(working):
    worker = working([FaultSpec(rate=1e-4, repeats=60)])
    units = GRID.asked(worker.spec, worker.store)
    assert [unit.name for unit in units] == [f"uniform-bf16-0.0001-none-s7-{i:04d}" for i in range(3)]
    measured(worker, units[:1])
    assert GRID.missing(worker.spec, worker.store) == units[1:]
    rows = measured(worker)
    assert sorted(row["repeat"] for row in rows) == list(range(60))
    assert GRID.counts(worker.spec, worker.store, worker.resolved).total() == 3


def test_a_share_that_is_of_no_weight_is_this_faults_alone_and_refused(working):
    worker = working([FaultSpec(rate=1e-4, protect="secded-critical", critical=1e-9, repeats=1), EVERY[0]])
    rows = measured(worker)
    (refused,) = (row for row in rows if row["refused"])
    assert (refused["status"], refused["protect"]) == ("error", "secded-critical")
    assert "--critical" in refused["error"]
    assert {row["status"] for row in rows if row["protect"] == "none"} <= {"ok", "diverged"}
    assert GRID.refused(worker.spec, worker.store, worker.resolved) == 1


def test_a_detected_error_that_stops_the_machine_leaves_the_stored_models_outcome(working):
    worker = working([FaultSpec(fault="burst", events=1, burst=2, protect="secded", policy="stop", repeats=8)])
    rows = measured(worker)
    # Two neighbouring bits of a word are detected, unless one of them is another word's or no weight's.
    assert sum(row["n_detected"] for row in rows) >= 6
    assert all(row["nll"] == row["stored_nll"] for row in rows)


def test_single_flips_are_made_of_every_bit_in_every_component_and_range(working):
    worker = working([FaultSpec(fault="single", dtype="int8", repeats=2, components=("q", "down"))])
    rows = measured(worker)
    assert {row["bit"] for row in rows} == set(range(8))
    assert {row["component"] for row in rows} == {"q", "down"}
    sizes = {"q": 2 * 32 * 32, "down": 2 * 32 * 48}
    for component, size in sizes.items():
        strata = {row["stratum"]: row["population"] for row in rows if row["component"] == component}
        assert sum(strata.values()) == size
        mine = [row for row in rows if row["component"] == component and row["bit"] == 7]
        assert len(mine) == sum(min(2, n) for n in strata.values())
    for row in rows:  # a bit of two's complement is worth its power of two in steps of the scale
        step = abs(row["damaged"] - row["weight"])
        assert math.isclose(step * 2 ** (7 - row["bit"]), _step_of(worker, row), rel_tol=1e-5)
    assert len({(row["bit"], row["tensor"], row["row"], row["col"], row["repeat"]) for row in rows}) == len(rows)


def _step_of(worker, row):
    """128 steps of the scale of a weight's row."""
    weights = dict(worker.model.named_parameters())[row["tensor"]]
    return float(weights[row["row"]].abs().max()) / 127 * 128


def test_a_plan_counts_as_many_ranges_as_there_are_and_the_passes_of_scores(working):
    assert len(STRATA) == memory_cost.STRATA
    single = FaultSpec(fault="single", dtype="int8", repeats=3)
    chance = FaultSpec(rate=1e-4, protect="tmr-critical", critical=0.01, repeats=4)
    spec = working([single, chance]).spec.replace(seeds=(7, 8))
    found = GRID.cost(spec)
    assert found.single_edits == 2 * 8 * 3 * 12 * 10
    assert found.backward_passes == 2 * 4  # gradients of a seed's windows serve both
    assert found.forward_passes == 2 * 4 * 5 + 2 * 4


def test_the_driver_hears_the_median_injection_of_a_packet_whatever_diverged():
    def row(nll, status="ok"):
        return {"status": status, "nll": [nll, nll], "tokens": [2, 2], "stored_nll": [2.0, 2.0], "seconds": 0.5}

    told = GRID.heard([row(9.0), row(3.0), row(math.nan, "diverged")])
    assert (told["nll"][0] / told["tokens"][0], told["tokens"], told["intact"]) == (4.5, [12], 1.0)
    assert told["seconds"] == 1.5
    assert GRID.heard([row(3.0), row(math.nan, "diverged")])["nll"] == [math.inf]
    assert GRID.heard([{"status": "error", "error": "no"}])["error"] == "no"


def test_packets_hold_every_injection_once_and_only_the_last_is_short():
    for how in (FaultSpec(rate=0.1, repeats=n) for n in (1, 24, 25, 26, 99)):
        made = packets(how, 3)
        assert [n for packet in made for n in packet.repeats] == list(range(how.repeats))
        assert {packet.count for packet in made[:-1]} <= {25}
    made = packets(FaultSpec(fault="single", dtype="int8", repeats=7), 3)
    assert [(packet.bit, packet.repeats) for packet in made[:3]] == [(0, range(5)), (0, range(5, 7)), (1, range(5))]
    assert len(made) == 16


def test_a_packet_of_ranges_without_so_many_weights_is_done_all_the_same(working):
    # 32 weights of a norm: of a tenth of 160 there are at most some 16.
    worker = working([FaultSpec(fault="single", dtype="int8", repeats=25, components=("norm",))])
    rows = measured(worker)
    assert [unit.name for unit in GRID.missing(worker.spec, worker.store)] == []
    empty = [row for row in rows if row["status"] == "empty"]
    assert len(empty) == 8
    assert {row["error"] for row in empty} == {"no range of scores has so many weights"}
    assert GRID.counts(worker.spec, worker.store, worker.resolved)["empty"] == 8


def test_from_python_a_model_by_its_name_is_stored_and_hit_as_by_the_command(working):
    worker = working([FaultSpec(rate=2e-5, repeats=4)])
    rows = sorted(measured(worker), key=lambda row: row["repeat"])
    found = fault_tolerance_analysis(
        worker.source.path, windows=worker.windows.evaluation, seed=7, rate=2e-5, repeats=4
    )  # fmt: skip
    assert [row["n_flips"] for row in found.rows] == [row["n_flips"] for row in rows]
    for mine, row in zip(found.rows, rows, strict=True):
        np.testing.assert_allclose(mine["nll"], row["nll"], rtol=1e-6)
    model = load_model(worker.source, "fp32", "cpu")
    own = fault_tolerance_analysis(model, windows=worker.windows.evaluation, seed=7, rate=2e-5, repeats=4)
    norms = [[row["delta_norm"] for row in each.rows] for each in (own, found)]
    assert norms[0] != norms[1]  # the model's own order is another one
