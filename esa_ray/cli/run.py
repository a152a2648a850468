"""Commands that compute: ``run``, ``score``, ``perturb``, ``baseline``, ``search``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from esa_ray import host
from esa_ray.cli import options, parsing, spec_files
from esa_ray.cli.app import app, console
from esa_ray.cli.asked import check_alone, described, read_studies
from esa_ray.cli.parsing import items, size, steps
from esa_ray.cli.show import show_plan, show_results
from esa_ray.cli.wording import check_given
from esa_ray.errors import EsaError
from esa_ray.spec import PROTOCOLS, StudySpec

if TYPE_CHECKING:
    from esa_ray.engine.sweep import Summary
    from esa_ray.engine.work import Counts


def execute(
    studies: Sequence[tuple[StudySpec, str]], *, only_plan: bool = False, on: str | None = None,
    save_plots: bool = False, **options: Any,
) -> int:  # fmt: skip
    """Plan or run studies, write their reports, print the answers; returns the exit status.

    ``options`` are those of :class:`esa_ray.engine.sweep.Options`.
    """
    if only_plan:
        for spec, directory in studies:
            show_plan(spec, directory, on)
        return 0
    host.ready()
    from esa_ray.engine.sweep import run_studies
    from esa_ray.progress import reporter

    summaries = run_studies(studies, reporter=reporter(), **options)
    brief, worst = len(summaries) > MANY, 0
    for (spec, _), summary in zip(studies, summaries, strict=True):
        if len(studies) > 1 and not brief:
            console.print(f"\n[bold]{escape(spec.model.source)}[/bold]", highlight=False)
        worst = max(worst, finish(summary, save_plots=save_plots, brief=brief))
    return worst


#: Studies of one command beyond which each is a line in the terminal; their reports are written all the same.
MANY = 3


def finish(summary: Summary, *, save_plots: bool, brief: bool = False) -> int:
    """Report on a run and say how it ended."""
    show_results(summary.directory, save_plots=save_plots, brief=brief)
    if summary.complete:
        return 0
    for name, counts in summary.grids.items():
        for sentence in _unfinished(name, counts):
            console.print(f"[yellow]{sentence}[/yellow]")
    for sentence in summary.failures:
        console.print(f"[yellow]{escape(sentence)}[/yellow]", soft_wrap=True)
    return 1


def _unfinished(name: str, counts: Counts) -> Iterator[str]:
    """What of a grid has no result, and what to do: errors of what was asked for come back unless that changes."""
    failed = counts.failed - counts.refused
    if counts.missing or failed:
        yield (
            f"{counts.missing} of {counts.asked} {name} are missing and {failed} failed; "
            "run the same command again to compute just these"
        )
    if counts.refused:
        yield (
            f"{counts.refused} of {counts.asked} {name} can't be done as asked for; "
            "change what their errors say, or leave them out"
        )


@app.command(
    epilog="Example: esa run --model SmolLM2-135M-Instruct --topk 50,100 --perturb zero --seeds 1,2,3\n\n"
    "Example: esa run --model meta-llama/Llama-3.1-8B --perturb zero --plan --on h100\n\n"
    "Example: esa run --model gpt2 --perturb zero --plan --save-spec study.yaml; esa run --spec study.yaml"
)
def run(
    context: typer.Context,
    model: options.ModelUnlessSpec = None,
    metric: options.Metric = "grad_x_weight",
    mode: options.Mode = "per_layer",
    topk: options.TopK = "100",
    seeds: options.Seeds = "1337",
    max_samples: options.MaxSamples = 128,
    components: options.Components = "attention,ffn,mixer",
    unit: options.Unit = "weight",
    combine: options.Combine = "joint",
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
    pairs: options.Pairs = 0,
    repeats: options.Repeats = 1,
    control_draws: options.ControlDraws = 1,
    prompts: options.Prompts = 0,
    early_stop: options.EarlyStop = None,
    fidelity: options.Fidelity = 0,
    data: options.Data = "pydoc",
    text_column: options.TextColumn = None,
    chat: options.Chat = False,
    split: options.Split = "train",
    window: options.Window = 128,
    eval_windows: options.EvalWindows = 16,
    batch_size: options.BatchSize = None,
    bos: options.Bos = "auto",
    dtype: options.Dtype = "auto",
    revision: options.Revision = None,
    trust: options.Trust = "",
    out_dir: options.OutDir = None,
    stability_check: options.StabilityCheck = False,
    weight_analysis: options.WeightAnalysis = False,
    architecture_analysis: options.ArchitectureAnalysis = False,
    save_plots: options.SavePlots = False,
    only_plan: options.OnlyPlan = False,
    on: options.On = None,
    address: options.Address = None,
    gpus: options.Gpus = None,
    track: options.Track = "",
    max_concurrent: options.MaxConcurrent = None,
    memory_budget: options.MemoryBudget = None,
    verbose: options.Verbose = False,
    spec: options.SpecFile = None,
    save_spec: options.SaveSpec = None,
) -> None:
    """Run a study: score, select, damage, compare, report. Comma lists make a grid.

    Running the same command again computes only what is missing.
    """
    if spec is not None:
        check_alone(context, spec)
    launch(locals())


def launch(given: dict[str, Any], *, then: Callable[[list[str]], int] | None = None, **more: Any) -> None:
    """Run the study that the options of a command describe; what a command doesn't offer is as ``run`` has it.

    ``then`` goes on with the places of studies that have run, and gives an exit status.
    """
    defaults = {name: parameter.default for name, parameter in signature(run).parameters.items()}
    check_given(given, defaults)
    o = SimpleNamespace(**defaults | given)
    if o.on and not o.only_plan:
        raise EsaError("--on foresees what a study would take on a card; add --plan, or leave it out")
    studies = read_studies(o) if o.spec else described(o, **more)
    if o.track and not any(spec.perturbations or spec.beyond_cells for spec, _ in studies):
        raise EsaError("--track tells of damaged cells; add --perturb, or leave it out")
    if o.save_spec:
        spec_files.write(o.save_spec, [spec for spec, _ in studies], sys.argv[1:])
    status = execute(
        studies, only_plan=o.only_plan, on=o.on, save_plots=o.save_plots, address=o.address, gpus=o.gpus,
        concurrency=o.max_concurrent, memory_budget=size(o.memory_budget, "--memory-budget"),
        track=tuple(items(o.track)), verbose=o.verbose,
    )  # fmt: skip
    if then and not o.only_plan:
        status = max(status, then([place for _, place in studies]))
    raise typer.Exit(status)


@app.command(epilog="Example: esa score --model SmolLM2-135M-Instruct --metric act_mag,magnitude --max-samples 8")
def score(
    model: options.Model,
    metric: options.Metric = "grad_x_weight",
    mode: options.Mode = "per_layer",
    topk: options.TopK = "100",
    seeds: options.Seeds = "1337",
    max_samples: options.MaxSamples = 128,
    components: options.Components = "attention,ffn,mixer",
    unit: options.Unit = "weight",
    combine: options.Combine = "joint",
    probes: options.Probes = None,
    probe_error: options.ProbeError = None,
    fidelity: options.Fidelity = 0,
    data: options.Data = "pydoc",
    text_column: options.TextColumn = None,
    chat: options.Chat = False,
    split: options.Split = "train",
    window: options.Window = 128,
    eval_windows: options.EvalWindows = 16,
    batch_size: options.BatchSize = None,
    bos: options.Bos = "auto",
    dtype: options.Dtype = "auto",
    revision: options.Revision = None,
    trust: options.Trust = "",
    out_dir: options.OutDir = None,
    stability_check: options.StabilityCheck = False,
    weight_analysis: options.WeightAnalysis = False,
    architecture_analysis: options.ArchitectureAnalysis = False,
    save_plots: options.SavePlots = False,
    only_plan: options.OnlyPlan = False,
    on: options.On = None,
    address: options.Address = None,
    gpus: options.Gpus = None,
    memory_budget: options.MemoryBudget = None,
    verbose: options.Verbose = False,
) -> None:
    """Rank weights by any score. No set is damaged: which weights, how stable, how scores agree.

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
    pairs: options.Pairs = 0,
    repeats: options.Repeats = 1,
    control_draws: options.ControlDraws = 1,
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
    components: options.Components = "attention,ffn,mixer",
    unit: Annotated[
        str | None,
        typer.Option(help="What the model's own sets are of, as of esa run.  [default: weight; as --weights]"),
    ] = None,
    combine: options.Combine = "joint",
    data: options.Data = "pydoc",
    text_column: options.TextColumn = None,
    chat: options.Chat = False,
    split: options.Split = "train",
    window: options.Window = 128,
    eval_windows: options.EvalWindows = 16,
    batch_size: options.BatchSize = None,
    bos: options.Bos = "auto",
    dtype: options.Dtype = "auto",
    revision: options.Revision = None,
    trust: options.Trust = "",
    out_dir: options.OutDir = None,
    save_plots: options.SavePlots = False,
    only_plan: options.OnlyPlan = False,
    on: options.On = None,
    address: options.Address = None,
    gpus: options.Gpus = None,
    track: options.Track = "",
    max_concurrent: options.MaxConcurrent = None,
    memory_budget: options.MemoryBudget = None,
    verbose: options.Verbose = False,
) -> None:
    """Damage sets of weights in many ways. They are given in a file, or chosen by a score.

    Given weights need no scoring: beside them stand as many of the largest of the model, and random ones.
    """
    given = locals()
    from esa_ray.weights import read_weights

    lists = [read_weights(path) for path in items(weights)]
    sizes, kinds = ",".join(str(given.k) for given in lists), {given.unit for given in lists}
    unsaid = ("magnitude", "global", sizes) if lists else ("grad_x_weight", "per_layer", "100")
    defaults = (*unsaid, kinds.pop() if len(kinds) == 1 else "weight")
    names = ("metric", "mode", "topk", "unit")
    launch(given | {name: given[name] or default for name, default in zip(names, defaults, strict=True)})


