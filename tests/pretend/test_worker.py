"""A worker on a pretend card: a study's rows are the CPU's, and a card that fails leaves no wrong number behind."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
import torch

from esa_ray.grid import Cell, cells
from esa_ray.measurements.worker import Worker
from esa_ray.models.addressing import catalogue
from esa_ray.models.sources import find
from esa_ray.perturb.edit import NotRestoredError, perturbed
from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, Protocol, ScoreSpec, StudySpec
from tests.engine.conftest import TEXT, save_model
from tests.measuring import measure, run
from tests.pretend.benches import attention_of_cards
from tests.pretend.compare import difference
from tests.pretend.operations import VIEWS
from tests.tiny import tiny

POISON = getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: device-side assert triggered")
NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")
TABLES = ("baselines", "rankings", "score_stats", "samples", "cells", "fidelity", "ablations", "protocols")
#: What tells a run from another: when, where and how fast, but not what came out.
CIRCUMSTANCES = {"seconds", "created", "device", "worker", "tokens_per_second", "peak_memory", "version"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    (folder / "text.txt").write_text(TEXT)
    return StudySpec(
        name="tiny",
        model=ModelSpec(source=save_model(folder / "model")),
        data=DataSpec(
            source=str(folder / "text.txt"), window=24, calibration_windows=4, evaluation_windows=5, batch_size=2
        ),
        scores=(ScoreSpec(metric="grad_x_weight", components=("q", "down")), ScoreSpec(metric="act_mag")),
        topk=(3,),
        seeds=(7,),
        perturbations=(PerturbSpec(kind="zero"), PerturbSpec(kind="gauss_noise", strength=0.5)),
        groups=("super", "random_k", "matched_k", "bottom_k"),
        fidelity=24,
        protocols=(Protocol(name="smoke", contexts=(12,), windows=3),),
    )


def _all_of_it(worker: Worker) -> dict[str, list]:
    """Every unit of the study without Ray, and then its tables."""
    measure(worker, "baseline")
    measure(worker, "rankings", 7)
    for cell in cells(worker.spec):
        run(worker, cell)
    measure(worker, "single_weights", 0)
    for layer in range(2):
        measure(worker, "blocks", layer)
    measure(worker, "protocols", ("smoke",), 12, 7)
    return {table: _rows(worker, table) for table in TABLES}


def _rows(worker: Worker, table: str) -> list[dict]:
    rows = [row for name in sorted(worker.store.names(table)) for row in worker.store.read(table, name).to_pylist()]
    return [{column: value for column, value in row.items() if column not in CIRCUMSTANCES} for row in rows]


def _on_card(study: StudySpec, folder) -> Worker:
    return Worker(study, find(study.model), str(folder), device="cuda", memory_budget=1 << 30)


def test_a_study_on_a_card_has_the_rows_of_the_cpu(study, cards, tmp_path):
    found = _all_of_it(_on_card(study, tmp_path / "card"))
    with attention_of_cards():
        expected = _all_of_it(Worker(study, find(study.model), str(tmp_path / "cpu")))
    assert {len(rows) > 0 for rows in expected.values()} == {True}
    assert (differs := difference(expected, found)) is None, differs


# A failed restoration


@pytest.mark.parametrize("error", [NO_MEMORY, POISON], ids=["out of memory", "poisoned"])
@pytest.mark.parametrize("after", [0, 1])
def test_an_error_while_originals_are_written_back_is_a_failed_restoration(cards, error, after):
    model = tiny("llama")
    cards.place(model)
    tensors = catalogue(model).select(("q", "down"))
    before = [tensor.flat_weights().clone() for tensor in tensors]
    chosen = {tensor.name: np.arange(3) for tensor in tensors}
    try:
        with ExitStack() as trouble, perturbed(catalogue(model), chosen, PerturbSpec(kind="sign_flip"), seed=0):
            trouble.enter_context(cards.failing(lambda name: name.endswith("_"), error, after=after))
    except NotRestoredError:
        return
    # Writing again until it has worked is as good.
    assert all(torch.equal(tensor.flat_weights(), was) for tensor, was in zip(tensors, before, strict=True))


@pytest.mark.parametrize("fraction", [0.1, 0.7, 0.95], ids=["early", "later", "late"])
def test_where_memory_runs_out_in_scoring_or_ranking_the_rankings_are_the_same(study, cards, tmp_path, fraction):
    untroubled = _on_card(study, tmp_path / "a")
    with cards.counting() as tally:
        measure(untroubled, "rankings", 7)
    troubled = _on_card(study, tmp_path / "b")
    after = int(fraction * tally.operations)
    with cards.failing(lambda name: name not in VIEWS, NO_MEMORY, after=after):
        measure(troubled, "rankings", 7)
    for table in ("rankings", "score_stats"):
        assert (differs := difference(_rows(untroubled, table), _rows(troubled, table))) is None, differs


def _cell(worker: Worker) -> Cell:
    measure(worker, "rankings", 7)
    return cells(worker.spec)[0]


def test_where_memory_runs_out_in_a_cell_its_row_is_the_same(study, cards, tmp_path):
    rows = []
    for name in ("untroubled", "troubled"):
        worker = _on_card(study, tmp_path / name)
        cell = _cell(worker)
        assert worker.damaging.intact
        with cards.failing(lambda operation, name=name: name == "troubled" and "logsumexp" in operation, NO_MEMORY):
            run(worker, cell)
        (row,) = _rows(worker, "cells")
        rows.append(row | {"resumed_at": None})
    assert (differs := difference(rows[0], rows[1])) is None, differs


def test_a_poisoned_card_ends_the_worker(study, cards, tmp_path):
    worker = _on_card(study, tmp_path)
    cell = _cell(worker)
    assert worker.damaging.intact
    ended = False
    with cards.failing(lambda name: name not in VIEWS, POISON, after=20, sticky=True) as failure:
        try:
            run(worker, cell)
        except RuntimeError:
            ended = True
    assert failure.raised
    assert ended, "the worker went on with a card that answers no more"
    assert all(row["status"] == "error" for row in _rows(worker, "cells"))
