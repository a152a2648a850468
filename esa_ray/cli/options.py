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
Metric = Annotated[str, typer.Option(help=f"Score(s): {', '.join(SCORES)}; a+b is the rank ensemble of a and b.")]
Mode = Annotated[str, typer.Option(help="Pool(s): per_layer, per_tensor, global.")]
TopK = Annotated[str, typer.Option(help="Weights per pool.")]
Seeds = Annotated[str, typer.Option(help="Each draws its own calibration windows.")]
MaxSamples = Annotated[int, typer.Option(help="Calibration windows a seed.")]
Components = Annotated[
    str,
    typer.Option(
        help="Groups (attention, ffn, mixer), single components (q, k, v, o, gate, up, down, router, embed, head, "
        "norm, mixer_in, …), or tensors by name (* for anything)."
    ),
]
Probes = Annotated[int | None, typer.Option(help=f"Most probes of {' and '.join(PROBED)}.  [default: 8]")]
ProbeError = Annotated[float | None, typer.Option(help="Relative error at which probing ends.  [default: 0.1]")]
MemoryBudget = Annotated[
    str | None, typer.Option(help="What scoring may take beside the weights on any one device, e.g. 4GB.")
]
Fidelity = Annotated[int, typer.Option(help="Damage so many single weights to see what each score is worth.")]
Data = Annotated[
    str,
    typer.Option(
        help="pydoc; a text, .jsonl, .json, .csv, .parquet or .arrow file, compressed or not, a directory of them or a "
        "quoted pattern ('*.txt'); or hf:NAME[:CONFIG]."
    ),
]
TextColumn = Annotated[
    str | None, typer.Option(help="Column of the text in rows.  [default: text; messages with --chat]")
]
Chat = Annotated[
    bool, typer.Option("--chat", help="The column holds messages, which the tokenizer's chat template writes down.")
]
Split = Annotated[str, typer.Option(help="Split of a hub data set.")]
Window = Annotated[int, typer.Option(help="Tokens a window.")]
EvalWindows = Annotated[int, typer.Option(help="Evaluation windows, the same for all seeds.")]
BatchSize = Annotated[int | None, typer.Option(help="Windows a pass; by default as many as hold 1,024 tokens.")]
Bos = Annotated[
    str, typer.Option(help="Begin windows with BOS: auto (with what the tokenizer puts first), always, never.")
]
Dtype = Annotated[str, typer.Option(help="auto, fp32, bf16, fp16.")]
Revision = Annotated[str | None, typer.Option(help="Revision of a hub model.")]
Trust = Annotated[
    str, typer.Option(help="What of the model may run or be unpacked here, by name: remote_code, pickle.")
]
OutDir = Annotated[
    str | None, typer.Option(help="Where results go: a directory, s3://BUCKET/NAME or gs://BUCKET/NAME.")
]
Study = Annotated[str | None, typer.Argument(help="Where the study lies, as --out-dir.")]
StabilityCheck = Annotated[
    bool, typer.Option("--stability-check", help="Needs two seeds; writes their agreement to stability.csv.")
]
WeightAnalysis = Annotated[
    bool, typer.Option("--weight-analysis", help="Also rank by growing numbers of calibration windows.")
]
ArchitectureAnalysis = Annotated[
    bool,
    typer.Option(
        "--architecture-analysis", help="For esa compare: silence each sub-layer and expert, see how experts are used."
    ),
]
SavePlots = Annotated[bool, typer.Option("--save-plots", help="Write figures as SVG and PNG too.")]
OnlyPlan = Annotated[bool, typer.Option("--plan", help="Show the resolved study and stop.")]
On = Annotated[
    str | None,
    typer.Option("--on", metavar="CARD", help="With --plan: time and memory on such a GPU: h100, a100-80, l4, …"),
]
Gpus = Annotated[
    int | None, typer.Option(min=0, help="GPUs to wait for while a cluster scales; 0 computes on CPUs.  [default: all]")
]
Track = Annotated[str, typer.Option(help="Also tell: mlflow, wandb.")]
Address = Annotated[str | None, typer.Option(help="A running Ray cluster; default: $RAY_ADDRESS or a local one.")]
MaxConcurrent = Annotated[int | None, typer.Option(min=1, help="Trials in flight.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Let Ray talk, too.")]

ModelsFile = Annotated[
    str | None, typer.Option(help="Also know the models of this JSON file, in the format of esa_ray/models/known.json.")
]

#: dtype → bytes a weight.
WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2}

Perturb = Annotated[
    str,
    typer.Option(
        help=f"Kind(s) of damage: {', '.join(KINDS)}; or one with its variant and strength, quantize-tensor-3."
    ),
]
PerturbScale = Annotated[str | None, typer.Option(help="Strength(s) of kinds that state none: λ, α, σ, ε, t.")]
PerturbProb = Annotated[str | None, typer.Option(help="Probability per bit of bit_flip.")]
FlippedBits = Annotated[str | None, typer.Option("--bits", help="Bits that flip: all, sign, exponent, mantissa.")]
NoiseScale = Annotated[
    str | None, typer.Option("--noise-scale", help="Noise is relative to each weight or its tensor: weight, tensor.")
]
Controls = Annotated[str, typer.Option(help="Control(s), of weights that aren't 0: random_k, matched_k, bottom_k.")]
Weights = Annotated[
    str,
    typer.Option(
        help="Also damage given weights: .csv, .json, .jsonl or .parquet of tensor,row,col, or a study's directory."
    ),
]
Layers = Annotated[str, typer.Option(help="Also damage the sets in these blocks alone, e.g. 0,5,11.")]
Restore = Annotated[
    str, typer.Option(help="Also damage all but these fractions of the sets, highest ranks and lowest, e.g. 0.1,0.5.")
]
OneByOne = Annotated[
    bool, typer.Option("--one-by-one", help="Also damage each member of lists and global sets by itself.")
]
Repeats = Annotated[int, typer.Option(help="Run every cell so many times; kinds that draw draw anew.")]
Prompts = Annotated[int, typer.Option(help="Continue so many windows, to see whether the text runs into loops.")]
EarlyStop = Annotated[
    float | None, typer.Option(help="Stop a cell once a sequential test at this error rate finds it differs.")
]
