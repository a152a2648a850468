import gc
import os
import shlex
import sys
from functools import cache
from itertools import count

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
# On a busy machine examples take long to be made and tried; that is nobody's fault.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


# Processes that tests start, Ray's workers among them, would otherwise compile this project's modules each for itself.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Ray's workers would give way to every other process of a busy machine. Set before any cluster starts.
os.environ.setdefault("RAY_worker_niceness", "0")


def pytest_xdist_make_scheduler(config, log):
    """One process runs all files with tests on the session's cluster of Ray, while others run the rest.

    A file whose tests start a Ray of their own, or must share what they make, is one piece of work.

    xdist's own groups go by names of tests that pytest from 9.2 on doesn't let them write.
    """
    from xdist.scheduler import LoadScopeScheduling

    @cache
    def group(file):
        text = (config.rootpath / file).read_text()
        if "mark.ray" in text and "ray_cluster" in text:
            return "ray"
        return file if "mark.ray" in text or "ONE_PROCESS = True" in text else None

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group(nodeid.partition("::")[0]) or nodeid

    return ByGroup(config, log)


def pytest_collection_finish(session):
    """Leave what is imported by now out of garbage collections.

    statsmodels asks for one with every correction of p-values, and it takes a third of a second here.
    """
    gc.collect()
    gc.freeze()


# The S3 server below asks for some key; set before any cluster starts, so that its processes have it, too.
os.environ.setdefault("AWS_ACCESS_KEY_ID", "testing")
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "testing")
os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="session")
def s3_server():
    """An S3 API server on loopback, for the whole session."""
    import logging

    from moto.server import ThreadedMotoServer
    from pyarrow.fs import S3FileSystem

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"{host}:{port}"
    S3FileSystem(
        endpoint_override=endpoint, scheme="http", region="us-east-1", allow_bucket_creation=True
    ).create_dir("studies")  # fmt: skip
    yield endpoint
    server.stop()


@pytest.fixture(scope="session")
def _numbers():
    return count()


@pytest.fixture
def bucket(s3_server, _numbers):
    """A location of its own in a bucket."""
    return f"s3://studies/{next(_numbers)}?endpoint_override={s3_server}&scheme=http&region=us-east-1"


@pytest.fixture
def esa(monkeypatch, capsys, tmp_path):
    """Run the command in this process: (exit status, stdout, stderr)."""
    from esa_ray import cli

    monkeypatch.chdir(tmp_path)

    def run(line):
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


@pytest.fixture
def studies_of(monkeypatch, tmp_path):
    """The studies that a command would run."""
    from esa_ray import cli
    from esa_ray.cli import run as run_module

    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(run_module, "execute", lambda studies, **options: seen.append(studies) or 0)

    def of(line):
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        return [spec for spec, _ in seen.pop()]

    return of
