"""The command that hits stored weights by chance: ``faults``."""

from __future__ import annotations

import math
from itertools import product
from typing import Annotated, Any

import typer

from esa_ray.cli import options, stored
from esa_ray.cli.app import app
from esa_ray.cli.asked import typed
from esa_ray.cli.parsing import items, numbers
from esa_ray.cli.run import launch
from esa_ray.cli.shared import CUT, ORIGIN, RUNNING, shared, stated
from esa_ray.errors import EsaError
from esa_ray.spec import FAULTS, FaultSpec

#: Faults that a rate alone measures, and those that may be counted instead.
BY_RATE, COUNTED = ("uniform", "stuck"), ("burst", "row", "column")
#: Decades beyond which FROM:TO is a slip.
MOST = 40

Fault = Annotated[str, typer.Option(help=f"Kind(s) of faults: {', '.join(FAULTS)} (one flip; as --strata).")]
Rate = Annotated[
    str | None,
    typer.Option(help="Rate(s) a bit: a comma list, or FROM:TO by decades.  [default: 1e-7,1e-6,1e-5,1e-4]"),
]
Fit = Annotated[
    str | None,
    typer.Option(help="In place of --rate: faults of a bit in 1e9 hours, with --hours; p = 1 − exp(−FIT·1e-9·hours)."),
]
Hours = Annotated[str | None, typer.Option(help="Hours that weights lie in memory, with --fit.")]
Events = Annotated[
    str | None,
    typer.Option(help="burst, row, column: so many of them, beside or without a rate; 1 shows what one does."),
]
Burst = Annotated[str, typer.Option(help="burst: bits that flip.")]
RowBytes = Annotated[str, typer.Option(help="row, column: bytes of a row of memory.")]
Repeats = Annotated[int, typer.Option(help="Injections of each combination and seed.")]
Strata = Annotated[
    bool, typer.Option("--strata", help="Also flip single bits: each bit in each component and range of the score.")
]
PerStratum = Annotated[int, typer.Option(help="single: flips of each bit, component and range.")]
#: Options that this command alone has.
_OWN = ("fault", "rate", "fit", "hours", "events", "burst", "row_bytes", "repeats", "strata", "per_stratum")
RATES = (1e-7, 1e-6, 1e-5, 1e-4)


@app.command(
    epilog="Example: esa faults --model zoo:llama-0.3m --dtype bf16,int8 --fault uniform,burst --rate 1e-7:1e-4 "
    "--protect none,secded,clamp --repeats 100\n\n"
    "Example: esa faults --model zoo:llama-0.3m --dtype int8 --strata --per-stratum 20 --seeds 1,2"
)
@shared("seeds max_samples data", CUT, stored.LOADED, ORIGIN, RUNNING)
def faults(
    context: typer.Context,
    model: options.Model,
    dtype: stored.StoredDtype = "bf16",
    fault: Fault = "uniform",
    rate: Rate = None,
    fit: Fit = None,
    hours: Hours = None,
    events: Events = None,
    burst: Burst = "4",
    row_bytes: RowBytes = "2048",
    repeats: Repeats = 100,
    strata: Strata = False,
    per_stratum: PerStratum = 10,
    protect: stored.Protect = "none",
    critical: stored.Critical = "0.001",
    score: stored.Score = "grad_x_weight_abs",
    policy: stored.OnDetection = "zero",
    code: stored.Codes = "hsiao",
    components: stored.Components = "attention,ffn,mixer,embed,head,norm",
    early_stop: options.EarlyStop = None,
    **shared: Any,
) -> None:
    """Hit stored weights by chance, and see how often that breaks the model and what protection buys.

    Comma lists make a grid of all combinations. Each is injected --repeats times; the model is stored in --dtype and
    protected, and the outcome is compared with the same without a fault.
    """
    given = stated(locals())
    points = [alike | hit for alike, hit in product(stored.storages(given), _hits(given))]
    specs = stored.grid(FaultSpec, "faults", [*points, *_single(given)])
    stored.check_score(given, specs, "--strata, and --protect secded-critical and tmr-critical")
    launch(stored.kept(given, _OWN), faults=specs)


def _asked(given: dict[str, Any]) -> list[str]:
    """Kinds of faults; with ``--strata`` alone just that."""
    if given["strata"] and not typed(given["context"], "fault"):
        said = [f"--{name.replace('_', '-')}" for name in ("rate", "fit", "events") if given[name] is not None]
        return ["uniform", "single"] if said else ["single"]
    return [*stored.among(given["fault"], FAULTS, "--fault"), *["single"] * given["strata"]]


