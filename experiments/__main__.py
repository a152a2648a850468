"""``python -m experiments NAME``: run an experiment; without a name, list them."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Annotated

import typer

import experiments
from esa_ray.cli import execute, guarded, options, parsing, results_directory
from esa_ray.cli.show import show_comparison
from esa_ray.errors import EsaError
from esa_ray.storage.location import below


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
    experiment, root = importlib.import_module(f"experiments.{name}"), out_dir or results_directory(name)
    specs = experiment.studies() if hasattr(experiment, "studies") else [experiment.study()]
    several = len(specs) > 1
    places = [below(root, parsing.slug(spec.name)) for spec in specs] if several else [root]
    status = execute(
        list(zip(specs, places, strict=True)), only_plan=only_plan, save_plots=save_plots, address=address, gpus=gpus,
        track=tuple(parsing.items(track)), verbose=verbose,
    )  # fmt: skip
    if several and not only_plan and all(spec.scores for spec in specs):  # only models with scores are compared
        show_comparison(places, root, save_plots=save_plots)
    raise typer.Exit(status)


if __name__ == "__main__":
    guarded(lambda: typer.run(run))
