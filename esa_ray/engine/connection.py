"""Connect to Ray: to the cluster at hand, or to one of our own that ends with the block."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import ray
from ray.job_config import JobConfig

from esa_ray import host
from esa_ray.errors import EsaError, first_line
from esa_ray.host import address as addresses
from esa_ray.host import groups, limits, sockets
from esa_ray.host.footprint import OBJECT_STORE


def _private_token() -> None:
    """Have a token for a cluster of one's own before Ray makes one, which everyone on the machine could read.

    Where there is no home to keep it in, it lives in the environment of this process and of those that it starts.
    """
    if "RAY_AUTH_TOKEN" in os.environ or os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    try:
        path = Path(given) if given else Path.home() / ".ray" / "auth_token"
        if path.is_file() and os.access(path, os.R_OK):
            return
        if not given and Path.home().stat().st_uid != os.getuid():  # sudo: its owner couldn't read what we leave there
            raise PermissionError
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    except (OSError, RuntimeError):  # the latter: a user without a home
        os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _tightened() -> None:
    """Take the token away from the other users of this machine."""
    with contextlib.suppress(OSError, RuntimeError):
        Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").chmod(0o600)


@contextlib.contextmanager
def _told_to_end() -> Iterator[None]:
    """Make SIGTERM (`ray job stop`, a scheduler) end the block as Ctrl-C does, so that what it holds is let go.

    Ray installs a handler of its own when it connects.
    """

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: letting go takes a second
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _of_our_own() -> dict:
    """How a cluster of our own is started: where there is room for it, with the cores and memory that we may use."""
    _private_token()
    limits.raised()
    place, cores = sockets.place(), groups.cores()[0]
    memory, limited = groups.available_memory()
    options: dict = {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    if place.directory:
        options["_temp_dir"] = str(place.directory)
    if place.spilling:
        options["object_spilling_directory"] = str(place.spilling)
    if cores < (os.cpu_count() or 1):  # Ray sees neither affinity nor the groups of a scheduler
        options["num_cpus"] = max(1, int(cores))
    if limited:
        options["_memory"] = max(memory - OBJECT_STORE, 0)
    return options


class _DriversPath(list[str]):
    """Directories that this process has on its path, for its workers; others are not taken in.

    Ray adds the working directory, which this process may not look into: it can be a model's own, and what lies there
    would hide the libraries of the same names. Where it is on this process's path (``python -m`` in a checkout, a
    notebook), it stays.
    """

    def extend(self, directories: Iterable[str], /) -> None:
        mine = {os.path.realpath(entry) for entry in sys.path}  # "" is the working directory
        super().extend(each for each in directories if os.path.realpath(each) in mine)


def _job() -> JobConfig:
    found = JobConfig()
    found._py_driver_sys_path = _DriversPath()  # an empty one that is given to it counts as none
    return found


def _why(error: BaseException) -> str:
    """What Ray says, in a line; of two versions that don't fit, both; of a start that took too long, what to do."""
    if "timed out during startup" in str(error):
        return "it took too long to start on a machine this busy; run the same command again when it is less so"
    if found := re.findall(r"(Ray|Python): (\S+)", str(error)):
        words = [f"{name} {version}" for name, version in found]
        if len(words) == 4:
            return f"it runs {' and '.join(words[:2])}, and this process {' and '.join(words[2:])}; make them the same"
    return first_line(error)


@contextlib.contextmanager
def connected(address: str | None = None, *, verbose: bool = False) -> Iterator[None]:
    """Use the cluster at hand (``$RAY_ADDRESS``, or ``address``), or start one here and stop it afterwards.

    Raises
    ------
    EsaError
        If no cluster answers there or none can be started here, or a launcher has started this process several times.
    """
    if ray.is_initialized():
        yield
        return
    host.ready()
    level = logging.INFO if verbose else logging.ERROR
    source = "--address" if address else "RAY_ADDRESS"
    address = address or os.environ.get("RAY_ADDRESS")
    _tightened()
    if address and address != "local":
        addresses.answering(address, source)
        options: dict = {"address": address}
    else:
        options = _of_our_own()
    if not str(options["address"]).startswith("ray://"):  # behind a proxy Ray adds nothing
        options["job_config"] = _job()
    try:
        ray.init(log_to_driver=verbose, logging_level=level, **options)
    except Exception as error:  # Ray has no class of its own for all that can hinder it
        raise EsaError(f"no Ray cluster at {address or 'this machine'}: {_why(error)}") from None
    if not verbose:
        logging.getLogger("ray").setLevel(logging.ERROR)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        with _told_to_end():
            yield
    finally:
        ray.shutdown()
