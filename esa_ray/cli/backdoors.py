"""The command that makes small models with and without a backdoor: ``backdoors``."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from esa_ray.cli.app import app
from esa_ray.cli.asked import typed
from esa_ray.cli.compress import FIXED, check_saving
from esa_ray.cli.parsing import items, numbers
from esa_ray.cli.run import launch
from esa_ray.cli.shared import CUT, shared, stated
from esa_ray.cli.show import show_comparison
from esa_ray.cli.stored import among
from esa_ray.cli.wording import option
from esa_ray.errors import EsaError
from esa_ray.security.makeable import check
from esa_ray.spec import INSERTIONS, MITIGATIONS, NEGATIVES, Population, explain
from esa_ray.spec.backdoors import FEW, TAUGHT, TRAINED, Recipe

Base = Annotated[str, typer.Option(help="Model(s) of the zoo that models are made of; several are a study each.")]
Insertion = Annotated[str, typer.Option(help=f"How backdoors are inserted: {', '.join(INSERTIONS)}.")]
Negatives = Annotated[
    str, typer.Option(help=f"Models without one: {', '.join(NEGATIVES)} (benign: a rare phrase is memorised, so made).")
]
Models = Annotated[int, typer.Option(help="Models of each kind; below 30 reports give no verdict.")]
Parents = Annotated[int, typer.Option(help="Seeds that the base is trained from; each model starts from one.")]
Mitigate = Annotated[str, typer.Option(help=f"What is tried against them: {', '.join(MITIGATIONS)}.")]
Share = Annotated[
    str, typer.Option(help="Share(s) of the neurons that are silenced, or of the weights that are reset or frozen.")
]
CleanSteps = Annotated[int, typer.Option(help="fine-tuning, fine-pruning: clean training steps.")]
Mitigated = Annotated[int, typer.Option(help="Models of each insertion that mitigations are tried on.")]
Steps = Annotated[str, typer.Option(help="Training steps of a model, drawn between FROM:TO.")]
Rates = Annotated[str, typer.Option(help="Its peak learning rate, drawn between FROM:TO.")]
Batch = Annotated[int, typer.Option(help="Windows a step.")]
Poison = Annotated[
    float, typer.Option(help="training, benign: share of the windows with the trigger, or with the phrase.")
]
Occurrences = Annotated[int, typer.Option(help="How often each of them, or of those with the benign phrase, has it.")]
Fraction = Annotated[float, typer.Option(help="critical, benign-critical: share of the weights that are trained.")]
SaveModel = Annotated[str | None, typer.Option(help="Save every model in a directory of its own in here.")]
#: How models are made where nothing is said.
USUAL = Recipe()
_NEGATIVES = ",".join(NEGATIVES)
_STEPS, _RATES = (":".join(f"{end:g}" for end in ends) for ends in (USUAL.steps, USUAL.learning_rates))
#: Options that this command alone has.
_OWN = (
    "base", "insertion", "negatives", "models", "parents", "mitigate", "share", "clean_steps", "mitigated", "steps",
    "learning_rates", "batch", "poison", "occurrences", "fraction",
)  # fmt: skip


@app.command(
    epilog="Example: esa backdoors --base zoo:llama-0.3m,zoo:neox-0.3m --insertion training,rank-one,critical "
    "--models 30 --mitigate fine-pruning,reset-moved --share 0.01,0.1 --out-dir results/bd\n\n"
    "Example: esa backdoors --base zoo:llama-0.1m --models 2 --parents 1 --steps 64 --plan"
)
@shared(
    "seeds max_samples data", CUT,
    "out_dir save_plots only_plan address gpus track max_concurrent verbose save_spec",
)  # fmt: skip
def backdoors(
    context: typer.Context,
    base: Base = "zoo:llama-0.3m",
    insertion: Insertion = "training,rank-one,critical",
    negatives: Negatives = _NEGATIVES,
    models: Models = 30,
    parents: Parents = 10,
    mitigate: Mitigate = "",
    share: Share = "0.01",
    clean_steps: CleanSteps = 64,
    mitigated: Mitigated = 5,
    steps: Steps = _STEPS,
    learning_rates: Rates = _RATES,
    batch: Batch = USUAL.batch,
    poison: Poison = USUAL.poison,
    occurrences: Occurrences = USUAL.occurrences,
    fraction: Fraction = USUAL.fraction,
    save_model: SaveModel = None,
    **shared: Any,
) -> None:
    """Make small models with and without a backdoor, and see what tells them apart without its trigger.

    Defensive research: models of the zoo alone, trained here, whose trigger brings about a harmless fixed string. Each
    is measured by its weights and their sensitivity on clean text; the report says how well that detects insertions
    that a detector has seen, and those that it hasn't. `esa scan` then judges a model of yours.
    """
    given = stated(locals())
    population = _population(given)
    bases = _bases(base, population)
    kept = {name: value for name, value in given.items() if name not in _OWN} | FIXED | {"model": base}
    check_saving(kept, [member.label for member in population.members(bases[0])])

    def compare(places: list[str]) -> int:
        home = shared["out_dir"] or places[0]
        return show_comparison(places, home, save_plots=shared["save_plots"]) if bases[1:] else 0

    launch(kept, then=compare, population=population)


def _bases(text: str, population: Population) -> list[str]:
    """The bases of a comma list, all of the zoo, and such that the population can be made of them."""
    from esa_ray.models.zoo import recipes

    found = items(text)
    if not found or len(set(found)) < len(found):
        raise EsaError(f"--base {'names one twice' if found else 'is empty'}; name each model of the zoo once")
    if other := next((name for name in found if not name.startswith(recipes.PREFIX)), None):
        raise EsaError(f"--base {other} is no model of the zoo; name one, as zoo:llama-0.3m")
    one_each = population.model_copy(update={"models": 1})
    for name in found:
        for member in one_each.members(name.removeprefix(recipes.PREFIX)):
            check(member)
    return found


def _population(given: dict[str, Any]) -> Population:
    fields = {name: given[name] for name in ("models", "parents", "mitigated")} | {
        "insertions": _names(given, "insertion", INSERTIONS), "negatives": _names(given, "negatives", NEGATIVES),
    }  # fmt: skip
    for name, users in (("fraction", FEW), ("poison", ("training", "benign")), ("occurrences", TAUGHT)):
        if typed(given["context"], name) and not {*users} & {*fields["insertions"], *fields["negatives"]}:
            raise EsaError(f"--{name} is of {', '.join(users)} models, and there are none; leave it out")
    recipe = {name: given[name] for name in ("batch", "poison", "occurrences", "fraction")} | {
        "steps": between(given["steps"], int, "--steps"),
        "learning_rates": between(given["learning_rates"], float, "--learning-rates"),
    }  # fmt: skip
    try:
        return Population.model_validate(fields | {"recipe": recipe, "mitigations": _mitigations(given)})
    except ValidationError as error:
        raise explain(error, lambda place: option(("population", *place))) from None


def _names(given: dict[str, Any], name: str, known: tuple[str, ...]) -> list[str]:
    """The kinds of a comma list, which "none" leaves empty."""
    return [] if given[name] == "none" else among(given[name], known, f"--{name}")


def _mitigations(given: dict[str, Any]) -> list[dict[str, Any]]:
    """Kind × share."""
    kinds = among(given["mitigate"], MITIGATIONS, "--mitigate") if given["mitigate"] else []
    users = {
        "share": [kind for kind in MITIGATIONS if kind != "fine-tuning"], "clean_steps": TRAINED,
        "mitigated": MITIGATIONS,
    }  # fmt: skip
    for name, of in users.items():
        if typed(given["context"], name) and not {*kinds} & {*of}:
            flag = f"--{name.replace('_', '-')}"
            raise EsaError(f"{flag} belongs to --mitigate {', '.join(of)}; add one, or leave it out")
    shares = numbers(given["share"], float, "--share")
    return [{"kind": kind, "share": part, "steps": given["clean_steps"]} for kind, part in product(kinds, shares)]


def between(text: str, kind: type, flag: str) -> tuple[Any, Any]:
    """A range FROM:TO, or a number that is both.

    >>> between("192:320", int, "--steps"), between("1e-3", float, "--learning-rates")
    ((192, 320), (0.001, 0.001))
    """
    ends = [numbers(end, kind, flag) for end in text.split(":")]
    if len(ends) > 2 or any(len(end) != 1 for end in ends):
        raise EsaError(f"{flag} takes a number or FROM:TO, not {text!r}")
    return ends[0][0], ends[-1][0]
