"""Planted machines: what Ray and the libraries would stumble over is told in a sentence, or gone round."""

import os
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from esa_ray import host
from esa_ray.errors import EsaError
from esa_ray.host import address, launchers, libraries, sockets
from tests.servers import answering

ROOT = Path(__file__).parents[1]
SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def unused() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """No launcher and no setting of Ray's."""
    for size, rank, _ in launchers.COPIES:
        monkeypatch.delenv(size, raising=False)
        monkeypatch.delenv(rank, raising=False)
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR", "XDG_RUNTIME_DIR", "RAY_USE_TLS"):
        monkeypatch.delenv(name, raising=False)


# -- launchers


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "8", "RANK": "3", "LOCAL_RANK": "3"}, "torchrun or accelerate launch started this command 8"),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, "mpirun started this command 4"),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, "mpirun started this command 2"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, "srun started this command 2"),
    ],
)
def test_one_of_several_copies_is_refused_by_the_launchers_name(monkeypatch, variables, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EsaError, match=words) as caught:
        host.ready()
    assert "start it once" in str(caught.value)


@pytest.mark.parametrize(
    "variables",
    [
        {"WORLD_SIZE": "1", "RANK": "0"},  # torchrun with one process
        {"WORLD_SIZE": "8"},  # a leftover: nobody is numbered
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"},  # a batch script runs once
        {"OMPI_COMM_WORLD_SIZE": "many", "OMPI_COMM_WORLD_RANK": "0"},
    ],
)
def test_one_copy_alone_is_none_of_a_launchers_business(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    host.ready()


def test_symmetric_run_is_a_task_on_every_node_and_starts_the_command_once():
    code = "from esa_ray.host.launchers import copies; print(copies())"
    environment = os.environ | {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}
    nested = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[-1]])"
    for word, wanted in (("symmetric-run", "None"), ("anything", "('srun', 4, 0)")):
        command = [sys.executable, "-c", nested, word, code]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert found.stdout.strip() == wanted


def test_a_rank_of_torchrun_ends_with_the_sentence_and_status_2(tmp_path):
    command = [sys.executable, "-m", "esa_ray", "run", "--model", "anything", "--perturb", "zero"]
    environment = os.environ | {"WORLD_SIZE": "2", "RANK": "1"}
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("esa: torchrun or accelerate launch started this command 2 times")
    assert len(ended.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


# -- libraries


def planted(monkeypatch, requires, installed):
    stated = metadata.metadata("esa-ray")
    del stated["Requires-Dist"]
    for line in requires:
        stated["Requires-Dist"] = line
    monkeypatch.setattr(libraries, "stated", lambda: stated)
    monkeypatch.setattr(libraries, "version_of", installed.get)


def test_an_environment_outside_the_bounds_is_refused_by_every_librarys_name(monkeypatch):
    requires = ["torch>=2.6", "ray[data]>=2.52", "numpy>=1.26,<3", "optuna>=4; extra == 'search'"]
    planted(monkeypatch, requires, {"torch": "2.6.0+cpu", "ray": "2.52.0", "numpy": "2.4"})
    host.ready()
    planted(monkeypatch, requires, {"torch": "2.5.1", "numpy": "3.0", "optuna": "1"})
    words = (
        r"torch 2.5.1 \(needed: >=2.6\); ray is missing \(needed: >=2.52\); numpy 3.0 \(needed: <3,>=1.26\); run: pip"
    )
    with pytest.raises(EsaError, match=words):
        host.ready()


def test_where_it_is_not_installed_as_a_package_nothing_is_stated_and_nothing_refused(monkeypatch):
    monkeypatch.setattr(libraries, "stated", lambda: None)
    host.ready()


def test_a_command_in_an_environment_outside_the_bounds_ends_with_the_sentence_and_status_2(tmp_path):
    for name, version, more in (("esa-ray", "1", "Requires-Dist: ray>=2.59\n"), ("ray", "2.40.0", "")):
        directory = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        directory.mkdir()
        (directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{more}")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "esa_ray", "run", "--model", "anything", "--perturb", "zero"]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == (
        "esa: this environment is not one that esa-ray runs in: ray 2.40.0 (needed: >=2.59); "
        "run: pip install -U esa-ray\n"
    )


def test_what_an_extra_adds_is_told_from_what_is_always_needed(monkeypatch):
    planted(monkeypatch, ["torch>=2", "optuna>=4; extra == 'search'", "wandb; extra == 'track'"], {})
    assert [r.name for r in libraries.required()] == ["torch"]
    assert [r.name for r in libraries.required("search")] == ["optuna"]


def test_seeing_that_all_fits_loads_no_library():
    script = "import sys; from esa_ray import host; host.ready(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "transformers", "pyarrow", "numpy"} & set(loaded.stdout.split())


# -- addresses


def test_a_cluster_that_answers_is_one():
    with answering(SETTINGS) as found:
        assert address.trouble(found) == ""
        assert address.trouble(f"ray://{found}") == ""
        address.answering(found)


@pytest.mark.parametrize(("said", "words"), [(b"HTTP/1.1 400 Bad Request\r\n", "no Ray cluster"), (None, "")])
def test_a_server_of_another_kind_is_none(said, words):
    with answering(said) as found:
        assert words in address.trouble(found) != ""


def test_a_server_that_says_nothing_is_waited_for_no_longer_than_it_may():
    with answering(b"") as found:
        assert address.trouble(found, 0.05) == "nothing answers within 0.05 s"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("nosuch.invalid:6379", "no machine is known by the name nosuch.invalid"),
        ("no port", "it is not HOST:PORT"), ("127.0.0.1", "it is not HOST:PORT"), ("h:99999999", "it is not HOST:PORT"),
        ("http://127.0.0.1:8265", "ray job submit"),
    ],
)  # fmt: skip
def test_an_address_that_is_none_is_told_what_is_wrong_with_it(given, words):
    with pytest.raises(EsaError, match=words) as caught:
        address.answering(given, "RAY_ADDRESS")
    assert "RAY_ADDRESS" in str(caught.value)


