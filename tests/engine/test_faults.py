"""Every fault of docs/reliability.md, for real: then the same command gives the table of an undisturbed run.

Each process that is killed is this test's own; what is left of a cluster is ended by its handle.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import polars as pl
import psutil
import pytest
import ray

import analysis
from esa_ray.engine.sweep import run_study
from esa_ray.errors import EsaError
from esa_ray.grid import cells
from esa_ray.spec import TuneSpec
from esa_ray.storage.lease import holder
from esa_ray.storage.location import Location
from esa_ray.storage.store import RUNNING, Store
from tests.environment import without_settings_of_ray
from tests.measuring import by_one_worker

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
#: Columns that say when and where a row was computed.
CIRCUMSTANCES = ["seconds", "created", "worker", "device"]


@pytest.fixture(scope="module")
def study(tiny_study):
    """Cells of a tenth of a second: long enough that something can happen in the middle of the sweep."""
    data = tiny_study.data.model_copy(update={"evaluation_windows": 100, "batch_size": 1, "window": 64})
    return tiny_study.replace(data=data, topk=(3,))


def table(directory):
    found = analysis.load(directory).cells
    return found.select(c for c in found.columns if c not in CIRCUMSTANCES)


@pytest.fixture(scope="module")
def undisturbed(ray_cluster, study, tmp_path_factory):
    return table(by_one_worker(study, tmp_path_factory.mktemp("undisturbed") / "tiny").directory)


@pytest.fixture
def unharmed(undisturbed, study):
    """Check that a study came out as if nothing had happened: equal to the bit, nothing twice, nothing left behind."""

    def check(directory):
        assert table(directory).equals(undisturbed)
        rows = sum(Store(directory).read("cells", n).num_rows for n in Store(directory).names("cells"))
        assert rows == len(cells(study))
        assert not list(directory.rglob("*.tmp"))
        assert not (directory / RUNNING).exists()

    return check


def stored(directory):
    return len(list((directory / "cells").glob("*.parquet")))


def workers(directory):
    """The processes that wrote a study's cells, as "host/pid"."""
    return set(Store(directory).cells(["worker"])["worker"].to_pylist()) if stored(directory) else set()


def wait_until(condition, seconds=600, every=0.02):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(every)
    return found


def processes(title):
    """Processes of this session's cluster whose title begins so."""
    mine = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if (process.cmdline() or [""])[0].startswith(title):
                mine.append(process)
    return mine


@contextlib.contextmanager
def once(condition, action):
    """Do something with what a condition finds, in the middle of the block; it must have been done at the end."""
    happened = []

    def watch():
        action(wait_until(condition))
        happened.append(True)

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    thread.join()
    assert happened


ENVIRONMENT = without_settings_of_ray(
    PYTHONPATH=str(ROOT), RAY_AUTH_MODE="token", RAY_AIR_NEW_OUTPUT="0", TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
    TUNE_DISABLE_SIGINT_HANDLER="1",
)  # fmt: skip

DRIVER = """
import json, sys
import ray
from esa_ray.cli import execute, guarded
from esa_ray.spec import StudySpec
spec, directory, address, runtime = sys.argv[1:]
if runtime:
    ray.init(address=address, log_to_driver=False, logging_level="ERROR", runtime_env=json.loads(runtime))
def run():
    raise SystemExit(execute([(StudySpec.model_validate_json(spec), directory)], address=address))
guarded(run)
"""


