"""The options that commands share, and how their texts become a study."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError

from esa_ray.errors import EsaError
from esa_ray.identity import digest
from esa_ray.spec import METRICS, StudySpec, explain

Model = Annotated[str, typer.Option(help="Hub id, directory, GGUF file or packaged model.")]
Metric = Annotated[str, typer.Option(help=f"Score(s): {', '.join(METRICS)}; a+b is the rank ensemble of a and b.")]
Mode = Annotated[str, typer.Option(help="Pool(s): per_layer, per_tensor, global.")]
TopK = Annotated[str, typer.Option(help="Weights per pool.")]
Seeds = Annotated[str, typer.Option(help="Each draws its own calibration windows.")]
MaxSamples = Annotated[int, typer.Option(help="Calibration windows a seed.")]
Components = Annotated[
    str, typer.Option(help="attention, ffn, or q, k, v, o, gate, up, down, router, embed, head, norm.")
]
Probes = Annotated[int | None, typer.Option(help="Most probes of hutchinson_diag and hutchinson_abs.  [default: 8]")]
ProbeError = Annotated[float | None, typer.Option(help="Relative error at which probing ends.  [default: 0.1]")]
MemoryBudget = Annotated[
    str | None, typer.Option(help="What scoring may take beside the weights in each actor, e.g. 4GB.")
]
Fidelity = Annotated[int, typer.Option(help="Damage so many single weights to see what each score is worth.")]
Data = Annotated[str, typer.Option(help="pydoc, a .txt, .jsonl or .parquet file, or hf:NAME.")]
TextColumn = Annotated[str, typer.Option(help="Column of the text in a table.")]
Split = Annotated[str, typer.Option(help="Split of a hub data set.")]
Window = Annotated[int, typer.Option(help="Tokens a window.")]
EvalWindows = Annotated[int, typer.Option(help="Evaluation windows, the same for all seeds.")]
BatchSize = Annotated[int, typer.Option(help="Evaluation windows a forward pass.")]
Bos = Annotated[str, typer.Option(help="Begin windows with BOS: auto, always, never.")]
Dtype = Annotated[str, typer.Option(help="auto, fp32, bf16, fp16.")]
Revision = Annotated[str | None, typer.Option(help="Revision of a hub model.")]
OutDir = Annotated[Path | None, typer.Option(help="The study's directory.")]
StabilityCheck = Annotated[
    bool, typer.Option("--stability-check", help="Needs two seeds; writes their agreement to stability.csv.")
]
WeightAnalysis = Annotated[
    bool, typer.Option("--weight-analysis", help="Also rank by growing numbers of calibration windows.")
]
SavePlots = Annotated[bool, typer.Option("--save-plots", help="Write figures as SVG and PNG too.")]
OnlyPlan = Annotated[bool, typer.Option("--plan", help="Show the resolved study and stop.")]
Address = Annotated[str | None, typer.Option(help="A running Ray cluster; default: $RAY_ADDRESS or a local one.")]
MaxConcurrent = Annotated[int | None, typer.Option(min=1, help="Trials in flight.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Let Ray talk, too.")]

SCALED = ("sign_flip", "gauss_noise")


def items(text: str) -> list[str]:
    """The parts of a comma list."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(text: str, kind: type, flag: str) -> list[Any]:
    """The numbers of a comma list."""
    if not items(text):
        raise EsaError(f"{flag} is empty; give a number or leave it out")
    try:
        return [kind(part) for part in items(text)]
    except ValueError:
        word = "whole numbers" if kind is int else "numbers"
        raise EsaError(f"{flag} takes {word} separated by commas, not {text!r}") from None


def perturbations(
    kinds: str, scales: str | None, probabilities: str | None, bits: str | None, noise: str | None
) -> list[dict[str, Any]]:
    """The grid of kinds × their own strengths; a flag that no kind uses is refused."""
    wanted = items(kinds)
    for value, flag, users in (
        (scales, "--perturb-scale", SCALED),
        (probabilities, "--perturb-prob", ("bit_flip",)),
        (bits, "--bits", ("bit_flip",)),
        (noise, "--noise-scale", ("gauss_noise",)),
    ):
        if value and not set(users) & set(wanted):
            raise EsaError(f"{flag} belongs to {' and '.join(users)}; add --perturb {users[0]} or leave it out")
    strengths: dict[str, list[Any]] = {
        "bit_flip": numbers(probabilities, float, "--perturb-prob") if probabilities else [None]
    }
    for kind in SCALED:
        strengths[kind] = numbers(scales, float, "--perturb-scale") if scales else [None]
    return [
        {"kind": kind, "strength": strength}
        | ({"bits": bits} if kind == "bit_flip" and bits else {})
        | ({"relative_to": noise} if kind == "gauss_noise" and noise else {})
        for kind in wanted
        for strength in strengths.get(kind, [None])
    ]


def slug(text: str) -> str:
    """A text as a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:100].strip("-._") or "study"


def study_name(spec: dict[str, Any]) -> str:
    """A readable name for a study that was given none; its last part tells studies apart."""
    first = spec["scores"][0]
    words = [Path(spec["model"]["source"]).name, first["metric"], first["mode"]]
    words += ["k" + "_".join(map(str, spec["topk"])), *dict.fromkeys(p["kind"] for p in spec["perturbations"])]
    return slug("-".join(words)) + "-" + digest(spec)[:6]


def build(name: str | None = None, **fields: Any) -> StudySpec:
    """A validated study; pydantic's complaint as one sentence."""
    try:
        if name is None:
            draft = StudySpec.model_validate({"name": "draft", **fields})
            name = study_name(draft.model_dump(mode="json", exclude={"name"}))
        return StudySpec.model_validate({"name": name, **fields})
    except ValidationError as error:
        raise explain(error) from None


def size(text: str | None, flag: str) -> int | None:
    """A number of bytes: 500MB, 4GB, 2GiB.

    >>> size("4GB", "--memory-budget")
    4000000000
    """
    if text is None:
        return None
    try:
        found = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        found = 0
    if found < 1:
        raise EsaError(f"{flag} takes a size such as 500MB or 4GB, not {text!r}")
    return found


def scores(metric: str, mode: str, components: str, probes: int | None, error: float | None) -> list[dict[str, Any]]:
    """The grid of scores × pools; probing is said of the estimated ones, and refused where there are none."""
    wanted = items(metric)
    estimated = [m for m in wanted if "hutchinson" in m]
    for value, flag in ((probes, "--probes"), (error, "--probe-error")):
        if value is not None and not estimated:
            raise EsaError(f"{flag} belongs to hutchinson_diag and hutchinson_abs; add one to --metric or leave it out")
    return [
        {"metric": m, "mode": p, "components": items(components)}
        | ({"probes": probes, "relative_error": error} if m in estimated else {})
        for m in wanted
        for p in items(mode)
    ]
