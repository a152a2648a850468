"""Which studies a command asks for, by its options or by a file, and where each goes."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import typer

from esa_ray.cli import parsing, spec_files
from esa_ray.errors import EsaError
from esa_ray.spec import StudySpec
from esa_ray.storage.location import Location, below, last_part

#: What of ``run`` says how and where; all else says what the study is, as a file of --spec does.
HOW = frozenset({
    "context", "trust", "out_dir", "save_plots", "only_plan", "on", "address", "gpus", "track", "max_concurrent",
    "memory_budget", "verbose", "spec", "save_spec",
})  # fmt: skip


def check_alone(context: typer.Context, spec: str) -> None:
    """Refuse options that describe the study beside a file that does."""
    options = [parameter.name for parameter in context.command.params if parameter.name]
    if typed := [name for name in options if name not in HOW and _typed(context, name)]:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in typed)
        raise EsaError(f"{names}: --spec {spec} says what the study is; say it there, or leave --spec out")


def _typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def results_directory(name: str) -> str:
    """Where a study goes that was given no place: ``results/NAME`` here.

    A Ray job runs in a temporary copy of the working directory, which Ray deletes; there it is
    ``$ESA_RESULTS`` (a directory, or the location of an object store), or ``~/esa-results``.
    """
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    root = os.environ.get("ESA_RESULTS") or (Path.home() / "esa-results" if in_job else Path("results"))
    return below(root, name)


def described(o: SimpleNamespace, **more: Any) -> list[tuple[StudySpec, str]]:
    """The studies that options describe, one a model, and where each goes."""
    if o.model is None:
        raise EsaError("--model is missing; name one, or give a file of a study by --spec")
    sources = parsing.models(o.model)
    studies = []
    saved = parsing.places(sources, getattr(o, "save_model", None))
    for source, place, home in zip(sources, parsing.places(sources, o.out_dir), saved, strict=True):
        own = {"model": source, "out_dir": place, "save_model": home}
        spec = parsing.study(SimpleNamespace(**vars(o) | own), **more)
        studies.append((spec, place or results_directory(spec.name)))
    return studies


def read_studies(o: SimpleNamespace) -> list[tuple[StudySpec, str]]:
    """The studies of a file, and where each goes: several to a directory each below ``--out-dir``."""
    if o.out_dir:
        Location(o.out_dir)  # one that can't be, or holds a key, is refused before anything shows it
    name = parsing.slug(last_part(o.out_dir)) if o.out_dir else None
    specs = spec_files.read(o.spec, name=name, trust=parsing.items(o.trust))
    if not o.out_dir:
        return [(spec, results_directory(spec.name)) for spec in specs]
    return [(spec, o.out_dir if len(specs) == 1 else below(o.out_dir, spec.name)) for spec in specs]
