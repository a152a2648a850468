"""The command that tunes: ``tune``."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from esa_ray.cli import options
from esa_ray.cli.app import app, console
from esa_ray.cli.asked import typed
from esa_ray.cli.compress import FIXED, check_saving, stems
from esa_ray.cli.parsing import items, numbers, perturbations
from esa_ray.cli.run import launch
from esa_ray.cli.shared import CUT, ORIGIN, RUNNING, shared, stated
from esa_ray.cli.stored import among
from esa_ray.cli.wording import option
from esa_ray.errors import EsaError
from esa_ray.spec import ARMS, PROBED, PROTECTIONS, SCORES, STRENGTHS, PerturbSpec, TuneSpec, explain
from esa_ray.spec.tuning import BY_SOURCE

#: Learning rates where none is said: about a factor of three each way. Adapters take larger steps, few weights larger
#: ones still.
RATES = {"full": (3e-5, 1e-4, 3e-4), "lora": (3e-4, 1e-3, 3e-3)}
FEW = (1e-3, 3e-3, 1e-2)
#: What is compared where no arm is said, and nothing that full tuning alone has.
USUAL = "full,critical-source,random"

_SCORES = [name for name in SCORES if name not in PROBED and not SCORES[name].alone]
Target = Annotated[
    str | None,
    typer.Option(help="The text to tune to, as of --data.  [default: pysource, Python's source; pydoc beside that]"),
]
TargetColumn = Annotated[
    str | None, typer.Option(help="Column of the target's text.  [default: text; messages with --target-chat]")
]
TargetChat = Annotated[bool, typer.Option("--target-chat", help="The target's column holds chat messages.")]
TargetSplit = Annotated[str, typer.Option(help="Split of a hub data set that is the target.")]
TargetWindows = Annotated[int, typer.Option(help="The target's windows to train on, per seed.")]
ValidationWindows = Annotated[int, typer.Option(help="And to choose learning rates by, per seed.")]
Arm = Annotated[
    str | None, typer.Option(help=f"What is trained: {', '.join(ARMS)}.  [default: {USUAL}; full to protect or damage]")
]
Fraction = Annotated[str, typer.Option(help="Share(s) of the weights that are trained; of lora as many numbers.")]
Score = Annotated[str, typer.Option(help=f"Score(s) of the source that choose weights: {', '.join(_SCORES)}; a+b too.")]
Draws = Annotated[int, typer.Option(min=1, help="random: so many draws.")]
Rate = Annotated[
    str | None,
    typer.Option(
        help="Peak learning rate(s).  [default: 3e-5,1e-4,3e-4; lora ten times those; few weights 1e-3,3e-3,1e-2]"
    ),
]
Steps = Annotated[int, typer.Option(help="Training steps.")]
Batch = Annotated[int, typer.Option(help="Windows a step.")]
Looks = Annotated[int, typer.Option(help="How often the outcome is measured.")]
Protect = Annotated[str, typer.Option(help=f"What keeps what the source needs: {', '.join(PROTECTIONS)}.")]
Strength = Annotated[
    str | None,
    typer.Option(help="Strength(s): λ of ewc, the share that freeze holds, τ of scale.  [default: 1; freeze 0.01]"),
]
Rescore = Annotated[int, typer.Option(help="Measure what the source needs anew every so many steps; 0: never.")]
Damage = Annotated[
    str, typer.Option(help="Damage in every step, to make robust: as --perturb of esa run, with strengths; none too.")
]
Damaged = Annotated[str, typer.Option(help="Weights that are damaged: so many with the largest --score.")]
Tuned = Annotated[str, typer.Option(help="What may be trained: components, groups of them, tensors by name.")]
SaveModel = Annotated[str | None, typer.Option(help="Save every tuned model in a directory of its own in here.")]
#: Options that this command alone has.
_OWN = (
    "arm", "fraction", "score", "random_draws", "learning_rate", "steps", "batch", "looks", "protect", "strength",
    "rescore", "damage", "damaged", "components", "target", "target_column", "target_chat", "target_split",
    "target_windows", "validation_windows",
)  # fmt: skip


@app.command(
    epilog="Example: esa tune --model zoo:llama-1m --arm full,critical-source,random --fraction 0.001 --seeds 1,2,3\n\n"
    "Example: esa tune --model gpt2 --target mine.jsonl --protect none,ewc,scale --strength 0.1 --save-model models"
)
@shared("seeds max_samples data", CUT, "dtype", ORIGIN, RUNNING)
def tune(
    context: typer.Context,
    model: options.Model,
    target: Target = None,
    arm: Arm = None,
    fraction: Fraction = "0.01",
    score: Score = "grad_x_weight_abs",
    random_draws: Draws = 3,
    learning_rate: Rate = None,
    steps: Steps = 100,
    batch: Batch = 8,
    looks: Looks = 4,
    protect: Protect = "none",
    strength: Strength = None,
    rescore: Rescore = 0,
    damage: Damage = "",
    damaged: Damaged = "100",
    components: Tuned = "attention,ffn,mixer",
    save_model: SaveModel = None,
    target_windows: TargetWindows = 256,
    validation_windows: ValidationWindows = 16,
    target_column: TargetColumn = None,
    target_chat: TargetChat = False,
    target_split: TargetSplit = "train",
    **shared: Any,
) -> None:
    """Tune a model in many ways, and compare what each learns and forgets. Comma lists make a grid.

    --data is the source, whose text the model is to keep: its critical weights are chosen by it, and what is forgotten
    shows on it. Each way's learning rate is chosen by windows that no step has seen.
    """
    given = stated(locals())
    grid = _tunings(given)
    check_saving(given, stems(given, grid))
    kept = {name: value for name, value in given.items() if name not in _OWN}
    launch(kept | FIXED, tunings=grid, target=_target(given), validation_windows=validation_windows)


def _target(given: dict[str, Any]) -> dict[str, Any]:
    """The target as a text's fields; cut as the source is."""
    source = given["target"] or ("pydoc" if given["data"] == "pysource" else "pysource")
    cut = {"window": "window", "evaluation_windows": "eval_windows", "batch_size": "batch_size", "bos": "bos"}
    return {field: given[name] for field, name in cut.items()} | {
        "source": source, "chat": given["target_chat"], "split": given["target_split"],
        "calibration_windows": given["target_windows"],
        "text_column": given["target_column"] or ("messages" if given["target_chat"] else "text"),
    }  # fmt: skip


