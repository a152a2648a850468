"""The ``esa`` command. Exit status: 0 done, 1 incomplete or failing cells, 2 bad input."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from esa_ray import options
from esa_ray.errors import EsaError
from esa_ray.grid import plan
from esa_ray.options import items, size, steps, study
from esa_ray.place import Place, below
from esa_ray.spec import DRAWN_CONTROLS, StudySpec, unavailable

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


def results_directory(name: str) -> str:
    """Where a study goes that was given no place: ``results/NAME`` here.

    A Ray job runs in a temporary copy of the working directory, which Ray deletes; there it is
    ``$ESA_RESULTS`` (a directory, or the location of an object store), or ``~/esa-results``.
    """
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    root = os.environ.get("ESA_RESULTS") or (Path.home() / "esa-results" if in_job else Path("results"))
    return below(root, name)


def show_plan(spec: StudySpec, directory: str) -> None:
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
    for given in spec.lists:
        drawn = [group for group in spec.groups if group in DRAWN_CONTROLS]
        out(f"list              {given.name}: {given.k} weights, against {' and '.join(drawn) or 'no control'}")
    if spec.parts or spec.one_by_one:
        words = [part.label for part in spec.parts] + ["one by one"] * spec.one_by_one
        out(f"parts             {', '.join(words)}")
    if spec.repeats > 1:
        out(f"repeats           {spec.repeats}")
    if spec.early_stop is not None:
        out(f"early stop        at error rate {spec.early_stop:g}")
    if spec.search:
        out(f"search            smallest {spec.search.smallest} among these cells with ΔNLL ≥ {spec.search.damage:g}")
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
    studies: Sequence[tuple[StudySpec, str]], *, only_plan: bool = False, save_plots: bool = False, **options: Any
) -> int:
    """Plan or run studies, write their reports, print the answers; returns the exit status.

    ``options`` are those of :class:`esa_ray.engine.sweep.Options`.
    """
    if only_plan:
        for spec, directory in studies:
            show_plan(spec, directory)
        return 0
    from esa_ray.engine.sweep import run_studies
    from esa_ray.progress import reporter

    summaries = run_studies(studies, reporter=reporter(), **options)
    return max(finish(summary, save_plots=save_plots) for summary in summaries)


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
def opened(directory: str | Path) -> Iterator[Study]:
    """A study for analysis; what it says of an unreadable one becomes a sentence of the command."""
    import analysis

    try:
        yield analysis.load(directory)
    except analysis.StudyError as error:
        raise EsaError(str(error)) from None
    except OSError as error:
        raise EsaError(f"{error.filename or directory} can't be written: {error.strerror}") from None


def show_results(directory: str | Path, *, save_plots: bool = False) -> None:
    """Write the report (and the figures as files), and print the answer."""
    import analysis

    with opened(directory) as study:
        report = analysis.write_report(study)
        analysis.print_summary(study, console)
        if "stability" in study.spec["analyses"]:
            study.place.write("stability.csv", analysis.jaccard(study).write_csv().encode())
            console.out(f"seeds    {study.place}/stability.csv")
        if save_plots:
            console.out(f"figures  {analysis.save_figures(study)}")
        console.out(f"report   {report}")


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
    perturb: options.Perturb = "",
    perturb_scale: options.PerturbScale = None,
    perturb_prob: options.PerturbProb = None,
    bits: options.FlippedBits = None,
    noise_scale: options.NoiseScale = None,
    controls: options.Controls = "",
    weights: options.Weights = "",
    layers: options.Layers = "",
    restore: options.Restore = "",
    one_by_one: options.OneByOne = False,
    repeats: options.Repeats = 1,
    prompts: options.Prompts = 0,
    early_stop: options.EarlyStop = None,
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
    trust: options.Trust = "",
    out_dir: options.OutDir = None,
    stability_check: options.StabilityCheck = False,
    weight_analysis: options.WeightAnalysis = False,
    architecture_analysis: Annotated[bool, typer.Option("--architecture-analysis", help="Plan only, so far.")] = False,
    save_plots: options.SavePlots = False,
    only_plan: options.OnlyPlan = False,
    address: options.Address = None,
    gpus: options.Gpus = None,
    track: options.Track = "",
    max_concurrent: options.MaxConcurrent = None,
    memory_budget: options.MemoryBudget = None,
    verbose: options.Verbose = False,
) -> None:
    """Run a study: score, select, damage, compare, report. Comma lists make a grid.

    Running the same command again computes only what is missing.
    """
    launch(locals())


def launch(given: dict[str, Any], **more: Any) -> None:
    """Run the study that the options of a command describe; what a command doesn't offer is as ``run`` has it."""
    defaults = {name: parameter.default for name, parameter in signature(run).parameters.items()}
    o = SimpleNamespace(**defaults | given)
    if o.track and not (o.perturb or more):
        raise EsaError("--track tells of damaged cells; add --perturb, or leave it out")
    sources = options.models(o.model)
    studies = []
    for source, place in zip(sources, options.places(sources, o.out_dir), strict=True):
        spec = study(SimpleNamespace(**vars(o) | {"model": source, "out_dir": place}), **more)
        studies.append((spec, place or results_directory(spec.name)))
    raise typer.Exit(
        execute(
            studies, only_plan=o.only_plan, save_plots=o.save_plots, address=o.address, gpus=o.gpus,
            concurrency=o.max_concurrent, memory_budget=size(o.memory_budget, "--memory-budget"),
            track=tuple(items(o.track)), verbose=o.verbose,
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
    trust: options.Trust = "",
    out_dir: options.OutDir = None,
    stability_check: options.StabilityCheck = False,
    weight_analysis: options.WeightAnalysis = False,
    save_plots: options.SavePlots = False,
    only_plan: options.OnlyPlan = False,
    address: options.Address = None,
    gpus: options.Gpus = None,
    memory_budget: options.MemoryBudget = None,
    verbose: options.Verbose = False,
) -> None:
    """Rank weights by any score, without damage to sets: which weights, how stable, how scores agree.

    A study without cells: the same tables and the same report, and safe to repeat.
    """
    launch(locals())


@app.command(
    epilog="Example: esa perturb --model SmolLM2-135M-Instruct --weights six.csv --perturb zero,sign_flip --one-by-one"
)
def perturb(
    model: options.Model,
    weights: options.Weights = "",
    perturb: options.Perturb = "zero",
    perturb_scale: options.PerturbScale = None,
    perturb_prob: options.PerturbProb = None,
    bits: options.FlippedBits = None,
    noise_scale: options.NoiseScale = None,
    controls: options.Controls = "random_k",
    layers: options.Layers = "",
    restore: options.Restore = "",
    one_by_one: options.OneByOne = False,
    repeats: options.Repeats = 1,
    prompts: options.Prompts = 0,
    early_stop: options.EarlyStop = None,
    metric: Annotated[
        str | None,
        typer.Option(help="Score(s) for the model's own sets.  [default: grad_x_weight; magnitude with --weights]"),
    ] = None,
    mode: Annotated[str | None, typer.Option(help="Pool(s).  [default: per_layer; global with --weights]")] = None,
    topk: Annotated[str | None, typer.Option(help="Weights per pool.  [default: 100; as many as --weights]")] = None,
    seeds: options.Seeds = "1337",
    max_samples: options.MaxSamples = 128,
    components: options.Components = "attention,ffn",
    data: options.Data = "pydoc",
    text_column: options.TextColumn = "text",
    split: options.Split = "train",
    window: options.Window = 128,
    eval_windows: options.EvalWindows = 16,
    batch_size: options.BatchSize = 8,
    bos: options.Bos = "auto",
    dtype: options.Dtype = "auto",
    revision: options.Revision = None,
    trust: options.Trust = "",
    out_dir: options.OutDir = None,
    save_plots: options.SavePlots = False,
    only_plan: options.OnlyPlan = False,
    address: options.Address = None,
    gpus: options.Gpus = None,
    track: options.Track = "",
    max_concurrent: options.MaxConcurrent = None,
    memory_budget: options.MemoryBudget = None,
    verbose: options.Verbose = False,
) -> None:
    """Damage sets of weights, given in a file or chosen by a score, and measure what each way of it costs.

    Given weights need no scoring: beside them stand as many of the largest of the model, and random ones.
    """
    given = locals()
    from esa_ray.weights import read_weights

    sizes = [read_weights(path).k for path in items(weights)]
    defaults = ("magnitude", "global", ",".join(map(str, sizes))) if sizes else ("grad_x_weight", "per_layer", "100")
    names = ("metric", "mode", "topk")
    launch(given | {name: given[name] or default for name, default in zip(names, defaults, strict=True)})


@app.command(
    epilog="Example: esa search --model SmolLM2-135M-Instruct --damage 1 --perturb zero --mode global --topk 1:512"
)
def search(
    model: options.Model,
    damage: Annotated[float, typer.Option(help="ΔNLL to reach, nats per token, mean over seeds.")],
    smallest: Annotated[str, typer.Option(help="What to make small: k, strength.")] = "k",
    trials: Annotated[int, typer.Option(min=1, help="Candidates that Optuna proposes first.")] = 12,
    topk: Annotated[str, typer.Option(help="Weights per pool: a comma list, or FROM:TO.")] = "1:512",
    perturb: options.Perturb = "zero",
    perturb_scale: options.PerturbScale = None,
    perturb_prob: options.PerturbProb = None,
    bits: options.FlippedBits = None,
    noise_scale: options.NoiseScale = None,
    metric: options.Metric = "grad_x_weight",
    mode: options.Mode = "per_layer",
    seeds: options.Seeds = "1337",
    max_samples: options.MaxSamples = 128,
    components: options.Components = "attention,ffn",
    data: options.Data = "pydoc",
    text_column: options.TextColumn = "text",
    split: options.Split = "train",
    window: options.Window = 128,
    eval_windows: options.EvalWindows = 16,
    batch_size: options.BatchSize = 8,
    bos: options.Bos = "auto",
    dtype: options.Dtype = "auto",
    revision: options.Revision = None,
    trust: options.Trust = "",
    out_dir: options.OutDir = None,
    only_plan: options.OnlyPlan = False,
    address: options.Address = None,
    gpus: options.Gpus = None,
    track: options.Track = "",
    max_concurrent: options.MaxConcurrent = None,
    memory_budget: options.MemoryBudget = None,
    verbose: options.Verbose = False,
) -> None:
    """Find the smallest set, or the smallest strength, whose damage reaches a given loss (needs optuna).

    The candidates are a ladder; unless the smallest will do, the one below the answer is measured too, and does too
    little.
    """
    wanted = {"damage": damage, "smallest": smallest, "trials": trials}
    launch(locals() | {"topk": steps(topk)}, search=wanted)


@app.command(epilog="Example: esa report results/quickstart")
def report(
    study: options.Study = None,
    out_dir: options.OutDir = None,
    save_plots: options.SavePlots = False,
) -> None:
    """Write the report of a study anew from what is stored."""
    for place in studies_at(study or out_dir):
        show_results(place, save_plots=save_plots)


@app.command(epilog="Example: esa status results/quickstart")
def status(study: options.Study = None, out_dir: options.OutDir = None) -> None:
    """Say how far a study is, and who computes it, from its store alone."""
    raise typer.Exit(max(show_status(place) for place in studies_at(study or out_dir)))


def studies_at(location: str | None) -> list[str]:
    """The study that lies at a location, or those of several models that lie below it."""
    if location is None:
        raise EsaError("which study? Give its directory, as in: esa status results/quickstart")
    place = Place(location)
    if place.exists("study.json"):
        return [location]
    return [below(location, name) for name in place.names() if place.exists(f"{name}/study.json")] or [location]


def show_status(location: str) -> int:
    """Print how far a study is; returns the exit status."""
    import analysis
    from esa_ray.lease import holder

    with opened(location) as study:
        counts, pace = analysis.progress(study), analysis.pace(study)
    console.out(f"{'study':<18}{study.place}")
    for name, value in counts.items():
        console.out(f"{name:<18}{value}")
    if working := holder(study.place):
        gone = ", which is gone: run the same command again" if working.gone else ""
        console.out(f"{'computed by':<18}{working}{gone}")
    for name, fact in pace.items():
        if fact is not None:
            console.out(f"{name:<18}{fact}")
    return 1 if any(counts[k] for k in ("missing", "error", "unranked", "unmeasured")) else 0


@app.command(epilog="Example: esa doctor --out-dir results")
def doctor(
    out_dir: Annotated[str, typer.Option(help="Where results would go.")] = "results",
) -> None:
    """Say what this machine can run; exit status 1 if something has to be mended first."""
    from esa_ray.doctor import doctor as examine

    raise typer.Exit(examine(out_dir, console))


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
