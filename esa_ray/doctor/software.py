"""Python and the libraries, against what the package states that it needs; and the models."""

from __future__ import annotations

import os
import platform
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

from packaging.specifiers import SpecifierSet

from esa_ray.doctor.finding import PATIENCE, Finding
from esa_ray.errors import EsaError
from esa_ray.host import libraries as libs
from esa_ray.models.sources import PACKAGED, find
from esa_ray.spec import ModelSpec

#: Libraries that esa-ray goes without, and what each is for.
OPTIONAL = {
    "optuna": "esa search",
    "datasets": "--data hf:NAME",
    "mlflow": "MLflow tracking",
    "wandb": "W&B tracking",
}
#: The extras that bring them.
EXTRAS = ("hub", "search", "tasks", "track")


def python() -> Finding:
    """Python itself, against the range that the package states."""
    here, stated = platform.python_version(), libs.stated()
    wanted = stated["Requires-Python"] if stated and "Requires-Python" in stated else ""
    if not SpecifierSet(wanted).contains(here, prereleases=True):
        return Finding(
            "Python", "problem", f"{here}, but esa-ray needs {wanted}; make the environment with another Python"
        )
    if sys.platform != "linux":
        return Finding("Python", "note", f"{here} on {sys.platform}; esa-ray is tested on Linux alone")
    return Finding("Python", "ok", f"{here} at {sys.executable}")


def libraries() -> Finding:
    """What is installed of what the package requires, against its ranges."""
    required = libs.required()
    if not required:
        return Finding(
            "libraries", "note", "esa-ray is not installed as a package, so nothing states what it needs: pip install ."
        )
    if wrong := libs.outside(required):
        return Finding("libraries", "problem", f"{'; '.join(wrong)}; run: {libs.MEND}")
    shown = ", ".join(f"{name} {libs.version_of(name)}" for name in ("torch", "transformers", "ray", "polars"))
    return Finding("libraries", "ok", f"all {len(required)} within their ranges: {shown}")


def optional() -> Finding:
    """Libraries that only some commands need."""
    here = {name: libs.version_of(name) or libs.version_of(f"{name}-skinny") for name in OPTIONAL}
    there = [f"{name} {version}" for name, version in here.items() if version]
    lacking = [f"{name} ({use})" for name, use in OPTIONAL.items() if not here[name]]
    words = f"installed: {', '.join(there) or 'none'}"
    if old := libs.outside([r for extra in EXTRAS for r in libs.required(extra)], missing=False):
        return Finding("optional", "problem", f"{words}; out of range: {', '.join(old)}; pip install -U what you use")
    if not lacking:
        return Finding("optional", "ok", words)
    return Finding("optional", "note", f"{words}; without: {', '.join(lacking)}; pip install what you want to use")


def packaged() -> Iterator[Finding]:
    """Whether the packaged models are here and whole."""
    for name in PACKAGED:
        try:
            find(ModelSpec(source=name))
        except EsaError as error:
            yield Finding("demo model", "note", str(error).removeprefix("--model "))
        else:
            yield Finding("demo model", "ok", f"{name} is installed, and its checksum is right")


def _within(seconds: float, ask: Callable[[], str]) -> str:
    """What a function says, or that it was too slow: looking up a name has no time limit of its own."""
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(ask()), daemon=True)
    thread.start()
    thread.join(seconds)
    return said[0] if said else f"no answer within {seconds:g} s"


def _trouble(address: str) -> str:
    """Why a web address doesn't answer; nothing if it does."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PATIENCE):
            return ""
    except urllib.error.HTTPError as error:  # whoever answers with a status is there
        return "" if error.code < 500 else f"status {error.code}"
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__


def hub() -> Finding:
    """Whether the model hub answers."""
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    for flag in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(flag, "").upper() in {"1", "ON", "YES", "TRUE"}:
            return Finding("model hub", "note", f"{flag} is set, so only cached models load; unset it to fetch others")
    if trouble := _within(PATIENCE, lambda: _trouble(address)):
        return Finding(
            "model hub", "note",
            f"{address} is out of reach ({trouble}); local directories, GGUF files and packaged models work without",
        )  # fmt: skip
    return Finding("model hub", "ok", f"{address} answers")
