"""A whole study on Ray: complete, resumable, and every mendable cause one sentence."""

from pathlib import Path

import pytest

import analysis
from analysis import load
from esa_ray.engine.sweep import run_study
from esa_ray.errors import EsaError
from esa_ray.grid import Fingerprints, cell_id, cells
from esa_ray.progress import Silent
from esa_ray.spec import ModelSpec, PerturbSpec, Subset, WeightList, WeightName
from esa_ray.storage.store import Store
from tests.engine.conftest import save_model
from tests.measuring import by_one_worker

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def finished(ray_cluster, tiny_study, tmp_path_factory):
    directory = tmp_path_factory.mktemp("results") / "tiny"
    return run_study(tiny_study, directory)


def _rows(directory):
    store = Store(directory)
    return {name: store.read("cells", name).to_pylist()[0] for name in store.names("cells")}


def _wanted(study, directory):
    found = Store(directory).load_study()["resolved"]
    resolved = Fingerprints(found["model"], found["dtype"], found["text"])
    return {cell_id(c, study.data, resolved) for c in cells(study)}


def test_every_cell_of_the_grid_has_exactly_one_row(finished, tiny_study):
    rows = _rows(finished.directory)
    assert finished.complete
    assert len(rows) == finished.cells == 2 * 2 * 3 * 4
    assert {r["cell_id"] for r in rows.values()} == _wanted(tiny_study, finished.directory)
    assert all(len(r["nll"]) == 5 and r["tokens"] == [23] * 5 for r in rows.values())


def test_a_finished_study_computes_nothing(finished, tiny_study):
    assert run_study(tiny_study, finished.directory).computed == 0


def test_exactly_the_missing_cells_are_computed_and_come_out_the_same(finished, tiny_study):
    before = _rows(finished.directory)
    files = sorted((finished.directory / "cells").glob("*.parquet"))
    untouched = {f: f.stat().st_mtime_ns for f in files[4:]}
    for file in files[:4]:
        file.unlink()
    again = run_study(tiny_study, finished.directory)
    assert again.computed == 4
    assert {f: f.stat().st_mtime_ns for f in untouched} == untouched
    after = _rows(finished.directory)
    assert after.keys() == before.keys()
    assert [str(r["nll"]) for r in after.values()] == [str(r["nll"]) for r in before.values()]


