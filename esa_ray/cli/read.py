"""Commands that read what is stored: ``report``, ``compare``, ``status``."""

from __future__ import annotations

from typing import Annotated

import typer

from esa_ray.cli import options, parsing
from esa_ray.cli.app import app, console
from esa_ray.cli.show import opened, show_comparison, show_results
from esa_ray.errors import EsaError
from esa_ray.storage.location import Location, below

SaveTables = Annotated[bool, typer.Option("--save-tables", help="Also write tables as LaTeX.")]


@app.command(epilog="Example: esa report results/quickstart")
def report(
    study: options.Study = None,
    out_dir: options.OutDir = None,
    save_plots: options.SavePlots = False,
    save_tables: SaveTables = False,
) -> None:
    """Write a study's report anew, from what is stored."""
    for place in studies_at(study or out_dir, "report"):
        show_results(place, save_plots=save_plots, save_tables=save_tables)


@app.command(epilog="Example: esa compare results/scaling --save-tables")
def compare(
    studies: Annotated[list[str], typer.Argument(help="Studies, or directories of studies.")],
    out_dir: Annotated[str | None, typer.Option(help="Where the report goes.  [default: the first of these]")] = None,
    predict: Annotated[
        str, typer.Option(help="Predict models of these sizes, in parameters of their blocks: 70m, 13b.")
    ] = "",
    models_file: options.ModelsFile = None,
    save_plots: options.SavePlots = False,
    save_tables: SaveTables = False,
) -> None:
    """Compare models by size, family and architecture.

    Each model has a study of its own. All have the same text and the same first score. The runs found each model's
    family and kind by `esa models` or its config; --models-file overrides them.
    """
    raise typer.Exit(
        show_comparison(
            studies, out_dir or studies[0], labels=labels(models_file), sizes=parsing.parameters(predict),
            save_plots=save_plots, save_tables=save_tables,
        )
    )  # fmt: skip


def labels(models_file: str | None) -> dict[str, dict[str, str]]:
    """Model → family, kind and tuning as a user's file has them, by hub id and by the last part of it."""
    if models_file is None:
        return {}
    from esa_ray.models.known import known

    ours = known()
    theirs = [m for m in known(models_file) if m not in ours]
    told = {m.name: {"family": m.family, "kind": m.kind, "tuning": m.tuning} for m in theirs}
    # A study's model is called by the last part of a hub id, and one of the zoo by a name that can be a file's.
    return told | {name.rpartition("/")[2].replace(":", "-"): words for name, words in told.items()}


@app.command(epilog="Example: esa status results/quickstart")
def status(study: options.Study = None, out_dir: options.OutDir = None) -> None:
    """Say how far a study is, and who computes it.

    Exit status: 0 done, 1 incomplete or failing cells, 2 no study.
    """
    raise typer.Exit(max(show_status(place) for place in studies_at(study or out_dir, "status")))


def studies_at(location: str | None, command: str) -> list[str]:
    """The study that lies at a location, or those of several models that lie below it."""
    if location is None:
        raise EsaError(f"which study? Give its directory, as in: esa {command} results/quickstart")
    here = Location(location)
    if here.exists("study.json"):
        return [location]
    return [below(location, name) for name in here.names() if here.exists(f"{name}/study.json")] or [location]


def show_status(location: str) -> int:
    """Print how far a study is; returns the exit status."""
    import analysis
    from analysis.run.progress import unfinished
    from esa_ray.storage.lease import holder

    with opened(location) as study:
        counts, pace = analysis.progress(study), analysis.pace(study)
    console.out(f"{'study':<18}{study.location}")
    for name, value in counts.items():
        # Most studies ask for few of the measurements, and those of an application for no cells.
        if not value and (name.endswith(" missing") or not counts["cells"]):
            continue
        console.out(f"{name:<17} {value}")  # "compressions missing" is longer
    if working := holder(study.location):
        gone = ", which is gone: run the same command again" if working.gone else ""
        console.out(f"{'computed by':<18}{working}{gone}")
    for name, fact in pace.items():
        if fact is not None:
            console.out(f"{name.replace('_', ' '):<18}{fact}")
    return 1 if unfinished(counts) else 0
