"""Compressions as a grid without Ray: rows in whatever order, saved models, and what is taken up again."""

import json
from pathlib import Path

import pytest
import torch

from esa_ray.applications import compress, pruning
from esa_ray.data import read_documents, text_fingerprint
from esa_ray.errors import EsaError
from esa_ray.evaluation import evaluate
from esa_ray.measurements import MEASUREMENTS
from esa_ray.measurements.worker import Worker
from esa_ray.models.load import load_model
from esa_ray.models.sources import find
from esa_ray.spec import METHODS, DataSpec, ModelSpec, PruneSpec, QuantizeSpec
from tests.tiny import state_bits

GRID = MEASUREMENTS["compressions"]
WAYS = (
    PruneSpec(score="gblm"),
    METHODS["sparsegpt"],
    PruneSpec(score="grad_x_weight_abs+act_mag", group="block", allocation="damage", update="refit"),
    PruneSpec(score="regional", group="model", components=("gate", "up")),
    PruneSpec(score="grad_squared", pattern="neuron", sequential=False),
    QuantizeSpec(bits=3, kept=0.01, keep_by="fisher"),
)
#: What a row says that isn't a result.
NOISE = ("seconds", "compress_seconds", "created", "worker")


@pytest.fixture
def working(tiny_study, tmp_path):
    """A worker of a study of compressions, in a directory of its own."""
    away = tmp_path / "away.txt"
    away.write_text("".join(f"def f{i}(x): return x + {i}\n" for i in range(400)))
    other = DataSpec(source=str(away), window=24, calibration_windows=1, evaluation_windows=3, batch_size=2)

    def of(name="study", ways=WAYS, **changes):
        asked = {"perturbations": (), "groups": ("super",), "scores": (), "other_texts": (other,)}
        spec = tiny_study.replace(**asked | {"compressions": ways, "seeds": (7,)} | changes)
        worker = Worker(spec, find(spec.model), str(tmp_path / name))
        found = worker.describe()
        worker.store.save_study(spec, found, found.pop("versions"))
        return worker

    return of


def measured(worker, units=None):
    for unit in GRID.asked(worker.spec, worker.store) if units is None else units:
        worker.measure("compressions", unit)
    return [
        row
        for name in worker.store.names("compressions")
        for row in worker.store.read("compressions", name).to_pylist()
    ]


def told(rows):
    """(label, text) → what came of it."""
    return {(row["label"], row["domain"]): {k: v for k, v in row.items() if k not in NOISE} for row in rows}


def test_a_compressions_numbers_are_the_same_whatever_was_compressed_before(working):
    worker = working("forth")
    before = state_bits(worker.model)
    forth = told(measured(worker))
    assert state_bits(worker.model) == before
    again = working("back")
    back = told(measured(again, GRID.asked(again.spec, again.store)[::-1]))
    assert forth == back
    assert len(forth) == 2 * (len(WAYS) + 1)
    assert {row["status"] for row in forth.values()} == {"ok"}


def test_a_row_has_the_dense_models_loss_where_it_was_computed(working):
    worker = working(ways=WAYS[:2])
    rows = told(measured(worker))
    for (label, domain), row in rows.items():
        assert row["intact_nll"] == (None if label == "dense" else rows["dense", domain]["nll"])
    assert rows[WAYS[1].label, "in"]["intact_nll"] == evaluate(worker.model, worker.windows.evaluation, 2).nll


@pytest.mark.parametrize(
    ("ways", "gradients"),
    [
        ((METHODS["wanda"], METHODS["sparsegpt"], QuantizeSpec(kept=0.1, keep_by="magnitude")), 0),
        ((METHODS["gblm"], PruneSpec(score="act_mag+grad_squared"), QuantizeSpec(kept=0.1)), 1),
        ((METHODS["wanda++"], PruneSpec(score="regional", sparsity=0.6)), 2),
    ],
)
def test_a_plan_counts_gradients_of_the_model_once_a_seed_and_of_blocks_for_each(tiny_study, ways, gradients):
    found = GRID.cost(tiny_study.replace(perturbations=(), groups=(), scores=(), compressions=ways))
    # Two seeds of 4 windows; the dense model and each compression by each seed are evaluated on 5.
    assert found.backward_passes == 2 * 4 * gradients
    assert found.forward_passes == (2 * len(ways) + 1) * 5 + 2 * 2 * len(ways) * 4 + found.backward_passes


def test_a_plan_counts_what_allocations_and_the_whole_models_choice_look_at(tiny_study):
    def found(*ways):
        return GRID.cost(tiny_study.replace(perturbations=(), groups=(), scores=(), compressions=ways))

    plain, owl = PruneSpec(), [PruneSpec(allocation="owl", sparsity=s) for s in (0.5, 0.6)]
    damage = [PruneSpec(allocation="damage", update=update) for update in ("none", "refit")]
    of_one = found(plain).forward_passes - 5  # without the dense model
    # Of two seeds, with 4 calibration windows each.
    assert found(*owl).forward_passes == 2 * of_one + 5 + 2 * 4
    assert found(*damage).forward_passes == 2 * of_one + 5 + 2 * 2 * 4
    assert found(PruneSpec(group="model")).forward_passes == of_one + 5 + 2 * 2 * 4
    assert (found(*damage).block_passes, found(*owl).block_passes) == (2 * 4 * 4, 0)


