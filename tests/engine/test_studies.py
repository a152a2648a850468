"""Several models in one command, studies in a bucket, files packed on the way: always the same tables."""

import contextlib
import sys

import polars as pl
import pytest

import analysis
from esa_ray import cli
from esa_ray.engine import cluster, sweep, work
from esa_ray.engine.sweep import run_studies, run_study
from esa_ray.errors import EsaError
from esa_ray.host.footprint import MEMORY_SHARE
from esa_ray.measurements import MEASUREMENTS
from esa_ray.spec import ModelSpec
from esa_ray.storage import lease
from esa_ray.storage.location import Location, below
from esa_ray.storage.store import RUNNING, Store
from tests.engine.conftest import save_model
from tests.measuring import by_one_worker

pytestmark = pytest.mark.ray

#: Columns that say when and where a row was computed.
CIRCUMSTANCES = ["seconds", "created", "worker", "device", "study"]


def table(directory):
    found = analysis.load(directory).cells
    return found.select(c for c in found.columns if c not in CIRCUMSTANCES)


@pytest.fixture(scope="module")
def two_models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return [save_model(root / name, seed=seed) for name, seed in (("first", 0), ("second", 1))]


@pytest.fixture(scope="module")
def two(two_models, tiny_study):
    """A study each of two models, of 16 cells of some 50 ms."""
    data = tiny_study.data.model_copy(update={"evaluation_windows": 60, "batch_size": 1, "window": 64})
    return [
        tiny_study.replace(model=ModelSpec(source=source), data=data, topk=(3,), groups=("super", "random_k"))
        for source in two_models
    ]


@pytest.fixture(scope="module")
def each_alone(ray_cluster, two, tmp_path_factory):
    root = tmp_path_factory.mktemp("alone")
    return [table(by_one_worker(study, root / str(i)).directory) for i, study in enumerate(two)]


def spans(places):
    """When each study's cells were computed: the begin of the first, the end of the last."""
    found = [analysis.timeline(analysis.load(place)).filter(~pl.col("intact")) for place in places]
    return [(cells["start"].min(), cells["end"].max()) for cells in found]


def test_models_that_fit_together_run_side_by_side(two, each_alone, tmp_path):
    places = [tmp_path / "a", tmp_path / "b"]
    summaries = run_studies(list(zip(two, places, strict=True)))
    assert all(s.complete and s.computed >= s.cells for s in summaries)
    assert [table(p).equals(alone) for p, alone in zip(places, each_alone, strict=True)] == [True, True]
    (first, first_end), (second, second_end) = spans(places)
    assert max(first, second) < min(first_end, second_end)
    processes = [set(analysis.load(place).cells["worker"]) for place in places]
    assert processes[0].isdisjoint(processes[1])


def test_models_that_do_not_fit_together_run_in_turn(two, each_alone, tmp_path, monkeypatch):
    real = cluster.nodes_alive
    need = cluster.Size(200_000, 1).need / MEMORY_SHARE  # one such actor and no second
    monkeypatch.setattr(cluster, "nodes_alive", lambda: [cluster.Node(n.cpus, need * 1.5) for n in real()])
    places = [tmp_path / "a", tmp_path / "b"]
    assert all(s.complete for s in run_studies(list(zip(two, places, strict=True))))
    assert [table(p).equals(alone) for p, alone in zip(places, each_alone, strict=True)] == [True, True]
    (_, first_end), (second, _) = spans(places)
    assert first_end < second


