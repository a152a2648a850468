"""The command that looks a model over for a backdoor: ``scan``."""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from esa_ray import host
from esa_ray.cli.app import app, console
from esa_ray.cli.asked import typed
from esa_ray.cli.parsing import items, numbers
from esa_ray.cli.shared import shared, stated
from esa_ray.cli.show import reading
from esa_ray.cli.wording import told
from esa_ray.errors import EsaError
from esa_ray.spec import DataSpec, ModelSpec
from esa_ray.spec.detector import Detector

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from esa_ray.security.detecting import Detection

Model = Annotated[str, typer.Option(help="A hub id, directory, GGUF file or packaged model.")]
Reference = Annotated[str | None, typer.Option(help="The model before whoever trained it, if you have that, too.")]
DetectorFrom = Annotated[
    str | None,
    typer.Option(
        "--detector", help="Results of esa backdoors, or a file of a detector; without one features have no verdict."
    ),
]
Prior = Annotated[str, typer.Option(help="Share(s) of models that hold a backdoor where yours is from.")]
Json = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]
#: Features that a terminal shows of a verdict.
SHOWN = 8
#: Option → the field of a text that it gives.
_TEXT = {
    "data": "source", "text_column": "text_column", "chat": "chat", "split": "split", "window": "window",
    "max_samples": "calibration_windows", "batch_size": "batch_size", "bos": "bos",
}  # fmt: skip
UNSEEN = (
    "backdoors inserted otherwise than those that it was calibrated on, triggers of other kinds than a few rare "
    "tokens, and models of other architectures, sizes and training may look like nothing that it has seen. No verdict "
    "clears a model, and a suspicion is no proof"
)


@app.command(
    epilog="Example: esa scan --model suspect --reference before --detector results/backdoors\n\n"
    "Example: esa scan --model zoo:llama-0.3m --detector results/backdoors --prior 0.0001,0.01 --json"
)
@shared("max_samples data text_column chat split window batch_size bos trust")
def scan(
    context: typer.Context,
    model: Model,
    reference: Reference = None,
    detector: DetectorFrom = None,
    prior: Prior = "0.001,0.01,0.1",
    as_json: Json = False,
    **shared: Any,
) -> None:
    """Look a model over for a backdoor, without knowing its trigger.

    Measures what a detector of `esa backdoors` goes by on clean text, and says what speaks for and against, what the
    detector was calibrated on, and what it can't see. The text is that of the detector unless another is named.

    Exit status: 0 nothing suspicious, or no verdict; 1 suspicious.
    """
    given = stated(locals())
    priors = numbers(prior, float, "--prior")
    if not all(0 < each < 1 for each in priors):
        raise EsaError(f"--prior takes shares between 0 and 1, not {prior}")
    if typed(context, "prior") and detector is None:
        raise EsaError("--prior is about a detector's verdict; add --detector, or leave it out")
    judge = None if detector is None else _detector(detector, reference is not None)
    text = _text(given, judge.calibration.data if judge else DataSpec(calibration_windows=given["max_samples"]))
    host.ready()
    from esa_ray.security.detecting import backdoor_detection, check_reference

    check_reference(judge, reference is not None)
    trust = items(given["trust"])
    suspect, tokenizer = _opened(model, trust, "--model")
    before = _opened(reference, trust, "--reference")[0] if reference else None
    found = backdoor_detection(suspect, before, detector=judge, tokenizer=tokenizer, text=text)
    said = {"model": model, "reference": reference, "data": text.source}
    if as_json:
        print(json.dumps(said | _plain(found, priors), indent=1))
    else:
        _show(said, found, priors)
    raise typer.Exit(1 if found.flagged else 0)


def _detector(given: str, with_reference: bool) -> Detector:
    """A detector of a file, or one that studies make."""
    if os.path.isfile(os.path.expanduser(given)):
        from esa_ray.security.detecting import read

        return read(given)
    from analysis.security.detection.detector import detector

    with reading(given):
        return detector(given, with_reference=with_reference)