def _hits(given: dict[str, Any]) -> list[dict[str, Any]]:
    """Fault × dose × form, without single flips."""
    kinds = [kind for kind in _asked(given) if kind != "single"]
    _check_used(given, kinds)
    counts = numbers(given["events"], int, "--events") if given["events"] is not None else []
    rates = _rates(given) if kinds else []
    sizes = numbers(given["burst"], int, "--burst"), numbers(given["row_bytes"], int, "--row-bytes")
    by_rate = _said_rate(given) or not counts
    found = []
    for kind in kinds:
        doses = [{"rate": rate} for rate in rates] if kind in BY_RATE or by_rate else []
        doses += [{"events": n} for n in counts] if kind in COUNTED else []
        forms = [{"burst": n} for n in sizes[0]] if kind == "burst" else [{"row_bytes": n} for n in sizes[1]]
        found += [
            {"fault": kind, "repeats": given["repeats"], **dose, **form}
            for dose, form in product(doses, [{}] if kind in BY_RATE else forms)
        ]
    return found


def _single(given: dict[str, Any]) -> list[dict[str, Any]]:
    """Single flips of each dtype: of what is read, so that of all protections only rotation tells on them."""
    if "single" not in _asked(given):
        if typed(given["context"], "per_stratum"):
            raise EsaError("--per-stratum is of single flips; add --strata, or leave it out")
        return []
    protections = items(given["protect"])
    if len(_asked(given)) == 1 and (rest := [name for name in protections if name not in ("none", "rotation")]):
        raise EsaError(
            f"--protect {','.join(rest)} changes nothing of single flips, which are of what is read; add --fault "
            "uniform, or leave it out"
        )
    kinds = ["none", *["rotation"] * ("rotation" in protections)]
    alike = {"fault": "single", "repeats": given["per_stratum"], **stored.alike(given)}
    return [alike | {"dtype": dtype, "protect": kind} for dtype, kind in product(stored.dtypes(given), kinds)]


def _check_used(given: dict[str, Any], kinds: list[str]) -> None:
    """Refuse options that no fault of the grid goes by."""
    users = {
        "burst": ("burst",), "row_bytes": ("row", "column"), "events": COUNTED,
        **dict.fromkeys(("rate", "fit", "hours", "repeats"), (*BY_RATE, *COUNTED)),
    }  # fmt: skip
    for name, of in users.items():
        if typed(given["context"], name) and not {*kinds} & {*of}:
            option = f"--{name.replace('_', '-')}"
            raise EsaError(f"{option} belongs to --fault {', '.join(of)}; add one, or leave it out")


def _said_rate(given: dict[str, Any]) -> bool:
    return given["rate"] is not None or given["fit"] is not None or given["hours"] is not None


def _rates(given: dict[str, Any]) -> list[float]:
    """The rates that are said, or those by how often a bit fails and for how long it lies there."""
    fit, hours = given["fit"], given["hours"]
    if given["rate"] is not None and (fit is not None or hours is not None):
        raise EsaError("--fit and --hours say what --rate would; leave one of the two out")
    if (fit is None) != (hours is None):
        raise EsaError("--fit and --hours make a rate together; give both, or --rate")
    if fit is None:
        return [*RATES] if given["rate"] is None else decades(given["rate"])
    pairs = product(numbers(fit, float, "--fit"), numbers(hours, float, "--hours"))
    found = [-math.expm1(-failures * 1e-9 * h) for failures, h in pairs]
    if not all(0 < p < 1 for p in found):
        raise EsaError("--fit and --hours must be above 0, and few enough that not every bit fails")
    return found


def decades(text: str) -> list[float]:
    """A comma list of rates, each a number or FROM:TO, a decade a step.

    >>> decades("1e-9:1e-7,0.5")
    [1e-09, 1e-08, 1e-07, 0.5]
    """
    found = []
    for part in text.split(","):
        if ":" not in part:
            found += numbers(part, float, "--rate")
            continue
        first, last = (numbers(end, float, "--rate")[0] for end in part.split(":", 1))
        if not 0 < first < last < 1 or math.log10(last / first) > MOST:
            raise EsaError(f"--rate FROM:TO goes up between 0 and 1, not {part!r}")
        steps = math.floor(math.log10(last / first) + 1e-9)
        found += [float(f"{first * 10**i:.12g}") for i in range(steps + 1)]
    return list(dict.fromkeys(found))
