"""``python -m experiments NAME``: run an experiment; without a name, list them."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Annotated

import typer

import experiments
from esa_ray import options
from esa_ray.cli import execute, guarded, results_directory
from esa_ray.errors import EsaError


def names() -> list[str]:
    """All experiments, by module name."""
    return sorted(m.name for m in pkgutil.iter_modules(experiments.__path__) if not m.name.startswith("_"))


def run(
    name: Annotated[str | None, typer.Argument(help="The experiment; none lists them.")] = None,
    out_dir: options.OutDir = None,
    only_plan: options.OnlyPlan = False,
    save_plots: options.SavePlots = False,
    address: options.Address = None,
    gpus: options.Gpus = None,
    track: options.Track = "",
    verbose: options.Verbose = False,
) -> None:
    """Run an experiment of this folder.

    Example: python -m experiments quickstart
    """
    if name is None:
        for module in names():
            hypothesis = (importlib.import_module(f"experiments.{module}").__doc__ or "").splitlines()[0]
            typer.echo(f"{module:<16}{hypothesis}")
        return
    if name not in names():
        raise EsaError(f"no experiment {name!r}; there is {', '.join(names())}")
    spec = importlib.import_module(f"experiments.{name}").study()
    raise typer.Exit(
        execute(
            [(spec, out_dir or results_directory(spec.name))], only_plan=only_plan, save_plots=save_plots,
            address=address, gpus=gpus, track=tuple(options.items(track)), verbose=verbose,
        )
    )  # fmt: skip


if __name__ == "__main__":
    guarded(lambda: typer.run(run))
