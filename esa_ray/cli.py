"""The ``esa`` command. Exit status: 0 done, 1 incomplete or failing cells, 2 bad input."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from esa_ray.errors import EsaError
from esa_ray.grid import plan
from esa_ray.identity import digest
from esa_ray.spec import (
    StudySpec,
    explain,
    unavailable,
)

if TYPE_CHECKING:
    from analysis import Study
    from esa_ray.engine.sweep import Summary

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Which few weights does a language model hang on, how sure are we, and what does damage to them cost?",
)
console = Console()

SCALED = ("sign_flip", "gauss_noise")


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str, kind: type, flag: str) -> list[Any]:
    if not _list(text):
        raise EsaError(f"{flag} is empty; give a number or leave it out")
    try:
        return [kind(part) for part in _list(text)]
    except ValueError:
        word = "whole numbers" if kind is int else "numbers"
        raise EsaError(f"{flag} takes {word} separated by commas, not {text!r}") from None


def perturbations(
    kinds: str, scales: str | None, probabilities: str | None, bits: str | None, noise: str | None
) -> list[dict[str, Any]]:
    """The grid of kinds × their own strengths; a flag that no kind uses is refused."""
    wanted = _list(kinds)
    for value, flag, users in (
        (scales, "--perturb-scale", SCALED),
        (probabilities, "--perturb-prob", ("bit_flip",)),
        (bits, "--bits", ("bit_flip",)),
        (noise, "--noise-scale", ("gauss_noise",)),
    ):
        if value and not set(users) & set(wanted):
            raise EsaError(f"{flag} belongs to {' and '.join(users)}; add --perturb {users[0]} or leave it out")
    strengths: dict[str, list[Any]] = {
        "bit_flip": _numbers(probabilities, float, "--perturb-prob") if probabilities else [None]
    }
    for kind in SCALED:
        strengths[kind] = _numbers(scales, float, "--perturb-scale") if scales else [None]
    return [
        {"kind": kind, "strength": strength}
        | ({"bits": bits} if kind == "bit_flip" and bits else {})
        | ({"relative_to": noise} if kind == "gauss_noise" and noise else {})
        for kind in wanted
        for strength in strengths.get(kind, [None])
    ]


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:100].strip("-._") or "study"


def study_name(spec: dict[str, Any]) -> str:
    """A readable name for a study that was given none; its last part tells studies apart."""
    first = spec["scores"][0]
    words = [Path(spec["model"]["source"]).name, first["metric"], first["mode"]]
    words += ["k" + "_".join(map(str, spec["topk"])), *dict.fromkeys(p["kind"] for p in spec["perturbations"])]
    return _slug("-".join(words)) + "-" + digest(spec)[:6]


def build(name: str | None = None, **fields: Any) -> StudySpec:
    """A validated study; pydantic's complaint as one sentence."""
    try:
        if name is None:
            draft = StudySpec.model_validate({"name": "draft", **fields})
            name = study_name(draft.model_dump(mode="json", exclude={"name"}))
        return StudySpec.model_validate({"name": name, **fields})
    except ValidationError as error:
        raise explain(error) from None


def results_directory(name: str) -> Path:
    """Where a study goes that was given no place: ``results/NAME`` here.

    A Ray job runs in a temporary copy of the working directory, which Ray deletes; there it is
    ``$ESA_RESULTS``, or ``~/esa-results``.
    """
    if root := os.environ.get("ESA_RESULTS"):
        return Path(root) / name
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    return (Path.home() / "esa-results" if in_job else Path("results")) / name


def show_plan(spec: StudySpec, directory: Path) -> None:
    """Print the resolved study without loading anything."""
    data, out = spec.data, console.out
    out(f"study             {spec.name}")
    out(f"model             {spec.model.source} ({spec.model.dtype})")
    out(
        f"data              {data.source}: {data.calibration_windows} calibration windows a seed, "
        f"{data.evaluation_windows} evaluation windows"
    )
    out(f"scores            {', '.join(f'{s.metric} {s.mode}' for s in spec.scores)}")
    out(f"k                 {', '.join(map(str, spec.topk))}")
    out(f"seeds             {', '.join(map(str, spec.seeds))}")
    if spec.perturbations:
        out(f"perturbations     {', '.join(p.label for p in spec.perturbations)}")
        out(f"groups            {', '.join(spec.groups)}")
    if spec.analyses:
        out(f"analyses          {', '.join(spec.analyses)}")
    for line in plan(spec).lines(spec):
        out(line)
    out(f"results           {directory}")
    for sentence in unavailable(spec):
        out(f"not yet           {sentence}")