@contextlib.contextmanager
def driver(study, directory, *, address=None, fault="", **environment):
    """A driver in a process of its own, on this session's cluster unless another address is given."""
    address = address or ray.get_runtime_context().gcs_address
    flags = directory.parent / f"{directory.name}-flags"
    flags.mkdir(exist_ok=True)
    runtime = {
        "worker_process_setup_hook": f"tests.engine.faults.{fault}",
        "env_vars": {"PYTHONPATH": str(ROOT), "ESA_TEST_FLAGS": str(flags)},
    }
    arguments = [study.model_dump_json(), str(directory), address, json.dumps(runtime) if fault else ""]
    command = [sys.executable, "-W", "ignore", "-c", DRIVER, *arguments]
    process = subprocess.Popen(
        command, env=ENVIRONMENT | environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def said(process, seconds=600):
    """What a driver said, once it has ended."""
    return process.communicate(timeout=seconds)[1]


@pytest.mark.parametrize("title", ["ray::ModelActor", "ray::UnitTrial", "ray::Scheduler"])
def test_a_killed_process_of_the_sweep(study, undisturbed, unharmed, tmp_path, title):
    victims = []

    def at_work():
        if stored(tmp_path / "s") < 3:
            return []
        busy = {int(w.partition("/")[2]) for w in workers(tmp_path / "s")}
        return [p for p in processes(title) if "Actor" not in title or p.pid in busy]

    def kill(found):
        found[0].kill()
        victims.append(found[0])

    with once(at_work, kill):
        assert run_study(study, tmp_path / "s").complete
    assert not victims[0].is_running()
    unharmed(tmp_path / "s")


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_driver_that_is_killed_or_told_to_end(study, undisturbed, unharmed, tmp_path, signal):
    import signal as signals

    directory = tmp_path / "s"
    with driver(study, directory) as process:
        wait_until(lambda: stored(directory) > 2 or process.poll() is not None)
        process.send_signal(getattr(signals, signal))
        sentences = said(process)
    assert process.returncode == (-9 if signal == "SIGKILL" else 1)
    if signal != "SIGKILL":
        assert "run the same command again" in sentences.splitlines()[-1]
        assert not (directory / RUNNING).exists()
    wait_until(lambda: not processes("ray::ModelActor"))  # what an actor had begun may still be written
    kept = stored(directory)
    assert 3 <= kept < len(cells(study))
    if signal == "SIGINT":  # from here on the same as SIGTERM
        return
    again = run_study(study, directory)
    assert again.complete
    assert again.computed == len(cells(study)) - kept
    unharmed(directory)


def test_a_second_driver_is_refused_by_the_name_of_the_first(study, undisturbed, unharmed, tmp_path):
    directory = tmp_path / "s"
    with driver(study, directory) as first:
        wait_until(lambda: holder(Location(directory)) or first.poll() is not None)
        with pytest.raises(EsaError, match=f"process {first.pid} on "):
            run_study(study, directory)
        said(first)
    assert first.returncode == 0
    unharmed(directory)


def test_cells_that_raise_find_no_memory_or_end_their_process(study, undisturbed, unharmed, tmp_path):
    directory = tmp_path / "s"
    with driver(study, directory, fault="bad_cells") as process:
        sentences = said(process)
    assert process.returncode == 1, sentences
    rows = analysis.load(directory).cells.to_dicts()
    failed = {(r["perturbation"], r["group"]): r["error"] for r in rows if r["status"] == "error"}
    assert len(failed) == 4
    assert failed["gauss_noise", "super"] == "ArithmeticError: planted"
    assert "--batch-size" in failed["zero", "super"]
    assert "died" in failed["bit_flip", "super"]
    assert "device-side assert triggered; its process ended" in failed["zero", "random_k"]
    wrong = sum(r["status"] == "error" for r in rows)
    assert wrong == 4 * 2  # in both seeds
    assert analysis.progress(analysis.load(directory))["missing"] == 0
    again = run_study(study, directory)
    assert again.computed == wrong
    unharmed(directory)


def test_processes_that_end_while_they_write(study, undisturbed, unharmed, tmp_path):
    directory = tmp_path / "s"
    with driver(study, directory, fault="half_written_cells") as process:
        sentences = said(process)
    assert process.returncode == 0, sentences
    assert len(list((tmp_path / "s-flags").iterdir())) == 3
    unharmed(directory)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 KB."""
    target = tmp_path / "disk"
    target.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(target)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    yield target
    subprocess.run(["umount", "-l", str(target)], check=True)


def test_a_full_disk(study, undisturbed, unharmed, small_disk):
    with pytest.raises(EsaError, match="no space is left"):
        run_study(study, small_disk / "s")
    assert stored(small_disk / "s") > 0
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert run_study(study, small_disk / "s").complete
    unharmed(small_disk / "s")


NODES = """
import json, sys, time
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False,
                  "object_store_memory": 80 * 2**20})
