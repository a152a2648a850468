"""The ``esa`` command. Exit status: 0 done, 1 incomplete or failing cells, 2 bad input."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from esa_ray import options
from esa_ray.errors import EsaError
from esa_ray.grid import plan
from esa_ray.options import build, items, numbers, perturbations, scores, size, slug
from esa_ray.spec import StudySpec, unavailable

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
    if spec.fidelity:
        out(f"fidelity          {spec.fidelity} single weights")
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
    memory_budget: int | None = None,
    verbose: bool = False,
) -> int:
    """Plan or run a study, write its report, print the answer; returns the exit status."""
    if only_plan:
        show_plan(spec, directory)
        return 0
    from esa_ray.engine.sweep import run_study
    from esa_ray.progress import reporter

    summary = run_study(
        spec, directory, reporter=reporter(), address=address, concurrency=concurrency, memory_budget=memory_budget,
        verbose=verbose,
    )  # fmt: skip
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
    model: options.Model,
    metric: options.Metric = "grad_x_weight",
    mode: options.Mode = "per_layer",
    topk: options.TopK = "100",
    seeds: options.Seeds = "1337",
    max_samples: options.MaxSamples = 128,
    components: options.Components = "attention,ffn",
    probes: options.Probes = None,
    probe_error: options.ProbeError = None,
    perturb: Annotated[str, typer.Option(help="Kind(s) of damage: sign_flip, zero, gauss_noise, bit_flip.")] = "",
    perturb_scale: Annotated[str | None, typer.Option(help="λ of sign_flip, σ of gauss_noise.")] = None,
    perturb_prob: Annotated[str | None, typer.Option(help="Probability per bit of bit_flip.")] = None,
    bits: Annotated[str | None, typer.Option(help="Bits that flip: all, sign, exponent, mantissa.")] = None,
    noise_scale: Annotated[str | None, typer.Option(help="Noise is relative to each weight or its tensor.")] = None,
    controls: Annotated[str, typer.Option(help="Control(s): random_k, matched_k, bottom_k.")] = "",
    fidelity: options.Fidelity = 0,
    data: options.Data = "pydoc",
    text_column: options.TextColumn = "text",
    split: options.Split = "train",
    window: options.Window = 128,
    eval_windows: options.EvalWindows = 16,
    batch_size: options.BatchSize = 8,
    bos: options.Bos = "auto",
    dtype: options.Dtype = "auto",
    revision: options.Revision = None,
    out_dir: options.OutDir = None,
    stability_check: options.StabilityCheck = False,
    weight_analysis: options.WeightAnalysis = False,
    architecture_analysis: Annotated[bool, typer.Option("--architecture-analysis", help="Plan only, so far.")] = False,
    save_plots: options.SavePlots = False,
    only_plan: options.OnlyPlan = False,
    address: options.Address = None,
    max_concurrent: options.MaxConcurrent = None,
    memory_budget: options.MemoryBudget = None,
    verbose: options.Verbose = False,
) -> None:
    """Run a study: score, select, damage, compare, report. Comma lists make a grid.

    Running the same command again computes only what is missing.
    """
    if controls and not perturb:
        raise EsaError("--controls compares damage; add --perturb, or leave it out")
    analyses = {"stability": stability_check, "weights": weight_analysis, "architecture": architecture_analysis}
    spec = build(
        name=slug(out_dir.resolve().name) if out_dir else None,
        model={"source": model, "dtype": dtype, "revision": revision},
        data={
            "source": data, "text_column": text_column, "split": split, "window": window,
            "calibration_windows": max_samples, "evaluation_windows": eval_windows,
            "batch_size": batch_size, "bos": bos,
        },
        scores=scores(metric, mode, components, probes, probe_error),
        topk=numbers(topk, int, "--topk"),
        seeds=numbers(seeds, int, "--seeds"),
        perturbations=perturbations(perturb, perturb_scale, perturb_prob, bits, noise_scale),
        groups=["super", *items(controls)],
        analyses=[name for name, asked in analyses.items() if asked],
        fidelity=fidelity,
    )  # fmt: skip
    raise typer.Exit(
        execute(
            spec, out_dir or results_directory(spec.name), only_plan=only_plan, save_plots=save_plots,
            address=address, concurrency=max_concurrent, memory_budget=size(memory_budget, "--memory-budget"),
            verbose=verbose,
        )
    )  # fmt: skip


@app.command(epilog="Example: esa score --model SmolLM2-135M-Instruct --metric act_mag,magnitude --max-samples 8")
def score(
    model: options.Model,
    metric: options.Metric = "grad_x_weight",
    mode: options.Mode = "per_layer",
    topk: options.TopK = "100",
    seeds: options.Seeds = "1337",
    max_samples: options.MaxSamples = 128,
    components: options.Components = "attention,ffn",
    probes: options.Probes = None,
    probe_error: options.ProbeError = None,
    fidelity: options.Fidelity = 0,
    data: options.Data = "pydoc",
    text_column: options.TextColumn = "text",
    split: options.Split = "train",
    window: options.Window = 128,
    eval_windows: options.EvalWindows = 16,
    batch_size: options.BatchSize = 8,
    bos: options.Bos = "auto",
    dtype: options.Dtype = "auto",
    revision: options.Revision = None,
    out_dir: options.OutDir = None,
    stability_check: options.StabilityCheck = False,
    weight_analysis: options.WeightAnalysis = False,
    save_plots: options.SavePlots = False,
    only_plan: options.OnlyPlan = False,
    address: options.Address = None,
    memory_budget: options.MemoryBudget = None,
    verbose: options.Verbose = False,
) -> None:
    """Rank weights by any score, without damage to sets: which weights, how stable, how scores agree.

    A study without cells: the same tables and the same report, and safe to repeat.
    """
    run(**locals())


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
    raise typer.Exit(1 if any(counts[k] for k in ("missing", "error", "unranked", "unmeasured")) else 0)


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
