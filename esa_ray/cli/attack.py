"""The command that flips bits of stored weights on purpose: ``attack``."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Any

import typer

from esa_ray.cli import options, stored
from esa_ray.cli.app import app
from esa_ray.cli.asked import typed
from esa_ray.cli.parsing import numbers
from esa_ray.cli.run import launch
from esa_ray.cli.shared import CUT, ORIGIN, RUNNING, shared, stated
from esa_ray.errors import EsaError
from esa_ray.spec import ATTACKS, THREATS, AttackSpec
from esa_ray.spec.security import CONFINED, DRAWN, GUIDED

Arms = Annotated[str, typer.Option(help=f"How flips are chosen: {', '.join(ATTACKS)}.")]
Threat = Annotated[
    str, typer.Option(help="Values that an adversary may write: unrestricted; stealthy (within the tensor's largest).")
]
Budget = Annotated[int, typer.Option(help="Flips of weights at most.")]
TopK = Annotated[str, typer.Option(help=f"{', '.join(CONFINED)}: so many weights.")]
Draws = Annotated[int, typer.Option(min=1, help=f"{', '.join(DRAWN)}: so many draws.")]
SearchWindows = Annotated[int, typer.Option(help="Calibration windows whose gradients propose flips.")]
SelectionWindows = Annotated[int, typer.Option(help="Further ones, on which proposed flips are tried.")]
Candidates = Annotated[int, typer.Option(help="Weights of each tensor that flips are proposed of.")]
Tries = Annotated[int | None, typer.Option(help="Flips that are tried in a step.  [default: the best of each tensor]")]
#: Options that this command alone has.
_OWN = ("arms", "threat", "budget", "topk", "draws", "search_windows", "selection_windows", "candidates", "tries")
USUAL = "guided,guided-super,guided-random,random-super,random,data-free"


@app.command(
    epilog="Example: esa attack --model zoo:llama-0.3m --dtype int8,bf16 --arms guided,guided-super,random-super "
    "--threat stealthy --budget 50 --seeds 1,2,3\n\n"
    "Example: esa attack --model zoo:llama-0.3m --dtype int8 --arms guided --protect none,secded,clamp,rotation"
)
@shared("seeds max_samples data", CUT, stored.LOADED, ORIGIN, RUNNING)
def attack(
    context: typer.Context,
    model: options.Model,
    arms: Arms = USUAL,
    threat: Threat = "unrestricted",
    dtype: stored.StoredDtype = "int8",
    budget: Budget = 50,
    topk: TopK = "100",
    draws: Draws = 1,
    search_windows: SearchWindows = 8,
    selection_windows: SelectionWindows = 8,
    candidates: Candidates = 10,
    tries: Tries = None,
    protect: stored.Protect = "none",
    critical: stored.Critical = "0.001",
    score: stored.Score = "grad_x_weight_abs",
    policy: stored.OnDetection = "zero",
    code: stored.Codes = "hsiao",
    components: stored.Components = "attention,ffn,mixer,embed,head,norm",
    **shared: Any,
) -> None:
    """Flip bits of stored weights one after the other, until the model collapses. Comma lists make a grid.

    For models that you hold: how many flips an adversary needs who knows the model, its storage and its protection.
    Flips are chosen on calibration windows, and judged on the evaluation windows, which no choice has seen.
    """
    given = stated(locals())
    points = [alike | way for alike, way in product(stored.storages(given), _ways(given))]
    specs = stored.grid(AttackSpec, "attacks", points)
    stored.check_score(given, specs, f"--arms {', '.join(CONFINED)}, and --protect secded-critical and tmr-critical")
    launch(stored.kept(given, _OWN), attacks=specs)


def _ways(given: dict[str, Any]) -> list[dict[str, Any]]:
    """Arm × threat × k × draw."""
    arms, threats = stored.among(given["arms"], ATTACKS, "--arms"), stored.among(given["threat"], THREATS, "--threat")
    sizes = numbers(given["topk"], int, "--topk")
    users = {
        "topk": CONFINED, "draws": DRAWN,
        **dict.fromkeys(("search_windows", "selection_windows", "candidates", "tries"), GUIDED),
    }  # fmt: skip
    for name, of in users.items():
        if typed(given["context"], name) and not {*arms} & {*of}:
            option = f"--{name.replace('_', '-')}"
            raise EsaError(f"{option} belongs to --arms {', '.join(of)}; add one, or leave it out")
    alike = {name: given[name] for name in ("budget", "search_windows", "selection_windows", "candidates", "tries")}
    return [
        alike | {"arm": arm, "threat": threat, "k": k, "draw": draw}
        for arm, threat in product(arms, threats)
        for k in (sizes if arm in CONFINED else sizes[:1])
        for draw in range(given["draws"] if arm in DRAWN else 1)
    ]