@pytest.fixture
def esa(monkeypatch, capsys):
    """Run the command in this process: exit status, and what it said."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["esa", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return code, capsys.readouterr()

    return run


def test_one_command_runs_two_models_and_another_shows_both(ray_cluster, two_models, text_file, tmp_path, esa):
    both = tmp_path / "both"
    options = f"--data {text_file} --window 24 --max-samples 2 --eval-windows 3 --topk 2 --perturb zero"
    code, said = esa(
        "run", "--model", ",".join(two_models), *options.split(), "--controls", "random_k", "--out-dir", both
    )  # fmt: skip
    assert code == 0, said.err
    assert sorted(p.name for p in both.iterdir()) == ["first", "second"]
    code, said = esa("status", both)
    assert code == 0
    assert said.out.count("ok                2") == 2
    (both / "first" / "report.html").unlink()
    code, said = esa("report", both)
    assert code == 0
    assert (both / "first" / "report.html").stat().st_size > 100_000


def test_a_study_in_a_bucket_is_the_study_on_disk(two, each_alone, bucket, esa):
    place = below(bucket, "first")
    summary = run_study(two[0], place)
    assert summary.complete
    assert table(place).equals(each_alone[0])
    lost = sorted(Store(place).names("cells"))[:3]
    Location(place).delete([f"cells/{name}.parquet" for name in lost])
    assert run_study(two[0], place).computed == 3
    assert table(place).equals(each_alone[0])
    assert not Location(place).exists(RUNNING)
    code, said = esa("status", place)
    assert code == 0
    assert "missing           0" in said.out
    code, said = esa("report", place)
    assert code == 0
    assert b"</html>" in Location(place).read("report.html")


def test_files_are_packed_while_the_sweep_goes_on(two, each_alone, tmp_path, monkeypatch):
    packed = []
    real = Store.pack
    monkeypatch.setattr(work, "PACK_AT", 4)
    monkeypatch.setattr(Store, "pack", lambda self, at_least=4: packed.append(real(self, at_least)))
    assert run_study(two[0], tmp_path / "s").complete
    assert sum(n > 0 for n in packed) > 1
    assert table(tmp_path / "s").equals(each_alone[0])
    assert run_study(two[0], tmp_path / "s").computed == 0
    assert any(name.startswith("packed-") for name in (p.name for p in (tmp_path / "s" / "cells").iterdir()))


def test_what_another_driver_stored_meanwhile_is_seen_once_it_has_let_go(two, each_alone, tmp_path, monkeypatch):
    """A driver that found a place empty, and waited for its turn, must not take the place for empty then."""
    real = lease.held

    def after(first):
        @contextlib.contextmanager
        def held(place, say):
            monkeypatch.setattr(lease, "held", real)
            by_one_worker(first, place.path)
            with real(place, say) as mine:
                yield mine

        return held

    monkeypatch.setattr(lease, "held", after(two[0]))
    assert run_study(two[0], tmp_path / "same").computed == 0
    assert table(tmp_path / "same").equals(each_alone[0])
    monkeypatch.setattr(lease, "held", after(two[0]))
    with pytest.raises(EsaError, match="holds another study"):
        run_study(two[0].replace(topk=(5,)), tmp_path / "other")
    assert table(tmp_path / "other").equals(each_alone[0])


def test_a_place_that_nodes_do_not_share_is_told_as_such(two, tmp_path, monkeypatch):
    """Rankings that the actors wrote are not seen by the driver, as where each node has a disk of its own."""
    monkeypatch.setattr(sweep, "PATIENCE", 1)
    rankings = MEASUREMENTS["rankings"]
    monkeypatch.setattr(rankings, "missing", rankings.asked)
    with pytest.raises(EsaError, match="reaches"):
        run_study(two[0], tmp_path / "s")


def test_a_driver_that_was_taken_over_stops_and_leaves_the_other_alone(two, each_alone, tmp_path, monkeypatch):
    directory = tmp_path / "s"
    monkeypatch.setattr(lease, "BEAT", 0.1)
    other = lease.Holder("other", "elsewhere", "another", 1, "0", "2026-01-01T00:00:00+00:00")
    real = lease.Lease._keep

    def keep(self):
        while not list((directory / "cells").glob("*.parquet")):
            if self._ended.wait(0.02):
                return
        lease._write(self.location, other)
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(lease.Lease, "_keep", keep)
        with pytest.raises(EsaError, match="taken over by process 1 on elsewhere"):
            run_study(two[0], directory)
    assert lease.holder(Location(directory)) == other
    assert len(Store(directory).names("cells")) < len(each_alone[0])
    monkeypatch.setattr(lease, "STALE", 0.5)
    assert run_study(two[0], directory).complete
    assert table(directory).equals(each_alone[0])
