"""How a cluster of our own is started on planted machines, and what is said of one that can't be joined."""

import os
import platform
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray._private.utils import check_version_info

from esa_ray.engine import connection
from esa_ray.errors import EsaError
from esa_ray.host import groups, sockets
from esa_ray.host.footprint import OBJECT_STORE

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _machine(monkeypatch, tmp_path):
    """All cores, no groups, a home, and no setting of Ray's."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "x")  # so that what the code sets is taken back
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(groups, "cores", lambda: (16.0, ""))
    monkeypatch.setattr(groups, "available_memory", lambda: (10**10, False))
    monkeypatch.setattr(sockets, "place", sockets.Place)
    monkeypatch.setattr(connection.limits, "raised", lambda: None)


def test_a_plain_machine_is_left_to_ray():
    assert connection._of_our_own() == {
        "address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE
    }  # fmt: skip


@pytest.mark.parametrize(("cores", "wanted"), [(4.0, 4), (2.5, 2), (0.5, 1)])
def test_ray_gets_the_cores_that_a_scheduler_left_us(monkeypatch, cores, wanted):
    monkeypatch.setattr(groups, "cores", lambda: (cores, "a control group"))
    assert connection._of_our_own()["num_cpus"] == wanted


def test_ray_gets_the_memory_that_a_control_group_leaves(monkeypatch):
    monkeypatch.setattr(groups, "available_memory", lambda: (10**9, True))
    assert connection._of_our_own()["_memory"] == 10**9 - OBJECT_STORE


def test_sockets_and_spilled_objects_may_lie_apart(monkeypatch):
    monkeypatch.setattr(sockets, "place", lambda: sockets.Place(Path("/tmp/esa-1/ray"), Path("/scratch")))
    options = connection._of_our_own()
    assert options["_temp_dir"] == "/tmp/esa-1/ray"
    assert options["object_spilling_directory"] == "/scratch"


def test_a_token_is_made_for_this_user_alone_and_kept(tmp_path):
    path = tmp_path / "home" / ".ray" / "auth_token"
    connection._private_token()
    made = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(made) == 64
    connection._private_token()
    assert path.read_text() == made
    assert "RAY_AUTH_TOKEN" not in os.environ


@pytest.mark.parametrize("home", ["file", "foreign", "none"])
def test_without_a_home_the_token_lives_in_the_environment(tmp_path, monkeypatch, home):
    if home == "file":
        (tmp_path / "home" / ".ray").write_text("")
    elif home == "foreign":  # sudo
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    else:
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    connection._private_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert not (tmp_path / "home" / ".ray" / "auth_token").exists()


def test_two_versions_that_dont_fit_are_both_named():
    theirs = {"ray_version": "2.40.0", "python_version": "3.12.1"}
    with pytest.raises(RuntimeError) as caught:
        check_version_info(theirs, "10.0.0.1")
    here = f"Ray {ray.__version__} and Python {platform.python_version()}"
    assert connection._why(caught.value) == (
        f"it runs Ray 2.40.0 and Python 3.12.1, and this process {here}; make them the same"
    )


def test_a_dead_cluster_is_refused_before_ray_tries_for_minutes(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked"))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with (
        pytest.raises(EsaError, match=r"no Ray cluster at 127.0.0.1:9 \(RAY_ADDRESS\): connection refused"),
        connection.connected(),
    ):
        pass


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), r"this machine: .Errno 28. No space left"),
        (
            Exception("The current node timed out during startup. This"),
            r"this machine: it took too long to start on a machine this busy; run the same",
        ),
    ],
)
def test_what_ray_cant_do_is_a_sentence(monkeypatch, error, said):
    def full(**_):
        raise error

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", full)
    with pytest.raises(EsaError, match=said), connection.connected():
        pass


def test_a_clusters_workers_get_no_directory_that_the_driver_does_not_look_into(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["/a"])
    found = connection._DriversPath()
    found.extend(["/a", "/b", str(tmp_path)])
    assert found == ["/a"]
    monkeypatch.setattr(sys, "path", [""])  # a notebook's
    found.extend(["/b", str(tmp_path)])
    assert found == ["/a", str(tmp_path)]


WORKER = """
import sys
if not {own}: sys.path.remove("")
import ray
from esa_ray.engine.connection import connected

def mine():
    import beside
    return beside.VALUE

with connected():
    try: print(ray.get(ray.remote(max_retries=0)(mine).remote()))
    except ModuleNotFoundError: print("unknown")
"""


@pytest.mark.ray
@pytest.mark.parametrize(("own", "said"), [(True, "7"), (False, "unknown")])
def test_a_worker_imports_from_the_working_directory_exactly_where_the_driver_does(tmp_path, own, said):
    (tmp_path / "beside.py").write_text("VALUE = 7")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": ""}
    ended = subprocess.run(
        [sys.executable, "-c", WORKER.format(own=own)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ended.stdout.split() == [said], ended.stderr


@pytest.mark.ray
def test_python_files_beside_the_model_are_imported_by_no_process_of_a_study(tmp_path, model_dir, text_file):
    here = shutil.copytree(model_dir, tmp_path / "m")
    for name in ("accelerate", "pyarrow", "tokenizers"):  # what the driver, Ray and an actor import when they need it
        (here / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write('{name} ')")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": ""}
    command = [sys.executable, "-m", "esa_ray", "run", "--model", ".", "--data", text_file, "--window", "24"]
    command += ["--max-samples", "2", "--eval-windows", "2", "--topk", "3", "--perturb", "zero", "--controls", ""]
    ended = subprocess.run(
        [*command, "--out-dir", str(tmp_path / "s")], cwd=here, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert not (tmp_path / "ran").exists()
    assert (tmp_path / "s" / "report.html").exists()