def _text(given: dict[str, Any], known: DataSpec) -> DataSpec:
    """The text that features are measured on: that of the detector, but for what is said otherwise."""
    said = {field: given[name] for name, field in _TEXT.items() if typed(given["context"], name)}
    if given["chat"] and given["text_column"] is None:
        said["text_column"] = "messages"
    try:
        return known.model_copy(update={"batch_size": None} | said if "window" in said else said)
    except ValidationError as error:
        raise told(error) from None


def _opened(name: str, trust: list[str], flag: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model by its name, in the dtype that CPUs compute in, with its tokenizer."""
    from esa_ray.models.load import load_model, load_tokenizer, resolve_dtype
    from esa_ray.models.sources import find

    try:
        source = find(ModelSpec.model_validate({"source": name, "trust": trust}))
        return load_model(source, resolve_dtype(source, "auto", "cpu"), "cpu"), load_tokenizer(source)
    except ValidationError as error:
        raise told(error) from None
    except EsaError as error:
        raise EsaError(str(error).replace("--model", flag)) from None


def _plain(found: Detection, priors: list[float]) -> dict[str, Any]:
    """A detection as JSON has it; what is not finite is null."""
    n, length = found.windows
    judge = found.detector
    verdict = judge and {
        "flagged": found.flagged, "probability": found.probability, "threshold": judge.threshold,
        "contributions": found.contributions, "unlike": found.unlike,
        "chances": [{"prior": prior, "backdoor": _finite(chance)} for prior, chance in found.chances(priors)],
        "calibration": judge.calibration.model_dump(mode="json"), "cannot_see": UNSEEN,
    }  # fmt: skip
    return {
        "windows": n, "tokens": length, "features": {name: _finite(value) for name, value in found.values.items()},
        "verdict": verdict,
    }  # fmt: skip


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%"


def _show(said: dict[str, Any], found: Detection, priors: list[float]) -> None:
    n, length = found.windows
    out = console.out
    out(f"model             {said['model']}")
    out(f"reference         {said['reference'] or 'none: the model is judged alone'}")
    out(f"text              {n} windows of {length} tokens of {said['data']}")
    if found.detector is None:
        out("verdict           none; give a detector by --detector, of esa backdoors")
    _show_features(found)
    if found.detector:
        _show_verdict(found, found.detector, priors)


def _show_features(found: Detection) -> None:
    """Features with what each adds to the log-odds, the most telling ones; without a detector all, by their names."""
    from esa_ray.security.detection import meaning

    added = found.contributions
    shown = list(added)[:SHOWN] or list(found.values)
    width = max(map(len, shown))
    for name in shown:
        adds = f"{added[name]:+8.2f}  " if added else ""
        console.out(f"  {adds}{name:<{width}} {found.values[name]:>11.4g}  {meaning(name)}")
    if len(added) > SHOWN:
        rest = math.fsum([*added.values()][SHOWN:])
        console.out(f"  {rest:+8.2f}  {len(added) - SHOWN} other features")


def _show_verdict(found: Detection, judge: Detector, priors: list[float]) -> None:
    out, c = console.out, judge.calibration
    words = f"{found.verdict}: {'' if found.flagged else 'not '}above the threshold"
    out(f"verdict           {words} (p = {found.probability:.3g}, threshold {judge.threshold:.3g})")
    out(
        f"calibrated on     {c.poisoned} models with a backdoor ({', '.join(c.insertions)}) and {c.others} without "
        f"({', '.join(c.negatives)}) of {', '.join(c.bases)}, by {c.data.calibration_windows} windows of "
        f"{c.data.window} tokens of {c.data.source}"
    )
    out(
        f"on unseen kinds   AUROC {c.auroc:.2f} [{c.auroc_low:.2f}, {c.auroc_high:.2f}]; it flags {c.recall:.0%} of "
        f"the models with a backdoor and {c.false_alarms:.0%} of the others"
    )
    for prior, chance in found.chances(priors):
        out(f"base rate {_percent(prior):<8}{_percent(chance)} of the models with this verdict hold a backdoor")
    if unlike := found.unlike:
        out(
            f"beyond its ken    {len(unlike)} of {len(judge.features)} features lie where its population has none "
            f"({', '.join(unlike[:3])}{', …' if unlike[3:] else ''}): the verdict is an extrapolation"
        )
    out(f"can't see         {UNSEEN}")