def test_a_dead_head_is_refused_at_once():
    with pytest.raises(EsaError, match="connection refused; start the cluster, name another with --address, or leave"):
        address.answering(unused())


def test_auto_finds_what_is_noted_and_says_what_to_remove_where_that_is_gone(monkeypatch, tmp_path):
    monkeypatch.setattr(address, "_head_runs", lambda: False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(EsaError, match="no Ray cluster runs on this machine"):
        address.answering("auto")
    note = tmp_path / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    gone = unused()
    note.write_text(gone)
    with pytest.raises(EsaError, match=rf"is gone \({gone}: connection refused\); rm {note}"):
        address.answering("auto")
    with answering(SETTINGS) as found:
        note.write_text(found)
        address.answering("auto")
    monkeypatch.setattr(address, "_head_runs", lambda: True)  # another one, which Ray finds by itself
    address.answering("auto")


# -- where Ray keeps its sockets


@pytest.fixture
def ours(monkeypatch, tmp_path):
    """A short place for this user; the test's own would be too long."""
    short = Path("/tmp") / f"e{os.getpid()}"
    short.mkdir()
    monkeypatch.setattr(sockets, "_of_ours", lambda: [short / "me"])
    yield short / "me"
    for folder in sorted(short.rglob("*"), reverse=True):
        folder.rmdir()
    short.rmdir()


def test_the_longest_directory_is_one_whose_sockets_the_kernel_takes(tmp_path):
    room = sockets.LONGEST - sockets.OF_RAY
    base = Path(f"/tmp/l{os.getpid()}")
    for size, fits in ((room, True), (room + 1, False)):
        directory = base / ("x" * (size - len(str(base)) - 1))
        assert (sockets.trouble(directory) == "") == fits
    session = base / ("x" * (room - len(str(base)) - 1)) / "session_2026-01-01_00-00-00_000000_4194304" / "sockets"
    session.mkdir(parents=True)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(session / "plasma_store.1"))
            (session / "plasma_store.1").unlink()
            with pytest.raises(OSError, match="too long"):
                made.bind(str(session / "plasma_store.12"))
    finally:
        for folder in (session, *list(session.parents)[:3]):
            folder.rmdir()


def test_rays_own_choice_stands_where_it_can(monkeypatch, tmp_path):
    monkeypatch.setattr(sockets, "asked", lambda: (Path("/tmp/none/ray"), "TMPDIR"))
    assert sockets.place() == sockets.Place()


@pytest.mark.parametrize("setting", ["TMPDIR", "RAY_TMPDIR"])
def test_a_long_temporary_directory_keeps_what_is_spilled_and_not_the_sockets(monkeypatch, tmp_path, ours, setting):
    long = tmp_path / ("x" * 70)
    long.mkdir()
    monkeypatch.setenv(setting, str(long))
    assert sockets.place() == sockets.Place(ours / "ray", long)
    assert ours.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("value", ["", "tmp"])
def test_a_temporary_directory_that_depends_on_where_one_stands_is_gone_round(monkeypatch, ours, value):
    monkeypatch.setenv("TMPDIR", value)
    assert sockets.trouble(Path(value) / "ray") == "it is no absolute path"
    assert sockets.place() == sockets.Place(ours / "ray", None)


def test_a_directory_that_another_user_made_is_gone_round(monkeypatch, ours):
    taken = ours.parent / "ray"
    monkeypatch.setattr(sockets, "asked", lambda: (taken, "TMPDIR"))
    taken.mkdir()
    monkeypatch.setattr(sockets, "unwritable", lambda path: "Permission denied" if path == taken else "")
    assert sockets.trouble(taken) == f"{taken} can't be written to (Permission denied)"
    assert sockets.place().directory == ours / "ray"


def test_no_place_of_ours_is_one_that_others_can_write_to(monkeypatch, ours):
    monkeypatch.setattr(sockets, "trouble", lambda path: "it is full" if "esa" in str(path) else "")
    monkeypatch.setattr(sockets, "asked", lambda: (Path("/tmp/esa-x/ray"), "TMPDIR"))
    ours.mkdir()
    ours.chmod(0o777)
    with pytest.raises(EsaError, match=r"sockets in /tmp/esa-x/ray \(TMPDIR\): it is full; set RAY_TMPDIR to a short"):
        sockets.place()
    ours.chmod(0o700)
    assert sockets.place().directory == ours / "ray"


def test_too_little_room_is_told(monkeypatch, tmp_path):
    usage = sockets.shutil.disk_usage(tmp_path)
    for free, fits in ((sockets.ROOM, True), (sockets.ROOM - 1, False)):
        monkeypatch.setattr(sockets.shutil, "disk_usage", lambda p, free=free: usage._replace(free=free))
        assert (sockets.trouble(Path("/tmp/ray")) == "") == fits


# -- limits, cores and memory


def test_soft_limits_are_raised_to_the_hard_ones():
    code = (
        "import resource as r; from esa_ray.host.limits import raised; kinds = (r.RLIMIT_NOFILE, r.RLIMIT_NPROC); "
        "[r.setrlimit(kind, (100, 300)) for kind in kinds]; raised(); print([r.getrlimit(kind) for kind in kinds])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[(300, 300), (300, 300)]"
