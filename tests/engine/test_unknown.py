"""Weights that nothing tells, through a worker: recorded, and ranked and damaged where their tensor is named."""

from esa_ray.grid import cell_id, cells
from esa_ray.measurements.worker import Worker
from esa_ray.models.sources import find
from esa_ray.spec import ModelSpec, ScoreSpec
from tests.measuring import measure, run
from tests.tiny import byte_tokenizer
from tests.tiny_layouts import tiny_layout


def test_what_neither_name_nor_use_tells_is_recorded_and_scored_and_damaged_by_its_name(tiny_study, tmp_path):
    place = tmp_path / "model"
    tiny_layout("gemma3n_text", 258).save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    spec = tiny_study.model_copy(
        update={
            "model": ModelSpec(source=str(place)), "topk": (2,), "groups": ("super", "random_k"),
            "scores": (ScoreSpec(metric="grad_x_weight", components=("*.laurel.linear_left.weight",)),),
        }
    )  # fmt: skip
    worker = Worker(spec, find(spec.model), str(tmp_path / "study"))
    told = worker.describe()["addressed"]
    assert told["other"]["model.layers.*.laurel.linear_left.weight"] == 2 * 6 * 16
    assert sum(told["components"].values()) + told["biases"] == worker.describe()["parameters"]
    measure(worker, "rankings", 7)
    cell = next(c for c in cells(spec) if c.seed == 7 and c.group == "super")
    run(worker, cell)
    name = f"{cell.label}-{cell_id(cell, spec.data, worker.resolved)}"
    row = worker.store.read("cells", name).to_pylist()[0]
    assert (row["status"], row["n_changed"], row["restored"]) == ("ok", 2 * 2, True)
    assert row["resumed_at"] is None  # blocks read more than the hidden state, so the whole model runs
    assert row["nll"] != worker.damaging.intact.outcome.nll
    ranked = worker.store.read("rankings", "grad_x_weight-per_layer-s7").to_pylist()
    assert {(r["component"], r["tensor"].partition(".laurel")[2]) for r in ranked} == {("other", ".linear_left.weight")}