def execute(
    spec: StudySpec,
    directory: Path,
    *,
    only_plan: bool = False,
    save_plots: bool = False,
    address: str | None = None,
    concurrency: int | None = None,
    verbose: bool = False,
) -> int:
    """Plan or run a study, write its report, print the answer; returns the exit status."""
    if only_plan:
        show_plan(spec, directory)
        return 0
    from esa_ray.engine.sweep import run_study
    from esa_ray.progress import reporter

    summary = run_study(spec, directory, reporter=reporter(), address=address, concurrency=concurrency, verbose=verbose)
    return finish(summary, save_plots=save_plots)


def finish(summary: Summary, *, save_plots: bool) -> int:
    """Report on a run and say how it ended."""
    show_results(summary.directory, save_plots=save_plots)
    if summary.complete:
        return 0
    failing = summary.statuses.get("error", 0)
    console.print(
        f"[yellow]{summary.missing} of {summary.cells} cells are missing and {failing} failed; "
        "run the same command again to compute just these[/yellow]"
    )
    return 1


@contextmanager
def opened(directory: Path) -> Iterator[Study]:
    """A study for analysis; what it says of an unreadable one becomes our sentence (it may import nothing of ours)."""
    import analysis

    try:
        yield analysis.load(directory)
    except analysis.StudyError as error:
        raise EsaError(str(error)) from None
    except OSError as error:
        raise EsaError(f"{error.filename or directory} can't be written: {error.strerror}") from None


def show_results(directory: Path, *, save_plots: bool = False) -> None:
    """Write the report (and the figures as files), and print the answer."""
    import analysis

    with opened(directory) as study:
        report = analysis.write_report(study)
        analysis.print_summary(study, console)
        if "stability" in study.spec["analyses"]:
            table = directory / "stability.csv"
            analysis.jaccard(study).write_csv(table)
            console.print(f"seeds    {table}", soft_wrap=True)
        if save_plots:
            console.print(f"figures  {analysis.save_figures(study)}", soft_wrap=True)
        console.print(f"report   {report}", soft_wrap=True)


