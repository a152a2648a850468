"""Commands that compress: ``prune`` and ``quantize``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from pydantic import ValidationError

from esa_ray.cli import options
from esa_ray.cli.app import app, console
from esa_ray.cli.asked import typed
from esa_ray.cli.parsing import items, models, numbers, places
from esa_ray.cli.run import launch
from esa_ray.cli.shared import CUT, ORIGIN, RUNNING, shared, stated
from esa_ray.cli.wording import option
from esa_ray.errors import EsaError
from esa_ray.models.edited import check_free
from esa_ray.spec import METHODS, PROBED, PRUNING_SCORES, SCORES, PruneSpec, QuantizeSpec, TuneSpec, explain, n_of_m
from esa_ray.spec.compression import DAMPING
from esa_ray.spec.compression import KeepBy as Rule
from esa_ray.storage.location import is_uri

#: A study of compressions or tunings ranks nothing.
FIXED = {"metric": None}

_SCORES = [*(name for name in SCORES if name not in PROBED), *PRUNING_SCORES]
Score = Annotated[str, typer.Option(help=f"Score(s) whose smallest weights leave: {', '.join(_SCORES)}; a+b too.")]
Group = Annotated[str, typer.Option(help="What weights compete within: row, tensor, block, model.")]
Pattern = Annotated[str, typer.Option(help="unstructured; 2:4, 4:8 (N of M zero); row, col, neuron, kv (as a whole).")]
Sparsity = Annotated[str, typer.Option(help="Share(s) of the weights that leave.")]
Allocation = Annotated[
    str, typer.Option(help="Sparsity over blocks: uniform; owl (by outliers); damage (by what pruning each costs).")
]
Updates = Annotated[str, typer.Option(help="What is done to the weights that stay: none, sparsegpt, refit (exact).")]
Damping = Annotated[
    str, typer.Option(help="Share(s) of a Hessian's mean diagonal added to it, for score obs and for updates.")
]
Method = Annotated[str, typer.Option(help=f"Published methods in place of --score … --update: {', '.join(METHODS)}.")]
Sequential = Annotated[
    bool,
    typer.Option("--sequential/--one-shot", help="Activations out of the blocks pruned so far, or the intact model's."),
]
OtherData = Annotated[
    str | None,
    typer.Option(help="Other text(s) to evaluate on.  [default: pysource, Python's source code; pydoc beside that]"),
]
_OTHER = {"other_data": (OtherData, None)}
SaveModel = Annotated[str | None, typer.Option(help="Save every compressed model in a directory of its own in here.")]
Compressed = Annotated[str, typer.Option(help="What to compress: components, groups of them, tensors by name.")]
Bits = Annotated[str, typer.Option(help="Bits of a weight: 2, 3, 4, 8.")]
GroupSize = Annotated[str, typer.Option(help="Inputs that share a scale.")]
Keep = Annotated[str, typer.Option(help="Share(s) of the weights that stay in 16 bits.")]
KeepBy = Annotated[str, typer.Option(help="Which ones stay: by tacq, grad_x_weight_abs, fisher, magnitude, random.")]
#: Options that say what a named method says.
_OF_THE_PRODUCT = ("score", "group", "allocation", "update")


@app.command(
    epilog="Example: esa prune --model SmolLM2-135M-Instruct --method magnitude,wanda,sparsegpt --sparsity 0.5,0.6\n\n"
    "Example: esa prune --model gpt2 --score act_mag,obs --pattern unstructured,2:4 --update none,refit --seeds 1,2,3"
)
@shared("seeds max_samples data", _OTHER, CUT, "dtype", ORIGIN, RUNNING)
def prune(
    context: typer.Context,
    model: options.Model,
    method: Method = "",
    score: Score = "act_mag",
    group: Group = "row",
    pattern: Pattern = "unstructured",
    sparsity: Sparsity = "0.5",
    allocation: Allocation = "uniform",
    update: Updates = "none",
    damping: Damping = f"{DAMPING:g}",
    sequential: Sequential = True,
    components: Compressed = "attention,gate,up,down",
    save_model: SaveModel = None,
    **shared: Any,
) -> None:
    """Prune a model in many ways, and compare what each costs. Comma lists make a grid of all combinations.

    Every row stands beside the dense model and beside a text of another domain.
    """
    given = stated(locals())
    grid = _prunings(given)
    check_saving(given, stems(given, grid))
    launch(_study(given), compressions=grid)


@app.command(
    epilog="Example: esa quantize --model SmolLM2-135M-Instruct --bits 3,4 --keep 0,0.0035 --keep-by tacq,random"
)
@shared("seeds max_samples data", _OTHER, CUT, "dtype", ORIGIN, RUNNING)
def quantize(
    context: typer.Context,
    model: options.Model,
    bits: Bits = "4",
    group_size: GroupSize = "64",
    keep: Keep = "0",
    keep_by: KeepBy = "tacq",
    components: Compressed = "attention,gate,up,down",
    save_model: SaveModel = None,
    **shared: Any,
) -> None:
    """Round a model to few bits, with some weights kept in 16. Comma lists make a grid.

    Rows state the true bits per weight, scales and indices of kept weights included.
    """
    given = stated(locals())
    grid = _quantizations(given)
    check_saving(given, stems(given, grid))
    launch(_study(given), compressions=grid)


def _study(given: dict[str, Any]) -> dict[str, Any]:
    """What :func:`esa_ray.cli.run.launch` understands of a command's options."""
    own = (
        "method",
        *_OF_THE_PRODUCT,
        "pattern",
        "sparsity",
        "damping",
        "sequential",
        "bits",
        "group_size",
        "keep",
        "keep_by",
    )
    kept = {name: value for name, value in given.items() if name not in (*own, "components")}
    if given["other_data"] is None:
        kept["other_data"] = "pydoc" if given["data"] == "pysource" else "pysource"
    if given["data"] in items(kept["other_data"]):
        raise EsaError(f"--other-data {given['data']} is --data; name a text of another domain, or leave it out")
    return kept | FIXED


