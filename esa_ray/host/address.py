"""Whether a Ray cluster answers at an address, in seconds; Ray's own client tries for minutes, and ends the process."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from esa_ray.errors import EsaError
from esa_ray.host.groups import text_of

#: How long a cluster may take to answer, seconds: a busy head is slow.
PATIENCE = 10.0
#: How HTTP/2 begins, over which Ray talks: the client's preface and empty settings; a server sends its settings.
PREFACE, NO_SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
SETTINGS = 4
#: The port of ``ray://`` where none is given.
CLIENT_PORT = 10001
MEND = "start the cluster, name another with --address, or leave it out (and RAY_ADDRESS unset) to compute here"


def noted() -> Path:
    """The file in which Ray keeps the address of this machine's latest cluster."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"


def trouble(address: str, patience: float = PATIENCE) -> str:
    """Why no cluster answers at ``host:port`` or ``ray://host:port``; nothing if one does.

    >>> trouble("no port")
    'it is not HOST:PORT'
    """
    scheme, _, rest = address.rpartition("://")
    if scheme in ("http", "https"):
        return "it is that of the job server: ray job submit sends a study there"
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname, parts.port or (CLIENT_PORT if scheme == "ray" else None)
    except ValueError:
        host = port = None
    if not host or not port:
        return "it is not HOST:PORT"
    try:
        with socket.create_connection((host, port), timeout=patience) as connection:
            return "" if _speaks(connection) else "what answers there is no Ray cluster"
    except socket.gaierror:
        return f"no machine is known by the name {host}"
    except TimeoutError:
        return f"nothing answers within {patience:g} s"
    except OSError as error:
        return (error.strerror or str(error)).lower()


def _speaks(connection: socket.socket) -> bool:
    """Whether the other side speaks HTTP/2; behind TLS nothing can be told."""
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return True
    connection.sendall(PREFACE + NO_SETTINGS)
    answer = b""
    while len(answer) < len(NO_SETTINGS) and (more := connection.recv(len(NO_SETTINGS) - len(answer))):
        answer += more
    return len(answer) == len(NO_SETTINGS) and answer[3] == SETTINGS


def _head_runs() -> bool:
    """Whether a head runs on this machine: Ray finds it by its process, whatever is noted."""
    return any(process.info["name"] == "gcs_server" for process in psutil.process_iter(["name"]))


def answering(address: str, source: str = "--address") -> None:
    """See that a cluster answers.

    Parameters
    ----------
    source
        Where the address was named, for the sentence.

    Raises
    ------
    EsaError
        If none does.
    """
    if address == "auto":
        here = text_of(noted()).strip()
        if _head_runs() or (here and not (why := trouble(here))):
            return
        if here:
            raise EsaError(
                f"{source} auto: {noted()} names a cluster that is gone ({here}: {why}); rm {noted()}, and {MEND}"
            )
        raise EsaError(f"{source} auto: no Ray cluster runs on this machine; {MEND}")
    if why := trouble(address):
        raise EsaError(f"no Ray cluster at {address} ({source}): {why}; {MEND}")
