"""Commands about this machine: ``models``, ``doctor``."""

from __future__ import annotations

import math
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from esa_ray.cli import options, parsing
from esa_ray.cli.app import app, console
from esa_ray.errors import EsaError

if TYPE_CHECKING:
    from esa_ray.models.known import Known

#: What fits here, from the hungriest task to the most frugal.
TASKS = ("score", "score in block ranges", "damage")


@app.command(epilog="Example: esa models --family pythia --dtype bf16\n\nExample: esa models --on h100")
def models(
    family: Annotated[str, typer.Option(help="Only families whose names contain one of these words.")] = "",
    models_file: options.ModelsFile = None,
    dtype: options.Dtype = "auto",
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="CARD", help="Say what fits this GPU instead: h100, a100-80, l4, …"),
    ] = None,
) -> None:
    """List known models, and which of them fit this machine.

    Memory is in GB per actor, counted from each model's config in the dtype that it would be computed in.

    "damage": the weights alone. "ranges": scoring, one range of blocks at a time. "score": scoring, all at once.
    "here": the most demanding of these that fits this machine. "blocks": parameters without embedding and output head.

    With --on, "cards" is the number of GPUs that hold the weights and the scoring of one range of blocks, and "s/M" the
    seconds to score a million tokens, at 40% of the speed that the card's maker states unless it was measured.
    """
    from esa_ray.doctor import finding, machine
    from esa_ray.models.sources import on_card

    if dtype not in ("auto", *options.WIDTHS):
        raise EsaError(f"--dtype is auto or one of {', '.join(options.WIDTHS)}, not {dtype!r}")
    if on:
        _models_on(on, family, models_file, dtype)
        return
    gpus = machine.gpus()
    room, bf16 = machine.rooms(gpus), not any(gpu.emulated for gpu in gpus)

    def computed(model: Known, device: str) -> str:
        auto = on_card(model.dtype, bf16=bf16) if device == "GPU" else "fp32"
        return auto if dtype == "auto" else dtype

    found, shown = _of_family(family, models_file), "GPU" if gpus else "CPU"
    places = " and ".join(f"{each / 1e9:.1f} GB of {device}" for device, each in room.items())
    console.out(f"{places} memory for models here; needs on {shown} in GB")
    console.out(f"{'':<38}{'weights':>7}{'blocks':>7}{'damage':>7}{'ranges':>7}{'score':>7} here")
    for title, series in groupby(found, key=lambda m: f"{m.family}, {m.kind}, in {computed(m, shown)}"):
        console.out(title)
        for model in series:
            needs = {device: model.memory(options.WIDTHS[computed(model, device)]) for device in room}
            needed = needs[shown]
            fits = (task for task in TASKS if any(needs[device][task] <= each for device, each in room.items()))
            counts = (finding.count(n) for n in (model.parameters.total, model.parameters.body))
            cells = [*counts, *(f"{needed[task] / 1e9:.1f}" for task in reversed(TASKS))]
            here = next(fits, "–").removeprefix("score in block ")
            console.out(f"  {model.name:<36}" + "".join(f"{cell:>7}" for cell in cells) + f" {here}")


def _of_family(family: str, models_file: str | None) -> list[Known]:
    """The known models of some families, in their order."""
    from esa_ray.models.known import known

    wanted, every = [word.lower() for word in parsing.items(family)], known(models_file)
    found = [m for m in every if not wanted or any(word in m.family.lower() for word in wanted)]
    if not found:
        raise EsaError(f"--family {family}: there is {', '.join(dict.fromkeys(m.family for m in every))}")
    return found


#: Windows of a million tokens, for the time that scoring takes.
MILLION, WINDOW = 1_000_000, 128


def _models_on(on: str, family: str, models_file: str | None, dtype: str) -> None:
    """The known models on a card that isn't here: memory for each task, how many cards, and time."""
    from esa_ray.models.cards import card

    asked = card(on)
    found = [(model, asked.dtype(dtype, model.dtype)) for model in _of_family(family, models_file)]
    from esa_ray.doctor import finding
    from esa_ray.measurements.forecast import passes

    console.out(f"{asked.room / 1e9:.1f} GB for models on one {asked.title}; needs in GB")
    for computed in dict.fromkeys(computed for _, computed in found):
        console.out(f"time in {computed} {asked.basis(computed)}")
    console.out(f"{'':<38}{'weights':>7}{'damage':>7}{'ranges':>7}{'score':>7}{'cards':>6}{'s/M':>8}")
    for title, series in groupby(found, key=lambda m: f"{m[0].family}, {m[0].kind}, in {m[1]}"):
        console.out(title)
        for model, computed in series:
            needed = model.memory(options.WIDTHS[computed])
            made = passes(model.hollow(computed), asked, computed)
            cells = [f"{needed[task] / 1e9:.1f}" for task in reversed(TASKS)]
            seconds = made.backward(MILLION / WINDOW, WINDOW, 1, model.parameters.body)
            count = math.ceil(needed["score in block ranges"] / asked.room)
            counts = "".join(f"{cell:>7}" for cell in (finding.count(model.parameters.total), *cells))
            console.out(f"  {model.name:<36}{counts}{count:>6}{seconds:>8,.0f}")


@app.command(epilog="Example: esa doctor --out-dir results")
def doctor(
    out_dir: Annotated[str, typer.Option(help="Where results would go.")] = "results",
) -> None:
    """Say what this machine can run, and what to mend.

    Exit status: 1 if something has to be mended before a study can run.
    """
    from esa_ray.doctor import doctor as examine

    raise typer.Exit(examine(out_dir, console))