def test_a_grid_that_was_killed_goes_on_with_what_is_missing(working):
    worker = working(ways=WAYS[:3])
    units = GRID.asked(worker.spec, worker.store)
    measured(worker, units[:2])
    assert GRID.missing(worker.spec, worker.store) == units[2:]
    assert GRID.counts(worker.spec, worker.store, worker.resolved) == {"ok": 2}


def test_a_seed_that_failed_is_an_error_row_and_tried_again(working, monkeypatch):
    worker = working(ways=WAYS[:1])
    *_, unit = GRID.asked(worker.spec, worker.store)
    before = state_bits(worker.model)
    with monkeypatch.context() as broken:
        broken.setattr(pruning, "write", lambda *_: 1 / 0)
        (row,) = measured(worker, [unit])
    assert (row["status"], row["text"], row["score"]) == ("error", None, "gblm")
    assert "ZeroDivisionError" in row["error"]
    assert GRID.refused(worker.spec, worker.store, worker.resolved) == 0
    assert state_bits(worker.model) == before
    assert unit in GRID.missing(worker.spec, worker.store)
    assert unit not in GRID.missing(worker.spec, worker.store, failed=False)
    assert {row["status"] for row in measured(worker, [unit])} == {"ok"}


def test_a_combination_that_cant_be_leaves_the_others_a_result(working):
    many = (PruneSpec(allocation="owl", sparsity=0.99), PruneSpec(pattern="2:5"), PruneSpec(score="magnitude"))
    worker = working(ways=many)
    before = state_bits(worker.model)
    rows = {row["label"]: row for row in measured(worker) if row["domain"] != "out"}
    assert rows["prune-magnitude-row-0.5"]["status"] == "ok"
    assert "OWL asks for a sparsity of 1" in rows["prune-act_mag-row-0.99-owl"]["error"]
    assert "needs inputs in groups of 5" in rows["prune-act_mag-2of5"]["error"]
    assert state_bits(worker.model) == before
    assert len(GRID.missing(worker.spec, worker.store)) == 2
    assert [rows[how.label]["refused"] for how in many] == [True, True, None]
    assert GRID.refused(worker.spec, worker.store, worker.resolved) == 2


def test_memory_that_runs_out_is_tried_again_without_what_earlier_compressions_gathered(working, monkeypatch):
    worker = working(ways=WAYS[:1])
    *_, unit = GRID.asked(worker.spec, worker.store)
    gathered = worker.calibrated(7)
    tries = []

    def scarce(spec, calibrated, kept):
        tries.append(calibrated)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return pruning.prune(spec, calibrated, kept)

    monkeypatch.setattr(compress, "prune", scarce)
    assert {row["status"] for row in measured(worker, [unit])} == {"ok"}
    assert [each is gathered for each in tries] == [True, False]


def test_a_saved_model_measured_again_has_the_stored_loss(working, tmp_path):
    worker = working(ways=WAYS[1:2], save_models=str(tmp_path / "homes"))
    row = told(measured(worker))["prune-obs-tensor-0.5-sparsegpt", "in"]
    assert row["saved"] == str(tmp_path / "homes" / "prune-obs-tensor-0.5-sparsegpt-s7")
    home = find(ModelSpec(source=row["saved"]))
    again = evaluate(load_model(home, worker.dtype, "cpu"), worker.windows.evaluation, worker.spec.data.batch_size)
    assert again.nll == row["nll"]
    assert not GRID.missing(worker.spec, worker.store)


def test_a_model_that_is_to_be_saved_is_missing_until_it_is_there_and_of_this_parent(working, tmp_path):
    measured(working(ways=WAYS[:1]))
    worker = working(ways=WAYS[:1], save_models=str(tmp_path / "homes"))
    _, unit = GRID.asked(worker.spec, worker.store)
    assert GRID.missing(worker.spec, worker.store) == [unit]
    rows = measured(worker, [unit])
    assert len(rows) == 4  # the dense model's and its own, on two texts: none twice
    assert not GRID.missing(worker.spec, worker.store)
    record = Path(tmp_path / "homes" / "prune-gblm-row-0.5-s7" / "esa_edit.json")
    made_by = json.loads(record.read_text())["calibration"]
    assert made_by["fingerprint"] == text_fingerprint(read_documents(worker.spec.data))
    windows = worker.spec.data
    assert [made_by[name] for name in ("text", "windows", "tokens", "seed")] == [
        windows.source, windows.calibration_windows, windows.window, 7,
    ]  # fmt: skip
    record.write_text(json.dumps(json.loads(record.read_text()) | {"parent": {"name": "m", "fingerprint": "0" * 64}}))
    assert GRID.missing(worker.spec, worker.store) == [unit]


def test_a_directory_with_another_saved_model_is_refused_before_anything_is_compressed(working, tmp_path, monkeypatch):
    homes = str(tmp_path / "homes")
    measured(working("one", WAYS[:1], save_models=homes))
    partly = working("two", (WAYS[0].model_copy(update={"components": ("gate",)}),), save_models=homes)
    _, unit = GRID.asked(partly.spec, partly.store)
    assert unit in GRID.missing(partly.spec, partly.store)
    monkeypatch.setattr(compress, "prune", None)
    with pytest.raises(EsaError, match="holds another saved model; name another directory"):
        measured(partly, [unit])