@app.command(epilog="Example: esa baseline --models SmolLM2-135M-Instruct,zoo:llama-1m --protocol smoke,standard")
def baseline(
    model: Annotated[str, typer.Option("--model", "--models", help="As of esa run; several are a study each.")],
    protocol: Annotated[str, typer.Option(help=f"Protocol(s): {', '.join(PROTOCOLS)}.")] = "standard",
    seeds: Annotated[str, typer.Option(help="Each draws its own windows.")] = "1337,123,999",
    windows: Annotated[int | None, typer.Option(help="Windows a seed and context.  [default: the protocol's]")] = None,
    contexts: Annotated[str | None, typer.Option(help="Tokens a window.  [default: the protocol's]")] = None,
    tasks: Annotated[
        str, typer.Option(help="Zero-shot tasks of the extended protocol: lm-eval's names, or YAML files of your own.")
    ] = "",
    limit: Annotated[int | None, typer.Option(help="Examples of each task.  [default: all]")] = None,
    data: options.Data = "pydoc",
    text_column: options.TextColumn = None,
    chat: options.Chat = False,
    split: options.Split = "train",
    batch_size: options.BatchSize = None,
    bos: options.Bos = "auto",
    dtype: options.Dtype = "auto",
    revision: options.Revision = None,
    trust: options.Trust = "",
    out_dir: options.OutDir = None,
    save_plots: options.SavePlots = False,
    only_plan: options.OnlyPlan = False,
    address: options.Address = None,
    gpus: options.Gpus = None,
    verbose: options.Verbose = False,
) -> None:
    """Measure the intact model. Perplexity, accuracy, calibration, spread over seeds and contexts, NaN, speed, memory.

    A study without damage, whose one score is the weights' own magnitude: the same tables, and safe to repeat.
    """
    given = locals()
    asked = parsing.protocols(protocol, windows, contexts, tasks, limit)
    fixed = {"metric": "magnitude", "mode": "global", "topk": "100", "max_samples": 2, "eval_windows": 8}
    launch(given | fixed, protocols=asked)


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
    components: options.Components = "attention,ffn,mixer",
    data: options.Data = "pydoc",
    text_column: options.TextColumn = None,
    chat: options.Chat = False,
    split: options.Split = "train",
    window: options.Window = 128,
    eval_windows: options.EvalWindows = 16,
    batch_size: options.BatchSize = None,
    bos: options.Bos = "auto",
    dtype: options.Dtype = "auto",
    revision: options.Revision = None,
    trust: options.Trust = "",
    out_dir: options.OutDir = None,
    only_plan: options.OnlyPlan = False,
    on: options.On = None,
    address: options.Address = None,
    gpus: options.Gpus = None,
    track: options.Track = "",
    max_concurrent: options.MaxConcurrent = None,
    memory_budget: options.MemoryBudget = None,
    verbose: options.Verbose = False,
) -> None:
    """Find how little damage is enough. The smallest set, or strength, that raises the loss by so much (needs optuna).

    The candidates are a ladder; unless the smallest will do, the one below the answer is measured too, and does too
    little.
    """
    wanted = {"damage": damage, "smallest": smallest, "trials": trials}
    launch(locals() | {"topk": steps(topk)}, search=wanted)
