"""Commands about this machine: ``models``, ``doctor``."""

from __future__ import annotations

from itertools import groupby
from typing import Annotated

import typer

from esa_ray import options
from esa_ray.cli.app import app, console
from esa_ray.errors import EsaError

#: What fits here, from the hungriest task to the most frugal.
TASKS = ("score", "score in block ranges", "damage")


@app.command(epilog="Example: esa models --family pythia --dtype bf16")
def models(
    family: Annotated[str, typer.Option(help="Families whose names contain one of these.")] = "",
    models_file: options.ModelsFile = None,
    dtype: options.Dtype = "auto",
) -> None:
    """List models known by name, with the memory that each task needs in an actor, and what fits this machine.

    Counts are made from configs, without any weights. "score" holds every score in memory at once, "ranges" one range
    of blocks at a time; "damage" holds the weights alone. "here" is the hungriest of the three that fits. "blocks" are
    the parameters without embedding and output head.
    """
    from esa_ray.doctor import finding, machine
    from esa_ray.models.known import known

    if dtype not in ("auto", *options.WIDTHS):
        raise EsaError(f"--dtype is auto or one of {', '.join(options.WIDTHS)}, not {dtype!r}")
    gpus = machine.gpus()
    room, width = machine.rooms(gpus), options.WIDTHS["bf16" if gpus else "fp32"]
    width = options.WIDTHS.get(dtype, width)
    wanted = [word.lower() for word in options.items(family)]
    found = [m for m in known(models_file) if not wanted or any(word in m.family.lower() for word in wanted)]
    if not found:
        raise EsaError(f"--family {family}: there is {', '.join(dict.fromkeys(m.family for m in known(models_file)))}")
    places = " and ".join(f"{each / 1e9:.1f} GB of {device} memory" for device, each in room.items())
    console.out(f"{places} for models here, at {width} bytes a weight; needs in GB")
    console.out(f"{'':<38}{'weights':>7}{'blocks':>7}{'damage':>7}{'ranges':>7}{'score':>7} here")
    for title, series in groupby(found, key=lambda m: f"{m.family}, {m.kind}"):
        console.out(title)
        for model in series:
            needed = model.memory(width)
            fits = (task for task in TASKS if any(needed[task] <= each for each in room.values()))
            counts = (finding.count(n) for n in (model.parameters.total, model.parameters.body))
            cells = [*counts, *(f"{needed[task] / 1e9:.1f}" for task in reversed(TASKS))]
            here = next(fits, "–").removeprefix("score in block ")
            console.out(f"  {model.name:<36}" + "".join(f"{cell:>7}" for cell in cells) + f" {here}")


@app.command(epilog="Example: esa doctor --out-dir results")
def doctor(
    out_dir: Annotated[str, typer.Option(help="Where results would go.")] = "results",
) -> None:
    """Say what this machine can run; exit status 1 if something has to be mended first."""
    from esa_ray.doctor import doctor as examine

    raise typer.Exit(examine(out_dir, console))
