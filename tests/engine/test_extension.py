"""A measurement of somebody else's runs to the end, and no file of the package knows of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray
from safetensors.numpy import load_file

import analysis
from esa_ray import cli
from esa_ray.errors import EsaError
from esa_ray.measurements import MEASUREMENTS, Unit
from esa_ray.measurements.worker import Worker
from esa_ray.models.sources import find
from esa_ray.perturb.edit import NotRestoredError
from esa_ray.storage.store import Store
from tests import extended

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(tiny_study):
    return tiny_study.replace(topk=(3,), seeds=(7,), perturbations=(), groups=("super",))


@pytest.fixture
def registered():
    extended.register()
    yield
    extended.forget()


def largest(model_dir):
    tensors = load_file(Path(model_dir) / "model.safetensors")
    blocks = [{n: t for n, t in tensors.items() if f"layers.{block}." in n and t.ndim == 2} for block in range(2)]
    return [max(np.abs(t).max() for t in block.values()) for block in blocks]


def check(directory, model_dir):
    found = analysis.load(directory)
    table = found.table("heaviest").sort("layer")
    assert table["largest"].to_list() == pytest.approx(largest(model_dir))
    assert analysis.progress(found)["heaviest missing"] == 0
    analysis.write_report(found)
    page = (directory / "report.html").read_text()
    assert "Which block has the largest weight?" in page
    assert f"{table['largest'][0]:.6f}" in page
    assert '"heaviest_by_block":' in page


def test_from_units_to_the_report(study, model_dir, registered, tmp_path):
    worker = Worker(study, find(study.model), str(tmp_path))
    store = Store(tmp_path)
    assert MEASUREMENTS["heaviest"].missing(study, store) == []  # nobody knows how many blocks there are
    found = worker.describe()
    store.save_study(study, found, found.pop("versions"))
    for name in ("rankings", "baseline", "heaviest"):
        for unit in MEASUREMENTS[name].missing(study, store):
            worker.measure(name, unit)
    assert store.names("heaviest") == ["block-0", "block-1"]
    check(tmp_path, model_dir)
    (tmp_path / "heaviest" / "block-1.parquet").unlink()
    assert [unit.values for unit in MEASUREMENTS["heaviest"].missing(study, store)] == [(1,)]
    assert analysis.progress(analysis.load(tmp_path))["heaviest missing"] == 1


def broken(self, worker, unit):
    """Rows of the first block alone."""
    if unit.values == (1,):
        raise ZeroDivisionError("no block is\nlike the last")
    return REAL(self, worker, unit)


REAL = extended.Heaviest.rows
SAID = "ZeroDivisionError: no block is"


def test_a_unit_whose_rows_raise_is_an_error_of_its_own_until_it_has_some(study, registered, tmp_path, monkeypatch):
    worker, heaviest = Worker(study, find(study.model), str(tmp_path)), MEASUREMENTS["heaviest"]
    found = worker.describe()
    worker.store.save_study(study, found, found.pop("versions"))
    with monkeypatch.context() as planted:
        planted.setattr(extended.Heaviest, "rows", broken)
        told = [worker.measure("heaviest", unit) for unit in heaviest.asked(study, worker.store)]
    assert [each.get("failed") for each in told] == [None, SAID]
    assert worker.store.names("heaviest") == ["block-0"]
    assert [unit.name for unit in heaviest.missing(study, worker.store)] == ["block-1"]
    analysis.write_report(analysis.load(tmp_path))
    failures = (tmp_path / "report.html").read_text().partition("What failed")[2]
    assert "heaviest block-1" in failures
    assert SAID in failures
    worker.measure("heaviest", *heaviest.missing(study, worker.store))
    assert not list((tmp_path / "failed").iterdir())
    analysis.write_report(analysis.load(tmp_path))
    assert "What failed" not in (tmp_path / "report.html").read_text()


def test_rows_that_are_none_of_the_table_are_that_units_error_too(study, registered, tmp_path, monkeypatch):
    worker = Worker(study, find(study.model), str(tmp_path))
    monkeypatch.setattr(extended.Heaviest, "rows", lambda *_: [{"largest": "much"}])
    assert "failed" in worker.measure("heaviest", Unit("block-0", (0,)))


def test_what_other_units_would_meet_too_ends_the_run(study, registered, tmp_path, monkeypatch):
    worker = Worker(study, find(study.model), str(tmp_path))
    for error in (EsaError("mend it"), MemoryError(), NotRestoredError("w")):
        monkeypatch.setattr(extended.Heaviest, "rows", lambda *_, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):
            worker.measure("heaviest", Unit("block-0", (0,)))
    assert not (tmp_path / "failed").exists()


def test_the_plan_tells_of_it_and_counts_its_passes(monkeypatch, capsys):
    command = "esa run --model m --metric magnitude --topk 3 --perturb zero --eval-windows 10 --plan"
    monkeypatch.setattr(sys, "argv", command.split())
    facts = []
    for there in (False, True):
        if there:
            extended.register()
        try:
            with pytest.raises(SystemExit, match="0"):
                cli.main()
        finally:
            if there:
                extended.forget()
        facts.append({line[:18].strip(): line[18:] for line in capsys.readouterr().out.splitlines()})
    assert facts[1]["heaviest"] == "one look at each block"
    assert [f["forward passes"] for f in facts] == ["20 windows of 128 tokens", "23 windows of 128 tokens"]
    assert {k for k in facts[1] if facts[1][k] != facts[0].get(k)} == {"heaviest", "forward passes"}
    assert list(facts[1])[-5:] == ["baseline", "heaviest", "forward passes", "backward passes", "results"]


def test_a_section_that_names_a_figure_nobody_draws_fails(study, registered, tmp_path, monkeypatch):
    monkeypatch.delitem(extended.FIGURES, "heaviest_by_block")  # and put back afterwards
    store = Store(tmp_path)
    store.save_study(study, {"layers": 1}, {})
    store.write("heaviest", "block-0", [{"model": "m", "layer": 0, "largest": 1.0}])
    with pytest.raises(KeyError, match="heaviest_by_block"):
        analysis.report.sections.answered(analysis.load(tmp_path), set())


#: An extension that fails over its second unit until a file says that it is mended.
FAILS = """
import pathlib

