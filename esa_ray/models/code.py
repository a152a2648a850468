"""Whether a model brings Python code of its own, and whether that may run. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from esa_ray.errors import EsaError
from esa_ray.models.files import read_json

#: Files that can name Python code for transformers to run; those of them that a model has.
CODE_FILES = ("config.json", "tokenizer_config.json")


def _code(value: Any) -> Iterator[str]:
    """Every class that an ``auto_map`` names, at any depth: configs hold configs."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(inner) if key == "auto_map" else _code(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _code(inner)


def _texts(value: Any) -> Iterator[str]:
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]:
        if isinstance(inner, dict | list):
            yield from _texts(inner)
        elif inner is not None:
            yield str(inner)


def _known(config: dict[str, Any]) -> bool:
    """Whether transformers has a class of its own for this config's architecture."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return config.get("model_type") in CONFIG_MAPPING_NAMES


def asks_for_code(name: str, files: Iterable[Path], trust: tuple[str, ...]) -> bool:
    """Whether the model wants code of its own to run, and may.

    Raises
    ------
    EsaError
        If it may not, or that code lies where no fingerprint covers it.
    """
    classes = [(file, each) for file in files if file.is_file() for each in _code(read_json(file))]
    if "remote_code" not in trust:
        # Many models of known architectures still carry the code that they once needed; nothing of it runs then.
        classes = [(f, each) for f, each in classes if f.name != "config.json" or not _known(read_json(f))]
    if not classes:
        return False
    file, _ = classes[0]
    if "remote_code" not in trust:
        raise EsaError(
            f"--model {name} brings Python code of its own (auto_map in {file.name}), which is not run here; read "
            "that code, and if you trust it add --trust remote_code"
        )
    if elsewhere := [each for _, each in classes if "--" in each]:
        raise EsaError(
            f"--model {name} takes its code from another repository ({elsewhere[0].split('--')[0]}), which no "
            "fingerprint covers; put model and code into one directory"
        )
    return True
