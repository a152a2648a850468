"""The options that commands share: names, types and help (:mod:`esa_ray.cli.parsing` makes a study of their texts)."""

from __future__ import annotations

from typing import Annotated

import typer

from esa_ray.spec import KINDS, PROBED, SCORES

Model = Annotated[
    str,
    typer.Option(
        "--model", "--models", help="Hub id(s), directories, GGUF files or packaged models; several are a study each."
    ),
]
ModelUnlessSpec = Annotated[
    str | None,
    typer.Option(
        "--model",
        "--models",
        help="Hub id(s), directories, GGUF files or packaged models; several are a study each.  [required, or --spec]",
    ),
]
Metric = Annotated[str, typer.Option(help=f"Score(s): {', '.join(SCORES)}; a+b combines the ranks of a and b.")]
Mode = Annotated[str, typer.Option(help="Pool(s) to choose from: per_layer (each block), per_tensor, global.")]
TopK = Annotated[str, typer.Option(help="Weights (or units) to choose per pool.")]
Seeds = Annotated[str, typer.Option(help="Seed(s); each draws its own calibration windows.")]
MaxSamples = Annotated[int, typer.Option(help="Calibration windows per seed.")]
Components = Annotated[
    str,
    typer.Option(
        help="What to score: groups (attention, ffn, mixer), components (q, k, v, o, gate, up, down, router, embed, "
        "head, norm, mixer_in, …), or tensors by name (* stands for anything)."
    ),
]
Unit = Annotated[
    str,
    typer.Option(
        help="What is ranked, damaged and controlled: weight, row or col (of one matrix), neuron (its gate and up rows and "
        "down column), head (its q rows and o columns, and k and v rows that no other head shares)."
    ),
]
Combine = Annotated[
    str,
    typer.Option(
        help="How the scores of a unit's weights make its own: sum, largest, or joint, the score's own form for weights "
        "that are damaged together, such as |Σ g·w| of grad_x_weight."
    ),
]
Probes = Annotated[int | None, typer.Option(help=f"{' and '.join(PROBED)}: random probes at most.  [default: 8]")]
ProbeError = Annotated[
    float | None, typer.Option(help="hutchinson_*: relative error at which probing stops.  [default: 0.1]")
]
MemoryBudget = Annotated[
    str | None, typer.Option(help="Memory that scoring may take on each device, beside the weights, e.g. 4GB.")
]
Fidelity = Annotated[
    int, typer.Option(help="Damage this many single weights, one at a time, to see what each score is worth.")
]
Data = Annotated[
    str,
    typer.Option(
        help="The text: pydoc (Python's documentation); a text, .jsonl, .json, .csv, .parquet or .arrow file, compressed "
        "or not; a directory or quoted pattern ('*.txt') of them; or a hub data set, hf:NAME[:CONFIG]."
    ),
]
TextColumn = Annotated[
    str | None, typer.Option(help="Column that holds the text.  [default: text; messages with --chat]")
]
Chat = Annotated[
    bool,
    typer.Option("--chat", help="The column holds chat messages; the tokenizer's chat template makes text of them."),
]
Split = Annotated[str, typer.Option(help="Split of a hub data set.")]
Window = Annotated[int, typer.Option(help="Tokens per window.")]
EvalWindows = Annotated[int, typer.Option(help="Evaluation windows; all seeds use the same.")]
BatchSize = Annotated[int | None, typer.Option(help="Windows per pass.  [default: as many as hold 1,024 tokens]")]
Bos = Annotated[
    str, typer.Option(help="Begin windows with BOS: auto (with whatever the tokenizer puts first), always, never.")
]
Dtype = Annotated[
    str, typer.Option(help="Dtype of the weights: auto (the file's own; on a CPU fp32), fp32, bf16, fp16.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
Trust = Annotated[
    str, typer.Option(help="What the model's files may do here: remote_code (run their Python), pickle (be unpickled).")
]
OutDir = Annotated[
    str | None, typer.Option(help="Where results lie: a directory, s3://BUCKET/NAME or gs://BUCKET/NAME.")
]
Study = Annotated[str | None, typer.Argument(help="Where the study lies; the same as --out-dir.")]
StabilityCheck = Annotated[
    bool, typer.Option("--stability-check", help="Compare the sets of two seeds or more; writes stability.csv.")
]
WeightAnalysis = Annotated[
    bool, typer.Option("--weight-analysis", help="Also rank by fewer calibration windows, to see how many are enough.")
]
ArchitectureAnalysis = Annotated[
    bool,
    typer.Option(
        "--architecture-analysis",
        help="Silence each sub-layer and expert, and see how experts are used; for esa compare.",
    ),
]
SavePlots = Annotated[bool, typer.Option("--save-plots", help="Also write figures as SVG and PNG.")]
OnlyPlan = Annotated[bool, typer.Option("--plan", help="Show the study and its cost, and stop.")]
On = Annotated[
    str | None,
    typer.Option("--on", metavar="CARD", help="With --plan: time and memory on this GPU: h100, a100-80, l4, …"),
]
Gpus = Annotated[
    int | None,
    typer.Option(
        min=0, help="Wait until the cluster has so many GPUs; 0 computes on CPUs.  [default: all that there are]"
    ),
]
Track = Annotated[str, typer.Option(help="Also log to: mlflow, wandb.")]
Address = Annotated[
    str | None, typer.Option(help="Address of a running Ray cluster.  [default: $RAY_ADDRESS, or Ray on this machine]")
]
MaxConcurrent = Annotated[int | None, typer.Option(min=1, help="Trials at a time.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Also show Ray's own messages.")]

SpecFile = Annotated[
    str | None,
    typer.Option(
        "--spec",
        metavar="FILE",
        help="The study from a .yaml or .json file, in place of the options that describe one; or from a function in a Python file, FILE.py:NAME, which is run.",
    ),
]
SaveSpec = Annotated[
    str | None,
    typer.Option(
        "--save-spec",
        metavar="FILE",
        help="Write the study to a .yaml or .json file, which esa run --spec reads; with --plan, without running it.",
    ),
]

ModelsFile = Annotated[
    str | None, typer.Option(help="JSON file of further models, in the format of esa_ray/models/known.json.")
]

#: dtype → bytes a weight.
WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2}

Perturb = Annotated[
    str,
    typer.Option(help=f"Kind(s) of damage: {', '.join(KINDS)}; add a variant and a strength as in quantize-tensor-3."),
]
PerturbScale = Annotated[str | None, typer.Option(help="Strength(s) of the kinds that state none: λ, α, σ, ε, t.")]
PerturbProb = Annotated[str | None, typer.Option(help="bit_flip: probability per bit; dropout: per weight.")]
FlippedBits = Annotated[
    str | None, typer.Option("--bits", help="bit_flip: bits that may flip: all, sign, exponent, mantissa.")
]
NoiseScale = Annotated[
    str | None,
    typer.Option(
        "--noise-scale", help="gauss_noise, correlated: noise relative to each weight or its tensor: weight, tensor."
    ),
]
Controls = Annotated[
    str,
    typer.Option(
        help="Control set(s), of weights that aren't 0: random_k, matched_k, bottom_k; of units also largest_k."
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        help="Also damage given weights: a .csv, .json, .jsonl or .parquet file of tensor,row,col (one of the two empty: whole lines), or a study's directory."
    ),
]
Layers = Annotated[
    str, typer.Option(help="Also damage one block's part of each set alone, for each of these blocks, e.g. 0,5,11.")
]
Restore = Annotated[
    str,
    typer.Option(
        help="Also damage each set with a fraction left intact, its highest or its lowest ranks, e.g. 0.1,0.5."
    ),
]
OneByOne = Annotated[
    bool, typer.Option("--one-by-one", help="Also damage each weight of lists and of global sets by itself.")
]
Pairs = Annotated[
    int, typer.Option(help="Also damage the highest N members of each set one at a time and by twos, e.g. 4.")
]
Repeats = Annotated[int, typer.Option(help="Run every cell so many times; random kinds of damage draw anew.")]
Prompts = Annotated[
    int, typer.Option(help="Continue so many evaluation windows, to see whether the text runs into loops.")
]
ControlDraws = Annotated[
    int,
    typer.Option(
        help="Sets of each drawn control per seed: with several, a comparison depends less on the luck of one draw."
    ),
]
EarlyStop = Annotated[
    float | None, typer.Option(help="Stop a cell once a sequential test at this error rate finds a difference.")
]