def rows(self, worker, unit, real=extended.Heaviest.rows):
    if unit.values == (1,) and not (pathlib.Path(worker.store.directory) / "mended").exists():
        raise ZeroDivisionError("no block is like the last")
    return real(self, worker, unit)

extended.Heaviest.rows = rows
"""


@pytest.mark.ray
@pytest.mark.parametrize("more", ["", FAILS], ids=["whole", "fails"])
def test_an_installed_package_is_found_by_driver_actors_and_report(study, model_dir, ray_cluster, tmp_path, more):
    package = tmp_path / "site"
    metadata = package / "mine-1.0.dist-info"
    metadata.mkdir(parents=True)
    (package / "mine.py").write_text(f"from tests import extended\n\nextended.register()\n{more}")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[esa_ray]\nmine = mine\n")
    script = """
import json, sys
import ray
address, spec, directory, path = sys.argv[1:]
ray.init(address=address, log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": {"PYTHONPATH": path}})
from esa_ray.engine.sweep import run_study
from esa_ray.spec import StudySpec
summary = run_study(StudySpec.model_validate_json(spec), directory, address=address)
print(json.dumps([summary.complete, summary.computed, summary.failures]))
"""
    path = os.pathsep.join([str(package), str(ROOT)])
    arguments = [ray.get_runtime_context().gcs_address, study.model_dump_json(), str(tmp_path / "out"), path]
    environment = os.environ | {"PYTHONPATH": path, "RAY_ADDRESS": ""}

    def run():
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script, *arguments], env=environment, cwd=ROOT, check=False,
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    if more:  # the first block has its rows all the same
        said = "1 unit of heaviest failed (block-1: ZeroDivisionError: no block is like the last); run the same command"
        complete, computed, (sentence,) = run()
        assert (complete, computed, sentence.startswith(said)) == (False, 2, True)
        (tmp_path / "out" / "mended").touch()
    assert run() == [True, 1 if more else 3, []]  # a seed's rankings, and two blocks
    extended.register()
    try:
        check(tmp_path / "out", model_dir)
    finally:
        extended.forget()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "cells"}, "registered already"),
        ({"phase": "scoring"}, "esa-ray's own"),
        ({"schema": None, "table": "nowhere"}, "no columns"),
    ],
)
def test_a_measurement_that_can_not_work_is_refused_when_it_is_registered(changes, sentence):
    before = dict(MEASUREMENTS)
    with pytest.raises(ValueError, match=sentence):
        MEASUREMENTS.add(type("Mine", (extended.Heaviest,), changes))
    assert dict(MEASUREMENTS) == before


def test_an_unknown_measurement_or_table_is_told_in_a_sentence(study, tmp_path):
    with pytest.raises(EsaError, match="no measurement 'mine' is known here; install"):
        MEASUREMENTS["mine"]
    Store(tmp_path).save_study(study, {"layers": 1}, {})
    with pytest.raises(analysis.StudyError, match="no table 'mine' is known here"):
        analysis.load(tmp_path).table("mine")


@pytest.mark.parametrize("first", ["analysis", "esa_ray.measurements", "analysis.report.sections"])
def test_an_extension_may_use_all_of_the_analysis_whatever_is_imported_first(tmp_path, first):
    metadata = tmp_path / "mine-1.0.dist-info"
    metadata.mkdir()
    (tmp_path / "mine.py").write_text("from analysis import verdicts, write_report\nprint('loaded')\n")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[esa_ray]\nmine = mine\n")
    code = f"import {first}; from esa_ray.measurements import MEASUREMENTS; print(len(MEASUREMENTS))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    said = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert said.stdout.split() == ["loaded", str(len(MEASUREMENTS))], said.stderr