def _tunings(given: dict[str, Any]) -> list[TuneSpec]:
    """The grid, without the combinations that can't be, which are counted in a line."""
    alike = {name: given[name] for name in ("steps", "batch", "looks")} | {"components": items(given["components"])}
    axes = (_arms(given), _protections(given), _damages(given))
    _check_used(given["context"], {each["arm"] for each in axes[0]}, damages=any(axes[2]))
    grid, faults = [], []
    for parts in product(*axes):
        fields = alike | {name: value for part in parts for name, value in part.items()}
        try:
            grid.append(TuneSpec.model_validate(fields))
        except ValidationError as error:
            faults.append(explain(error, lambda place: option(("tunings", *place))))
    if not grid:
        raise faults[0]
    if faults:
        console.out(f"left out          {len(faults)} combinations that can't be, as: {faults[0]}")
    return list(dict.fromkeys(grid))


def _check_used(context: typer.Context, arms: set[str], *, damages: bool) -> None:
    """Refuse options that nothing of the grid goes by."""
    if arms == {"full"} and typed(context, "fraction"):
        raise EsaError("--fraction is the share that other arms train; add one to --arm, or leave it out")
    if not arms & {*BY_SOURCE} and not damages and typed(context, "score"):
        raise EsaError(f"--score belongs to --arm {', '.join(BY_SOURCE)} and to --damage; add one, or leave it out")


def _arms(given: dict[str, Any]) -> list[dict[str, Any]]:
    """What is trained and how fast: arm × fraction × score × draw × learning rate."""
    arms = among(_usual(given) if given["arm"] is None else given["arm"], ARMS, "--arm")
    if "random" not in arms and typed(given["context"], "random_draws"):
        raise EsaError("--random-draws belongs to --arm random; add that, or leave it out")
    fractions, scores = numbers(given["fraction"], float, "--fraction"), items(given["score"])
    if not scores:
        raise EsaError("--score is empty; name one or leave it out")
    said = given["learning_rate"]
    rates = {arm: numbers(said, float, "--learning-rate") if said is not None else RATES.get(arm, FEW) for arm in arms}
    return [
        {"arm": arm, "fraction": fraction, "score": score, "draw": draw, "learning_rate": rate}
        for arm in arms
        for fraction, score in product(fractions, scores)
        for draw in range(given["random_draws"] if arm == "random" else 1)
        for rate in rates[arm]
    ]


def _usual(given: dict[str, Any]) -> str:
    """The arms where none is said: full tuning alone can be protected, and is what is made robust."""
    alone = {"none"} >= {*items(given["protect"])} and {"none"} >= {*items(given["damage"])}
    return USUAL if alone else "full"


def _protections(given: dict[str, Any]) -> list[dict[str, Any]]:
    """Protection × strength."""
    names = among(given["protect"], PROTECTIONS, "--protect")
    held = [name for name in names if name != "none"]
    for flag, said in (("--strength", given["strength"] is not None), ("--rescore", given["rescore"])):
        if said and not held:
            raise EsaError(f"{flag} belongs to --protect {', '.join(STRENGTHS)}; add one, or leave it out")
    strengths = [None] if given["strength"] is None else numbers(given["strength"], float, "--strength")
    found: list[dict[str, Any]] = [{"protect": "none"}] if "none" in names else []
    return found + [
        {"protect": name, "strength": strength, "rescore": given["rescore"]}
        for name, strength in product(held, strengths)
    ]


def _damages(given: dict[str, Any]) -> list[dict[str, Any]]:
    """Damage × how many weights have it."""
    kinds = items(given["damage"])
    wanted = _kinds(",".join(kind for kind in kinds if kind != "none"))
    if not wanted and typed(given["context"], "damaged"):
        raise EsaError("--damaged says how many weights --damage is done to; add that, or leave it out")
    plain: list[dict[str, Any]] = [{}] if "none" in kinds or not wanted else []
    counts = numbers(given["damaged"], int, "--damaged")
    return plain + [{"damage": damage, "damaged": k} for damage, k in product(wanted, counts)]


def _kinds(text: str) -> list[PerturbSpec]:
    try:
        return perturbations(text, None, None, None, None)
    except EsaError as error:
        raise EsaError(str(error).replace("--perturb", "--damage")) from None