nodes = [cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20) for _ in range(int(sys.argv[1]))]
cluster.wait_for_nodes()
print(cluster.address, flush=True)
for line in sys.stdin:
    if line.strip() == "kill the node":
        cluster.remove_node(nodes.pop(), allow_graceful=False)
    if line.strip() == "kill the head":
        cluster.head_node.kill_gcs_server(check_alive=False)
        cluster.head_node.kill_raylet(check_alive=False)
    print("done", flush=True)
"""


@contextlib.contextmanager
def own_cluster(workers):
    """A cluster of simulated nodes of one core each, in a process of its own; ends with it."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"RAY_AUTH_MODE": "token"}
    with tempfile.TemporaryDirectory(prefix="esa-nodes-", ignore_cleanup_errors=True):
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", NODES, str(workers)], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        address = process.stdout.readline().strip()

        def tell(order):
            process.stdin.write(order + "\n")
            process.stdin.flush()
            assert process.stdout.readline().strip() == "done"

        family = psutil.Process(process.pid).children(recursive=True)
        try:
            yield address, tell
        finally:
            family += psutil.Process(process.pid).children(recursive=True)
            for member in [*family, process]:
                with contextlib.suppress(psutil.Error):
                    member.kill()
            process.wait()


def test_a_node_that_dies(study, undisturbed, unharmed, tmp_path):
    directory = tmp_path / "s"
    with (
        own_cluster(1) as (address, tell),
        driver(study, directory, address=address, fault="begun_together") as process,
    ):
        wait_until(lambda: len(workers(directory)) > 1 or process.poll() is not None)
        assert stored(directory) < len(cells(study)) - 1
        tell("kill the node")
        sentences = said(process)
    assert process.returncode == 0, sentences
    unharmed(directory)


def test_a_head_that_dies(study, undisturbed, unharmed, tmp_path):
    directory = tmp_path / "s"
    patience = {"RAY_gcs_rpc_server_reconnect_timeout_s": "3"}
    with own_cluster(0) as (address, tell), driver(study, directory, address=address, **patience) as process:
        wait_until(lambda: stored(directory) > 2 or process.poll() is not None)
        tell("kill the head")
        said(process)
    assert process.returncode != 0
    kept = stored(directory)
    assert 3 <= kept < len(cells(study))
    assert run_study(study, directory).computed == len(cells(study)) - kept
    unharmed(directory)


@pytest.fixture(scope="module")
def tuning(tiny_study, tmp_path_factory):
    """A study of one tuning of a second or more, and its table where nothing happened."""
    how = TuneSpec(steps=600, batch=2, looks=30, learning_rate=1e-3)
    target = tiny_study.data.model_copy(update={"source": "pysource"})
    asked = tiny_study.replace(
        perturbations=(), groups=("super",), scores=(), seeds=(7,), tunings=(how,), target=target, validation_windows=2
    )
    return asked, tunings(by_one_worker(asked, tmp_path_factory.mktemp("tuned") / "s").directory)


def tunings(directory):
    found = analysis.load(directory).table("tunings")
    return found.select(c for c in found.columns if c not in CIRCUMSTANCES).sort("label", "steps")


@pytest.mark.parametrize("killed", ["ray::ModelActor", "driver"])
def test_a_tuning_whose_process_is_killed_goes_on_at_its_last_checkpoint(ray_cluster, tuning, tmp_path, killed):
    asked, undisturbed = tuning
    directory = tmp_path / "s"

    def begun():
        return list((directory / "unfinished").glob("[!.]*"))

    if killed == "driver":
        with driver(asked, directory) as process:
            wait_until(lambda: begun() or process.poll() is not None)
            process.kill()
            said(process)
        wait_until(lambda: not processes("ray::ModelActor"))
        assert begun()
        assert run_study(asked, directory).complete
    else:
        victims = []

        def kill(_):
            victims.extend(processes(killed))
            for victim in victims:
                victim.kill()

        with once(begun, kill):
            assert run_study(asked, directory).complete
        assert victims
        workers = analysis.load(directory).table("tunings").filter(pl.col("label") != "intact")["worker"].unique()
        assert len(workers) == 1
        assert int(workers[0].partition("/")[2]) not in [victim.pid for victim in victims]
    assert tunings(directory).equals(undisturbed)
    assert not begun()
    assert not list(directory.rglob("*.tmp"))