def stems(given: dict[str, Any], grid: Sequence[PruneSpec | QuantizeSpec | TuneSpec]) -> list[str]:
    """What the saved models of a grid by all seeds are called."""
    return [f"{how.label}-s{seed}" for how, seed in product(grid, numbers(given["seeds"], int, "--seeds"))]


def check_saving(given: dict[str, Any], names: Sequence[str]) -> None:
    """Refuse what ``--save-model`` can't be before anything is computed; ``names`` are those of the models."""
    asked = given["save_model"]
    if asked is None:
        return
    if not asked.strip():
        raise EsaError("--save-model is empty; name a directory or leave it out")
    if is_uri(asked):
        raise EsaError(f"--save-model {asked} is no directory; name one here, and copy from there")
    if os.path.isfile(os.path.expanduser(asked)):
        raise EsaError(f"--save-model {asked} is a file; name a directory")
    for root, name in product(places(models(given["model"]), asked), names):
        check_free(Path(root or asked) / name)


def _quantizations(given: dict[str, Any]) -> list[QuantizeSpec]:
    """The grid; without kept weights a rule of keeping changes nothing, and is refused."""
    rules, shares = items(given["keep_by"]), numbers(given["keep"], float, "--keep")
    if not rules:
        raise EsaError("--keep-by is empty; name a rule or leave it out")
    if unknown := [rule for rule in rules if rule not in get_args(Rule)]:
        raise EsaError(f"--keep-by {unknown[0]} is not one of {', '.join(get_args(Rule))}")
    if not any(shares) and typed(given["context"], "keep_by"):
        raise EsaError("--keep-by says which weights stay in 16 bits, and none do; add --keep, or leave it out")
    sizes = (numbers(given["bits"], int, "--bits"), numbers(given["group_size"], int, "--group-size"))
    made = [
        {"bits": b, "group_size": size, "kept": kept, "keep_by": by if kept else None,
         "components": items(given["components"])}
        for b, size, kept, by in product(*sizes, shares, rules)
    ]  # fmt: skip
    return list(dict.fromkeys(_valid(QuantizeSpec, fields) for fields in made))


def _prunings(given: dict[str, Any]) -> list[PruneSpec]:
    """The grid, without the combinations that can't be, which are counted in a line."""
    patterns = items(given["pattern"])
    if patterns and all(map(n_of_m, patterns)):
        for name in ("sparsity", "group"):
            if typed(given["context"], name):
                raise EsaError(f"--pattern {given['pattern']} leaves no choice of --{name}; leave that out")
    points = _methods(given) if items(given["method"]) else _product(given)
    dampings = numbers(given["damping"], float, "--damping")
    grid, faults = [], []
    for point, pattern, sparsity, damping in product(points, patterns, items(given["sparsity"]), dampings):
        fields = point | {"pattern": pattern, "damping": damping, "components": items(given["components"])}
        if n_of_m(pattern) is None:
            fields["sparsity"] = sparsity
        try:
            grid.append(PruneSpec.model_validate(fields))
        except ValidationError as error:
            faults.append(error)
    if not grid:
        raise (
            _told(faults[0], "prune")
            if faults
            else EsaError("--pattern and --sparsity name nothing; give at least one each")
        )
    if faults:
        why = _told(faults[0], "prune")
        console.out(f"left out          {len(faults)} combinations that can't be, as: {why}")
    if typed(given["context"], "damping") and not any(how.inverts for how in grid):
        raise EsaError("--damping is of score obs and of updates, and none is asked for; add one, or leave it out")
    return list(
        dict.fromkeys(grid)
    )  # N of M inputs are the same whatever the group, what has no Hessian by any damping


def _product(given: dict[str, Any]) -> list[dict[str, Any]]:
    lists = [items(given[name]) for name in _OF_THE_PRODUCT]
    for name, values in zip(_OF_THE_PRODUCT, lists, strict=True):
        if not values:
            raise EsaError(f"--{name} is empty; give a value or leave it out")
    return [
        dict(zip(_OF_THE_PRODUCT, values, strict=True)) | {"sequential": given["sequential"]}
        for values in product(*lists)
    ]


def _methods(given: dict[str, Any]) -> list[dict[str, Any]]:
    if said := [name for name in (*_OF_THE_PRODUCT, "sequential") if typed(given["context"], name)]:
        other = said[0] if said[0] != "sequential" or given["sequential"] else "one-shot"
        raise EsaError(f"--method says what --{other} would; leave one of the two out")
    names = items(given["method"])
    if unknown := [name for name in names if name not in METHODS]:
        raise EsaError(f"--method {unknown[0]} is not one of {', '.join(METHODS)}")
    return [
        METHODS[name].model_dump(exclude={"kind", "sparsity", "pattern", "damping", "components"}) for name in names
    ]


def _valid(kind: type[QuantizeSpec], fields: dict[str, Any]) -> QuantizeSpec:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _told(error, "quantize") from None


def _told(error: ValidationError, kind: str) -> EsaError:
    return explain(error, lambda place: option(("compressions", kind, *place)))
