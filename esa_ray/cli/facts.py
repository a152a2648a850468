"""The command that looks for facts in a model: ``facts``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from pydantic import ValidationError

from esa_ray.cli import options
from esa_ray.cli.app import app
from esa_ray.cli.asked import typed
from esa_ray.cli.parsing import items, numbers
from esa_ray.cli.run import launch
from esa_ray.cli.shared import CUT, ORIGIN, RUNNING, shared, stated
from esa_ray.cli.stored import among
from esa_ray.cli.wording import option
from esa_ray.errors import EsaError
from esa_ray.interpret.facts.sources import facts_of
from esa_ray.spec import CORRUPTIONS, FACTS, FactSpec, explain

#: Facts of each source where nothing is said.
LIMIT = FactSpec().limit

Sources = Annotated[
    str,
    typer.Option("--facts", help=f"{', '.join(FACTS)}, and CSV files of prompt, subject, answer, alternative."),
]
Limit = Annotated[int, typer.Option(help="Facts of each source.")]
Paraphrases = Annotated[int, typer.Option(help="Ways of asking for each fact, 1 to 3.")]
Corruption = Annotated[str, typer.Option(help="What is done to the subject: subject (another one), noise.")]
Noise = Annotated[float, typer.Option(help="noise: standard deviations of the embeddings.")]
Draws = Annotated[int, typer.Option(help="noise: draws.")]
Restored = Annotated[str, typer.Option(help="Neighbouring blocks that are restored at once: odd numbers.")]
_ALL, _BOTH = ",".join(FACTS), ",".join(CORRUPTIONS)
#: Options that this command alone has.
_OWN = ("facts", "limit", "paraphrases", "corruption", "noise", "draws", "restored")


@app.command(
    epilog="Example: esa facts --model SmolLM2-135M-Instruct --facts countries,elements --out-dir results/facts\n\n"
    "Example: esa facts --model SmolLM2-135M-Instruct --facts mine.csv --corruption noise --restored 1"
)
@shared("seeds max_samples data", CUT, "dtype", ORIGIN, RUNNING, eval_windows=8)
def facts(
    context: typer.Context,
    model: options.Model,
    facts: Sources = _ALL,
    limit: Limit = LIMIT,
    paraphrases: Paraphrases = 3,
    corruption: Corruption = _BOTH,
    noise: Noise = 3.0,
    draws: Draws = 10,
    restored: Restored = "1,5",
    **shared: Any,
) -> None:
    """Find where a model holds facts, by causal tracing, and whether that is where it is sensitive.

    Of each fact that the model knows: its prompt, the same with the subject corrupted, and the corrupted run with one
    state restored. What that gives back of the answer is compared with the sensitivity of the same places. Where a
    fact is found needn't be where an edit of it works (Hase et al. 2023, arXiv:2301.04213).
    """
    given = stated(locals())
    kinds = among(corruption, CORRUPTIONS, "--corruption")
    for name in ("noise", "draws"):
        if typed(context, name) and "noise" not in kinds:
            raise EsaError(f"--{name} belongs to --corruption noise; add it, or leave this out")
    how = {
        "paraphrases": paraphrases, "corruptions": kinds, "noise": noise, "draws": draws,
        "restored": numbers(restored, int, "--restored"),
    }  # fmt: skip
    asked = sources_of(facts, limit, **how)
    launch({k: v for k, v in given.items() if k not in _OWN} | {"metric": None}, facts=asked)


def sources_of(text: str, limit: int, **how: Any) -> FactSpec:
    """The facts that options ask for, whose packages and files are there."""
    if not items(text):
        raise EsaError(f"--facts is empty; name one of {', '.join(FACTS)}, or a CSV")
    try:
        found = FactSpec.model_validate({"sources": items(text), "limit": limit, **how})
    except ValidationError as error:
        raise explain(error, lambda place: option(("facts", *place))) from None
    facts_of(found)  # a package that isn't installed, or a file that can't be read, is told before anything starts
    return found