def _refusal(*arguments, **options):
    with pytest.raises(EsaError) as caught:
        run_study(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_damaged_files_are_set_aside_and_only_what_they_held_is_computed_anew(ray_cluster, tiny_study, tmp_path):
    small = tiny_study.replace(topk=(3,), perturbations=(PerturbSpec(kind="zero"),))
    by_one_worker(small, tmp_path / "s")
    before = analysis.load(tmp_path / "s").cells
    files = {table: sorted((tmp_path / "s" / table).glob("*.parquet")) for table in ("cells", "rankings", "baselines")}
    torn, empty, garbage = (files[table][0] for table in files)
    others = {f: f.stat().st_mtime_ns for table in files for f in files[table][1:]}
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    empty.write_bytes(b"")
    garbage.write_bytes(b"PAR1 not really")
    told = Told()
    again = run_study(small, tmp_path / "s", reporter=told)
    assert again.complete
    assert again.computed == 2  # a cell and a ranking; the baseline comes with every start
    for broken in (torn, empty, garbage):
        assert any(broken.name in sentence for sentence in told.sentences)
    assert {f: f.stat().st_mtime_ns for f in others} == others
    columns = [c for c in before.columns if c not in ("seconds", "created", "worker")]
    assert analysis.load(tmp_path / "s").cells.select(columns).equals(before.select(columns))


class Told(Silent):
    def __init__(self):
        self.sentences = []

    def say(self, sentence):
        self.sentences.append(sentence)


def test_another_studys_directory_is_refused_by_the_fields_that_differ(finished, tiny_study):
    assert "seeds" in _refusal(tiny_study.replace(seeds=(1, 2)), finished.directory)


@pytest.fixture(scope="module")
def ranked(ray_cluster, tiny_study, tmp_path_factory):
    """A study that ranks and damages nothing, of a model of its own, and what its run came to."""
    root = tmp_path_factory.mktemp("ranked")
    mine = tiny_study.replace(model=ModelSpec(source=save_model(root / "model")), perturbations=())
    return mine, run_study(mine, root / "s")


def test_a_study_without_damage_ranks_only(ranked):
    _, summary = ranked
    assert summary.complete
    assert (summary.cells, summary.computed) == (0, 2)
    assert len(Store(summary.directory).names("rankings")) == 2


def test_a_changed_model_under_the_same_name_is_refused(ranked):
    mine, summary = ranked
    config = Path(mine.model.source) / "config.json"
    config.write_text(config.read_text() + " ")
    assert "another model" in _refusal(mine, summary.directory)


@pytest.fixture
def one_cell(tiny_study):
    """One cell of one seed, which is one actor's work."""
    return tiny_study.replace(topk=(3,), seeds=(7,), perturbations=(PerturbSpec(kind="zero"),), groups=("super",))


def test_k_larger_than_a_layer_is_refused(ray_cluster, one_cell, tmp_path):
    assert "larger than layer 0" in _refusal(one_cell.replace(topk=(10**6,)), tmp_path / "s")


def test_nan_weights_are_refused_by_name(ray_cluster, one_cell, tmp_path):
    poisoned = save_model(tmp_path / "model", poison=True)
    assert "layers.1.mlp.up_proj" in _refusal(one_cell.replace(model=ModelSpec(source=poisoned)), tmp_path / "s")


def test_a_place_that_cannot_be_written_is_refused(ray_cluster, tiny_study, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "--out-dir" in _refusal(tiny_study, tmp_path / "file" / "s")


def test_lists_parts_and_repetitions_run_to_the_end_and_only_what_is_missing_runs_again(
    ray_cluster, tiny_study, tmp_path
):
    given = WeightList(
        name="given",
        weights=tuple(WeightName(tensor="model.layers.1.mlp.down_proj.weight", row=r, col=2) for r in (3, 9)),
    )
    spec = tiny_study.replace(
        topk=(4,), seeds=(7,), perturbations=(PerturbSpec(kind="zero"), PerturbSpec(kind="gradient_aligned")),
        groups=("super", "random_k"), lists=(given,),
       
        parts=(Subset(kind="layer", value=1),), one_by_one=True, repeats=2,
    )  # fmt: skip
    done = run_study(spec, tmp_path)
    # Two kinds × (super and random_k, twice, and in block 1; the same of the list, and its two members).
    assert done.complete
    assert done.cells == 2 * ((4 + 2) + (4 + 2) + 2)
    before = _rows(tmp_path)
    assert {r["cell_id"] for r in before.values()} == _wanted(spec, tmp_path)
    store = Store(tmp_path)
    for name in [n for n in store.names("cells") if "listed" in n][:3]:
        (tmp_path / "cells" / f"{name}.parquet").unlink()
    (tmp_path / "rankings" / "listed-given-s7.parquet").unlink()
    again = run_study(spec, tmp_path)
    assert again.computed == 3 + 1  # the cells, and the ranking that they are read from
    after = _rows(tmp_path)
    assert after.keys() == before.keys()
    for name, row in after.items():
        assert (row["nll"], row["kl"]) == (before[name]["nll"], before[name]["kl"])
    assert load(tmp_path).expected_cells == done.cells


def test_a_block_without_any_of_the_set_is_empty_and_one_that_is_not_there_is_refused(
    ray_cluster, tiny_study, tmp_path
):
    given = WeightList(name="one", weights=(WeightName(tensor="model.layers.1.mlp.down_proj.weight", row=3, col=2),))
    spec = tiny_study.replace(
        topk=(3,), seeds=(7,), perturbations=(PerturbSpec(kind="zero"),), groups=("super",), lists=(given,),
        parts=(Subset(kind="layer", value=0),),
    )  # fmt: skip
    done = run_study(spec, tmp_path / "a")
    assert done.grids["cells"].statuses == {"ok": 3, "empty": 1}
    assert done.complete
    (empty,) = [r for r in _rows(tmp_path / "a").values() if r["status"] == "empty"]
    assert (empty["metric"], empty["n_weights"], empty["nll"]) == ("listed", 0, None)
    assert run_study(spec, tmp_path / "a").computed == 0
    with pytest.raises(EsaError, match="blocks 0 to 1"):
        run_study(spec.replace(parts=(Subset(kind="layer", value=2),)), tmp_path / "b")
