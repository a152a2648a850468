"""Commands about the zoo of small models: ``zoo list``, ``zoo train``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from esa_ray.cli import options, parsing
from esa_ray.cli.app import app, console
from esa_ray.errors import EsaError

zoo = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Small models that are trained here in minutes.")
app.add_typer(zoo, name="zoo")

Families = Annotated[str, typer.Option(help="Families: llama, neox, mixtral, llama-instruct.  [default: all]")]
Sizes = Annotated[str, typer.Option(help="Sizes: 0.1m, 0.3m, 1m, 3m, 10m.  [default: all]")]


def _chosen(names: list[str] | None, families: str, sizes: str) -> list[str]:
    from esa_ray.models.zoo import recipes

    given = [part for name in names or () for part in parsing.items(name)]
    for name in given:
        recipes.recipe(name)
    if given and (families or sizes):
        raise EsaError("give models by name, or --families and --sizes, not both")
    for flag, text, every in (("--families", families, recipes.FAMILIES), ("--sizes", sizes, recipes.SIZES)):
        if wrong := [part for part in parsing.items(text) if part not in every]:
            raise EsaError(f"{flag} {wrong[0]}: there is {', '.join(every)}")
    if given:
        return list(dict.fromkeys(given))
    return recipes.names(parsing.items(families) or recipes.FAMILIES, parsing.items(sizes) or tuple(recipes.SIZES))


@zoo.command("train", epilog="Example: esa zoo train --families llama,neox --sizes 0.1m,0.3m")
def train(
    names: Annotated[
        list[str] | None, typer.Argument(help="Models by name, as llama-1m, llama-1m@2m, llama-1m~3.  [default: all]")
    ] = None,
    families: Families = "",
    sizes: Sizes = "",
    address: options.Address = None,
    verbose: options.Verbose = False,
) -> None:
    """Train models of the zoo, one per core.

    What is trained already is left as it is. All learn from the docstrings of Python's standard library. Afterwards
    `--model zoo:llama-1m` names one.
    """
    from esa_ray.engine import zoo as training
    from esa_ray.engine.cluster import connected
    from esa_ray.progress import reporter

    wanted = _chosen(names, families, sizes)
    if training.missing(wanted):
        news = reporter()
        try:
            with connected(address, verbose=verbose):
                training.train(wanted, news)
        finally:
            news.close()
    show(wanted)


@zoo.command("list", epilog="Example: esa zoo list --families mixtral")
def catalogue(families: Families = "", sizes: Sizes = "") -> None:
    """List the zoo's models, and how those trained here turned out.

    "in blocks": parameters without embedding and output head. "nats/byte": loss on held-out text. "answers": loss on
    held-out answers after instruction tuning. "seconds": how long training took.
    """
    from esa_ray.models.zoo import recipes

    chosen = _chosen(None, families, sizes)
    show(chosen + [name for name in recipes.trained() if recipes.plain(name) in chosen and name not in chosen])


def show(names: list[str]) -> None:
    """Print a line a model."""
    from esa_ray.models.zoo import recipes

    room = max(len(recipes.PREFIX + name) for name in names) + 1
    console.out(f"{'':<{room}}{'layers':>7}{'width':>7}{'in blocks':>11}{'nats/byte':>11}{'answers':>9}{'seconds':>9}")
    for name in names:
        recipe, file = recipes.recipe(name), recipes.directory(name) / "zoo.json"
        line = f"{recipes.PREFIX + name:<{room}}{recipe.layers:>7}{recipe.width:>7}"
        if file.is_file():
            told = json.loads(file.read_text(encoding="utf-8"))
            answers = f"{told['answer_nll']:.3f}" if "answer_nll" in told else "–"
            line += (
                f"{told['parameters'] / 1e6:>10.2f}M{told['validation_nll']:>11.3f}{answers:>9}{told['seconds']:>9.0f}"
            )
        else:
            line += "  not trained yet"
        console.out(line)
