"""Trackers get every cell, through their own packages and Tune's own callbacks, without a network."""

import subprocess
import sys

import pytest

import analysis
from esa_ray.engine import tracking
from esa_ray.engine.sweep import run_study
from esa_ray.engine.tracking import callbacks
from esa_ray.errors import EsaError
from esa_ray.progress import Silent
from esa_ray.spec import PerturbSpec


@pytest.fixture(scope="module")
def small(tiny_study):
    """Four cells."""
    return tiny_study.replace(topk=(3,), perturbations=(PerturbSpec(kind="zero"),), groups=("super", "random_k"))


@pytest.fixture
def trackers(tmp_path, monkeypatch):
    """Both trackers, which write into this test's own directory; mlflow's address."""
    uri = f"{tmp_path.as_uri()}/mlruns"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "tiny")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    return uri


@pytest.mark.ray
def test_each_tracker_has_a_run_of_every_cell_with_its_settings_and_its_loss(ray_cluster, small, tmp_path, trackers):
    import mlflow

    assert run_study(small, tmp_path / "s", track=("mlflow", "wandb")).complete
    client = mlflow.MlflowClient(trackers)
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    told = {
        (r.data.params["work/group"], int(r.data.params["work/seed"])): r.data.metrics["nll_per_token"] for r in runs
    }
    rows = analysis.load(tmp_path / "s").cells.to_dicts()
    assert told == {(r["group"], r["seed"]): pytest.approx(sum(r["nll"]) / sum(r["tokens"])) for r in rows}
    offline = list(tmp_path.rglob("offline-run-*/*.wandb"))
    assert len(offline) == 4
    assert all(b"nll_per_token" in run.read_bytes() for run in offline)


WRITE = """
import sys
from pathlib import Path
from queue import Queue
from ray.air.integrations.wandb import _QueueItem
from esa_ray.engine.wandb_runs import WholeRun

queue, here = Queue(), sys.argv[1]
queue.put((_QueueItem.RESULT, {"nll_per_token": 2.5, "training_iteration": 1}))
queue.put((_QueueItem.END, None))
WholeRun(here, queue, [], [], mode="offline", dir=here, project="p").run()
(run,) = Path(here).rglob("*.wandb")
assert b"nll_per_token" in run.read_bytes()
left = [child for child in __import__("psutil").Process().children(recursive=True) if "wandb" in child.name()]
print("left:", left, flush=True)
"""


def test_a_run_that_is_done_is_written_and_its_writer_gone(tmp_path):
    ended = subprocess.run([sys.executable, "-c", WRITE, str(tmp_path)], capture_output=True, text=True)
    assert "left: []" in ended.stdout, ended.stderr


@pytest.mark.ray
def test_a_tracker_that_fails_is_named_once_and_the_study_goes_on(ray_cluster, small, tmp_path, trackers, monkeypatch):
    import mlflow

    told, real = Told(), tracking._wandb

    def of_no_mode(study):
        found = real(study)
        found.kwargs["mode"] = "nonsense"  # what the process of a run alone finds out
        return found

    def lost(*_, **__):
        raise ConnectionError("no route to the tracker")

    monkeypatch.setattr(tracking, "_wandb", of_no_mode)
    for method in ("log_metric", "log_batch", "create_run"):
        monkeypatch.setattr(mlflow.tracking.MlflowClient, method, lost)
    assert run_study(small, tmp_path / "s", track=("mlflow", "wandb"), reporter=told).complete
    of_mlflow, of_wandb = ([s for s in told.sentences if f"--track {name}" in s] for name in ("mlflow", "wandb"))
    assert len(of_mlflow) == len(of_wandb) == 1
    assert "--track mlflow failed" in of_mlflow[0]
    assert "4 runs are lost or cut short" in of_wandb[0]
    assert len(told.sentences) == 2


def test_an_unknown_tracker_is_refused_by_those_that_there_are():
    with pytest.raises(EsaError, match="--track knows mlflow and wandb, not 'mlfow'"):
        callbacks(["mlfow"])


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_says_what_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EsaError, match=f"pip install {name}"):
        callbacks([name])


def test_a_tracker_that_lacks_its_key_says_so_before_anything_is_loaded(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(EsaError, match="--track wandb can't begin: "):
        callbacks(["wandb"])


class Told(Silent):
    def __init__(self):
        self.sentences = []

    def say(self, sentence):
        self.sentences.append(sentence)
