"""``python -m experiments NAME``: run an experiment; without a name, list them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import experiments
from esa_ray.cli import execute, guarded, options, parsing, results_directory
from esa_ray.cli.show import show_comparison
from esa_ray.errors import EsaError
from esa_ray.spec import StudySpec
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
    """Run an experiment of this folder: its ``study`` or ``studies``.

    One with a function ``afterwards`` goes on with the studies that this makes of those that are done: of the models
    that they saved.

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
    given: dict[str, Any] = {"only_plan": only_plan, "save_plots": save_plots, "address": address, "gpus": gpus,
               "track": tuple(parsing.items(track)), "verbose": verbose}  # fmt: skip
    placed = placed_below(specs, root)
    status = execute(placed, **given)
    if hasattr(experiment, "afterwards"):
        if only_plan:
            typer.echo("and then            studies of the models that these save")
        elif status == 0:
            placed = placed_below(experiment.afterwards([spec for spec, _ in placed]), root)
            status = execute(placed, **given)
    compared = [place for spec, place in placed if spec.scores or spec.population]
    if len(compared) > 1 and not only_plan:
        show_comparison(compared, root, save_plots=save_plots)
    raise typer.Exit(status)


def placed_below(specs: Sequence[StudySpec], root: str) -> list[tuple[StudySpec, str]]:
    """Each study with its place: below the experiment's, or just there if it is the only one.

    Where an experiment saves models is said from its place on.
    """
    places = [below(root, parsing.slug(spec.name)) for spec in specs] if len(specs) > 1 else [root]
    saved = [s.replace(save_models=below(root, s.save_models)) if s.save_models else s for s in specs]
    return list(zip(saved, places, strict=True))


if __name__ == "__main__":
    guarded(lambda: typer.run(run))
