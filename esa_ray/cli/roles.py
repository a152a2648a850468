"""The command that tells what the weights do that a model hangs on: ``roles``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from pydantic import ValidationError

from esa_ray.cli import options
from esa_ray.cli.app import app
from esa_ray.cli.asked import typed
from esa_ray.cli.facts import LIMIT, sources_of
from esa_ray.cli.parsing import items
from esa_ray.cli.run import launch
from esa_ray.cli.shared import CUT, ORIGIN, RUNNING, shared, stated
from esa_ray.cli.stored import among
from esa_ray.cli.wording import option
from esa_ray.errors import EsaError
from esa_ray.spec import FACTS, KINDS, ROLES, PerturbSpec, RoleSpec, explain
from esa_ray.spec.roles import SETS

Weights = Annotated[
    str, typer.Option(help="top:N (the N leading weights of the whole model, by --metric), or a file of weights.")
]
Names = Annotated[str, typer.Option("--roles", help=f"Role(s): {', '.join(ROLES)}.")]
NullGroup = Annotated[
    str, typer.Option("--null", help="What leading weights are compared with: matched_k (same tensor and size).")
]
NullWeights = Annotated[int, typer.Option(help="Weights of the null in each tensor, at most.")]
Edits = Annotated[
    str,
    typer.Option(help=f"Damage, as zero,scale-0.8: the first is tested, others repeat it. Kinds: {', '.join(KINDS)}."),
]
Sets = Annotated[str, typer.Option(help=f"Also damage whole sets that these weights are of: {', '.join(SETS)}.")]
Facts = Annotated[
    str | None,
    typer.Option(help=f"Also trace facts, as esa facts: {', '.join(FACTS)}, or a CSV.  [default: none]"),
]
Limit = Annotated[int, typer.Option(help="Facts of each source, with --facts.")]
Attention = Annotated[bool, typer.Option("--attention/--no-attention", help="Also see sinks, entropy and spikes.")]
#: Options that this command alone has.
_OWN = ("weights", "roles", "null", "null_weights", "edits", "sets", "facts", "limit", "attention")
TOP = "top:"
_ALL = ",".join(ROLES)


@app.command(
    epilog="Example: esa roles --model SmolLM2-135M-Instruct --weights top:100 --out-dir results/roles\n\n"
    "Example: esa roles --model zoo:llama-1m --weights six.csv --roles spike,sink --edits zero,sign_flip,scale-0.8 "
    "--sets row,neuron"
)
@shared("seeds max_samples data", CUT, "dtype", ORIGIN, RUNNING, max_samples=128, eval_windows=8)
def roles(
    context: typer.Context,
    model: options.Model,
    weights: Weights = "top:100",
    roles: Names = _ALL,
    null: NullGroup = "matched_k",
    null_weights: NullWeights = 5,
    edits: Edits = "zero",
    sets: Sets = "",
    metric: options.Metric = "grad_x_weight_abs",
    components: options.Components = "attention,ffn,mixer",
    facts: Facts = None,
    limit: Limit = LIMIT,
    attention: Attention = True,
    **shared: Any,
) -> None:
    """Test what the weights do that a model hangs on: which of them is a spike's maker, a sink's, an induction head's.

    A weight holds a role if damage changes the role's metric beyond the null (necessity), if holding the role's
    mediator at its intact value undoes at least half of what the damage costs (mediation), and undoes nothing of what
    the null's costs (specificity). All else is unassigned, and said to be.
    """
    given = stated(locals())
    among(null, ("matched_k",), "--null")
    if facts is None and typed(context, "limit"):
        raise EsaError("--limit is of --facts; add them, or leave it out")
    kept = {name: value for name, value in given.items() if name not in _OWN} | _chosen(given)
    kept |= {"mode": "global", "controls": null, "control_draws": null_weights}
    launch(kept, roles=_roles(given), facts=None if facts is None else sources_of(facts, limit))


def _chosen(given: dict[str, Any]) -> dict[str, Any]:
    """Which weights: the leading ones by a score, or those of a file, which need none."""
    text = given["weights"].strip()
    if not text.startswith(TOP):
        for name in ("metric", "components"):
            if typed(given["context"], name):
                raise EsaError(f"--{name} chooses weights, which {text} names; leave it out, or give --weights top:100")
        if len(items(text)) != 1:
            raise EsaError(f"--weights takes top:N or one file, not {text!r}")
        return {"metric": None, "weights": text}
    if not text.removeprefix(TOP).isdigit() or int(text.removeprefix(TOP)) < 1:
        raise EsaError(f"--weights top:N takes a whole number from 1 on, not {text!r}")
    if len(items(given["metric"])) != 1:
        raise EsaError(f"--metric {given['metric']}: roles are of the weights of one score; name one")
    return {"topk": text.removeprefix(TOP)}


def _roles(given: dict[str, Any]) -> RoleSpec:
    try:
        damage = [PerturbSpec.parse(label) for label in items(given["edits"])]
        return RoleSpec.model_validate(
            {
                "roles": among(given["roles"], ROLES, "--roles"), "edits": damage, "attention": given["attention"],
                "null_weights": given["null_weights"], "windows": given["eval_windows"],
                "sets": among(given["sets"], SETS, "--sets") if given["sets"] else (),
            }
        )  # fmt: skip
    except ValidationError as error:
        raise explain(error, lambda place: option(("roles", *place)) or "--edits") from None
    except ValueError as error:
        raise EsaError(f"--edits: {error}") from None
