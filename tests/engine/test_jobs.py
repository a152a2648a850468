"""``ray job submit`` against a real local head: exit codes that tell the truth, progress in the logs, a clean stop."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

import analysis
from esa_ray.storage.store import RUNNING
from tests.environment import without_settings_of_ray

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Head(NamedTuple):
    """How to reach a head: its job server, the environment with its token, its files, the port of its metrics."""

    address: str
    environment: dict
    scratch: Path
    metrics: int


def asked(head, path):
    """What the job server of a head says to whoever has the token."""
    token = Path(head.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    request = urllib.request.Request(f"{head.address}/api/{path}", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=600) as page:
        return json.load(page)


def answers(head) -> bool:
    """Whether its job server is there, and its node's agent, which starts the jobs."""
    with contextlib.suppress(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{head.metrics}/metrics", timeout=600).close()
        return asked(head, "jobs/") == []
    return False


@pytest.fixture(scope="module")
def head():
    """A head of its own with a job server on loopback, behind a token; ended by its processes' handles."""
    port, dashboard, client, metrics, agent_grpc, agent = free_ports(6)
    with tempfile.TemporaryDirectory(prefix="esa-head-", ignore_cleanup_errors=True) as scratch:
        token = Path(scratch) / "token"
        token.write_text("0123456789abcdef" * 4)
        token.chmod(0o600)
        environment = without_settings_of_ray(
            PATH=f"{BIN}:{os.environ['PATH']}", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token),
            PYTHONPATH=str(ROOT), ESA_RESULTS=f"{scratch}/results",
        )  # fmt: skip
        process = subprocess.Popen(
            [
                BIN / "ray", "start", "--head", "--block", f"--port={port}", "--num-cpus=2",
                "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
                f"--metrics-export-port={metrics}", f"--dashboard-agent-listen-port={agent}",
                f"--dashboard-agent-grpc-port={agent_grpc}", f"--temp-dir={scratch}/ray",
                "--object-store-memory=100000000", "--disable-usage-stats",
            ],
            env=environment, cwd=scratch, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        head = Head(f"http://127.0.0.1:{dashboard}", environment, Path(scratch), metrics)
        try:
            deadline = time.monotonic() + 600
            while not answers(head):
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield head
        finally:
            family = psutil.Process(process.pid).children(recursive=True)
            for member in [process, *family]:
                member.kill()
            process.wait()


def submit(head, *command, wait=True, fault=None):
    address, environment, scratch, _ = head
    (scratch / "empty").mkdir(exist_ok=True)
    runtime = {"worker_process_setup_hook": f"tests.engine.faults.{fault}"} if fault else {}
    line = [
        BIN / "ray", "job", "submit", "--address", address, "--working-dir", scratch / "empty",
        *([] if wait else ["--no-wait"]),
        "--runtime-env-json", json.dumps(runtime), "--", "python", "-m", "esa_ray", *command,
    ]  # fmt: skip
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=600)


def truth(head, submission):
    """What Ray's server says of a job: how it ended, and its driver's exit code."""
    found = asked(head, f"jobs/{submission}")
    return [found["status"], found["driver_exit_code"]]


def name_of(submitted):
    return next(word.strip("'") for word in submitted.stdout.split() if word.strip("'").startswith("raysubmit_"))


@pytest.fixture(scope="module")
def options(model_dir, text_file):
    return (
        "run", "--model", model_dir, "--data", text_file, "--window", "24", "--max-samples", "4", "--eval-windows", "5",
        "--topk", "3", "--seeds", "7",
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(head, options):
    """A study that was submitted, and came to its end."""
    return submit(head, *options, "--perturb", "zero", "--controls", "random_k")  # no --out-dir: $ESA_RESULTS


def test_a_finished_study_is_a_job_that_succeeded_with_progress_in_its_log_and_results_where_it_was_told(head, done):
    assert done.returncode == 0, done.stdout + done.stderr
    assert truth(head, name_of(done)) == ["SUCCEEDED", 0]
    for words in ("loading: ", "scoring: 2/2", "cells: 2/2", "% busy", "report   "):
        assert words in done.stdout
    (study,) = (head.scratch / "results").iterdir()
    assert analysis.progress(analysis.load(study))["ok"] == 2


def test_prometheus_can_read_what_the_actors_count(head, done):
    (study,) = (head.scratch / "results").iterdir()
    cells = analysis.load(study).cells
    deadline = time.monotonic() + 600
    while (found := meters(head.metrics, study.name)).get("cells_total", 0) < 2:  # each process tells its own, by turns
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert found["tokens_total"] == sum(map(sum, cells["tokens"]))
    assert found["busy_seconds_total"] >= cells["seconds"].sum()


def meters(port, study):
    """This project's metrics of a study, as a node of the cluster gives them to Prometheus."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=600) as page:
        lines = page.read().decode().splitlines()
    found = {}
    for line in lines:
        if line.startswith("ray_esa_") and f'study="{study}"' in line:
            name = line.partition("{")[0].removeprefix("ray_esa_")
            found[name] = found.get(name, 0.0) + float(line.rpartition(" ")[2])
    return found


def test_bad_input_and_failing_cells_are_told_apart_by_the_drivers_exit_code(head, options, tmp_path):
    bad = submit(head, *options, "--perturb", "zero", "--layers", "77", "--out-dir", str(tmp_path / "bad"))
    assert bad.returncode == 1  # Ray's own command knows no other failure
    assert truth(head, name_of(bad)) == ["FAILED", 2]
    assert "esa: --layers 77" in bad.stdout
    failing = submit(head, *options, "--perturb", "zero", "--out-dir", str(tmp_path / "failing"), fault="bad_cells")
    assert truth(head, name_of(failing)) == ["FAILED", 1]
    assert "1 failed" in failing.stdout


def test_a_stopped_job_leaves_a_clean_store_and_the_same_command_goes_on(head, options, tmp_path):
    address, environment, _, _ = head
    at = options.index("--eval-windows")
    line = (
        *options[:at], *options[at + 2 :], "--perturb", "zero,sign_flip", "--controls", "random_k,matched_k,bottom_k",
        "--eval-windows", "400", "--batch-size", "1", "--out-dir", str(tmp_path / "s"),
    )  # fmt: skip
    started = submit(head, *line, wait=False)
    folder = tmp_path / "s" / "cells"
    deadline = time.monotonic() + 600
    while len(list(folder.glob("*.parquet"))) < 1:
        assert time.monotonic() < deadline, started.stdout
        time.sleep(0.02)
    subprocess.run([BIN / "ray", "job", "stop", "--address", address, name_of(started)], env=environment, check=True)
    assert truth(head, name_of(started))[0] == "STOPPED"
    kept = len(list(folder.glob("*.parquet")))
    assert 1 <= kept < 8
    assert not (tmp_path / "s" / RUNNING).exists()
    again = submit(head, *line)
    assert again.returncode == 0, again.stdout
    assert analysis.progress(analysis.load(tmp_path / "s"))["ok"] == 8
    assert not list((tmp_path / "s").rglob("*.tmp"))


def test_nobody_without_the_token_may_submit(head):
    address, environment, scratch, _ = head
    stranger = environment | {"RAY_AUTH_TOKEN_PATH": str(scratch / "none"), "HOME": str(scratch / "nobody")}
    (scratch / "none").write_text("f" * 64)
    tried = subprocess.run(
        [BIN / "ray", "job", "submit", "--address", address, "--", "true"], env=stranger, capture_output=True, text=True
    )
    assert tried.returncode != 0
    assert "succeeded" not in tried.stdout