@app.command(epilog="Example: esa run --model SmolLM2-135M-Instruct --topk 50,100 --perturb zero --seeds 1,2,3")
def run(
    model: Annotated[str, typer.Option(help="Hub id, directory, GGUF file or packaged model.")],
    metric: Annotated[str, typer.Option(help="Score(s): grad_x_weight, grad_x_weight_abs, grad_squared, magnitude.")] = "grad_x_weight",
    mode: Annotated[str, typer.Option(help="Pool(s): per_layer, per_tensor, global.")] = "per_layer",
    topk: Annotated[str, typer.Option(help="Weights per pool.")] = "100",
    seeds: Annotated[str, typer.Option(help="Each draws its own calibration windows.")] = "1337",
    max_samples: Annotated[int, typer.Option(help="Calibration windows a seed.")] = 128,
    components: Annotated[str, typer.Option(help="attention, ffn, or q, k, v, o, gate, up, down, router, embed, head, norm.")] = "attention,ffn",
    perturb: Annotated[str, typer.Option(help="Kind(s) of damage: sign_flip, zero, gauss_noise, bit_flip.")] = "",
    perturb_scale: Annotated[str | None, typer.Option(help="λ of sign_flip, σ of gauss_noise.")] = None,
    perturb_prob: Annotated[str | None, typer.Option(help="Probability per bit of bit_flip.")] = None,
    bits: Annotated[str | None, typer.Option(help="Bits that flip: all, sign, exponent, mantissa.")] = None,
    noise_scale: Annotated[str | None, typer.Option(help="Noise is relative to each weight or its tensor.")] = None,
    controls: Annotated[str, typer.Option(help="Control(s): random_k, matched_k, bottom_k.")] = "",
    data: Annotated[str, typer.Option(help="pydoc, a .txt, .jsonl or .parquet file, or hf:NAME.")] = "pydoc",
    text_column: Annotated[str, typer.Option(help="Column of the text in a table.")] = "text",
    split: Annotated[str, typer.Option(help="Split of a hub data set.")] = "train",
    window: Annotated[int, typer.Option(help="Tokens a window.")] = 128,
    eval_windows: Annotated[int, typer.Option(help="Evaluation windows, the same for all seeds.")] = 16,
    batch_size: Annotated[int, typer.Option(help="Evaluation windows a forward pass.")] = 8,
    bos: Annotated[str, typer.Option(help="Begin windows with BOS: auto, always, never.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16, fp16.")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Revision of a hub model.")] = None,
    out_dir: Annotated[Path | None, typer.Option(help="The study's directory.")] = None,
    stability_check: Annotated[bool, typer.Option("--stability-check", help="Needs two seeds; writes their agreement to stability.csv.")] = False,
    weight_analysis: Annotated[bool, typer.Option("--weight-analysis", help="Plan only, so far.")] = False,
    architecture_analysis: Annotated[bool, typer.Option("--architecture-analysis", help="Plan only, so far.")] = False,
    save_plots: Annotated[bool, typer.Option("--save-plots", help="Write figures as SVG and PNG too.")] = False,
    only_plan: Annotated[bool, typer.Option("--plan", help="Show the resolved study and stop.")] = False,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster; default: $RAY_ADDRESS or a local one.")] = None,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="Trials in flight.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Let Ray talk, too.")] = False,
) -> None:  # fmt: skip
    """Run a study: score, select, damage, compare, report. Comma lists make a grid.

    Running the same command again computes only what is missing.
    """
    if controls and not perturb:
        raise EsaError("--controls compares damage; add --perturb, or leave it out")
    analyses = {"stability": stability_check, "weights": weight_analysis, "architecture": architecture_analysis}
    spec = build(
        name=_slug(out_dir.resolve().name) if out_dir else None,
        model={"source": model, "dtype": dtype, "revision": revision},
        data={
            "source": data, "text_column": text_column, "split": split, "window": window,
            "calibration_windows": max_samples, "evaluation_windows": eval_windows,
            "batch_size": batch_size, "bos": bos,
        },
        scores=[
            {"metric": m, "mode": p, "components": _list(components)} for m in _list(metric) for p in _list(mode)
        ],
        topk=_numbers(topk, int, "--topk"),
        seeds=_numbers(seeds, int, "--seeds"),
        perturbations=perturbations(perturb, perturb_scale, perturb_prob, bits, noise_scale),
        groups=["super", *_list(controls)],
        analyses=[name for name, asked in analyses.items() if asked],
    )  # fmt: skip
    raise typer.Exit(
        execute(
            spec, out_dir or results_directory(spec.name), only_plan=only_plan, save_plots=save_plots,
            address=address, concurrency=max_concurrent, verbose=verbose,
        )
    )  # fmt: skip


@app.command(epilog="Example: esa report --out-dir results/quickstart")
def report(
    out_dir: Annotated[Path, typer.Option(help="The study's directory.")],
    save_plots: Annotated[bool, typer.Option("--save-plots", help="Write figures as SVG and PNG too.")] = False,
) -> None:
    """Write the report of a study anew from what is stored."""
    show_results(out_dir, save_plots=save_plots)


@app.command(epilog="Example: esa status --out-dir results/quickstart")
def status(out_dir: Annotated[Path, typer.Option(help="The study's directory.")]) -> None:
    """Say how far a study is, from its store alone."""
    import analysis

    with opened(out_dir) as study:
        counts = analysis.progress(study)
    for name, value in counts.items():
        console.out(f"{name:<18}{value}")
    raise typer.Exit(1 if counts["missing"] or counts["error"] or counts["unranked"] else 0)


def guarded(command: Any) -> None:
    """Run a command; a cause that the user can mend is one sentence and exit status 2."""
    try:
        command()
    except EsaError as error:
        print(f"esa: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("esa: stopped; run the same command again to go on", file=sys.stderr)
        raise SystemExit(1) from None


def main() -> None:
    """Entry point of ``esa``."""
    guarded(lambda: app(prog_name="esa"))
