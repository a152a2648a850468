"""Studies from a function in a Python file of the user's own, which runs as ``python FILE`` would run it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import util
from inspect import isfunction
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from esa_ray.errors import EsaError, first_line, unreadable
from esa_ray.spec import StudySpec, explain

#: Functions that are looked for where none is named, in this order; those of an experiment.
USUAL = ("study", "studies")


def studies(file: str, function: str) -> list[StudySpec]:
    """The studies that a function of a Python file returns; of ``study`` or ``studies`` if none is named.

    Raises
    ------
    EsaError
        If the file can't be run, has no such function, or the function returns something else.
    """
    path = Path(file).resolve()
    try:
        path.read_bytes()
    except OSError as error:
        raise unreadable(f"--spec {file}", error) from None
    with _running(file, path):
        module = _load(path)
        name = function or next((usual for usual in USUAL if hasattr(module, usual)), "")
        if not isfunction(getattr(module, name, None)):
            raise EsaError(f"--spec {file}{_without(module, function)}")
        returned = getattr(module, name)()
    found = list(returned) if isinstance(returned, list | tuple) else [returned]
    if not found or not all(isinstance(spec, StudySpec) for spec in found):
        raise EsaError(f"--spec {file}: {name}() must return a StudySpec, or a list of them, not {_kind(found)}")
    return found


def _load(path: Path) -> ModuleType:
    name = f"esa_study_{path.stem}"
    description = util.spec_from_file_location(name, path)
    assert description is not None
    assert description.loader is not None
    module = util.module_from_spec(description)
    sys.modules[name] = module  # dataclasses look their module up
    description.loader.exec_module(module)
    return module


@contextmanager
def _running(file: str, path: Path) -> Iterator[None]:
    """The file's neighbours can be imported, and what goes wrong in it is a sentence with its line."""
    sys.path.insert(0, str(path.parent))
    try:
        yield
    except EsaError:
        raise
    except (Exception, SystemExit) as error:
        raise EsaError(f"--spec {file}{_line(error, path)}: {_said(error)}") from None
    finally:
        sys.path.remove(str(path.parent))


def _line(error: BaseException, path: Path) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines.append(error.lineno)
    return f", line {lines[-1]}" if lines else ""


def _said(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        return str(explain(error))
    return f"{type(error).__name__}: {first_line(error)}"


def _without(module: ModuleType, function: str) -> str:
    own = [name for name, value in vars(module).items() if isfunction(value) and value.__module__ == module.__name__]
    there = f"it has {', '.join(own)}" if own else "it has none"
    return f" has no function {function or 'study'}; {there}, and FILE:NAME says which to call"


def _kind(found: list[Any]) -> str:
    return f"a {next(type(x).__name__ for x in found if not isinstance(x, StudySpec))}" if found else "an empty list"
