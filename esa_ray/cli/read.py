"""Commands that read what is stored: ``report``, ``status``."""

from __future__ import annotations

import typer

from esa_ray import options
from esa_ray.cli.app import app, console
from esa_ray.cli.show import opened, show_results
from esa_ray.errors import EsaError
from esa_ray.place import Place, below


@app.command(epilog="Example: esa report results/quickstart")
def report(
    study: options.Study = None,
    out_dir: options.OutDir = None,
    save_plots: options.SavePlots = False,
) -> None:
    """Write the report of a study anew from what is stored."""
    for place in studies_at(study or out_dir):
        show_results(place, save_plots=save_plots)


@app.command(epilog="Example: esa status results/quickstart")
def status(study: options.Study = None, out_dir: options.OutDir = None) -> None:
    """Say how far a study is, and who computes it, from its store alone."""
    raise typer.Exit(max(show_status(place) for place in studies_at(study or out_dir)))


def studies_at(location: str | None) -> list[str]:
    """The study that lies at a location, or those of several models that lie below it."""
    if location is None:
        raise EsaError("which study? Give its directory, as in: esa status results/quickstart")
    place = Place(location)
    if place.exists("study.json"):
        return [location]
    return [below(location, name) for name in place.names() if place.exists(f"{name}/study.json")] or [location]


def show_status(location: str) -> int:
    """Print how far a study is; returns the exit status."""
    import analysis
    from esa_ray.lease import holder

    with opened(location) as study:
        counts, pace = analysis.progress(study), analysis.pace(study)
    console.out(f"{'study':<18}{study.place}")
    for name, value in counts.items():
        console.out(f"{name:<18}{value}")
    if working := holder(study.place):
        gone = ", which is gone: run the same command again" if working.gone else ""
        console.out(f"{'computed by':<18}{working}{gone}")
    for name, fact in pace.items():
        if fact is not None:
            console.out(f"{name:<18}{fact}")
    return 1 if any(counts[k] for k in ("missing", "error", "unranked", "unmeasured", "unsilenced")) else 0
