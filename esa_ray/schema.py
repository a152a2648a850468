"""The Arrow schemas of the store: the meaning and unit of every column.

Columns may be added; those here keep their names and meanings. ``SCHEMA_VERSION`` is written into every
file.
"""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = "1"

#: The probabilities of ``score_stats.quantiles``.
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 0.9999)

#: A cell's outcome. ``diverged``: the loss was NaN or infinite, which is a result; ``empty``: the set, or
#: its part, holds no weights that the damage can ever change, so there was nothing to do; ``error``: no result.
STATUSES = ("ok", "diverged", "empty", "error")

_TEXT, _INT, _FLOAT = pa.string(), pa.int64(), pa.float64()


def _schema(**columns: tuple[pa.DataType, str]) -> pa.Schema:
    fields = [pa.field(name, kind, metadata={"doc": doc}) for name, (kind, doc) in columns.items()]
    return pa.schema(fields, metadata={"esa_ray.schema": SCHEMA_VERSION})


_WHAT = {
    "study": (_TEXT, "name of the study"),
    "model": (_TEXT, "name of the model"),
    "dtype": (_TEXT, "dtype of the weights: fp32, bf16, fp16"),
    "data": (_TEXT, "the text source"),
}
_OUTCOME = {
    "status": (
        _TEXT,
        "ok, diverged (NaN or infinite loss), empty (no weights that the damage can change) or error (no result)",
    ),
    "error": (_TEXT, "why there is no result; null otherwise"),
    "nll": (pa.list_(_FLOAT), "summed next-token NLL of each evaluation window, nats"),
    "tokens": (pa.list_(_INT), "scored tokens of each evaluation window"),
    "hits": (pa.list_(_INT), "tokens of each evaluation window whose top-1 prediction is right"),
    "kl": (
        pa.list_(_FLOAT),
        "KL divergence of the damaged from the intact model's next-token distribution, KL(intact ‖ damaged), summed "
        "over each evaluation window's scored tokens, nats; null for the intact model",
    ),
    "loops": (
        pa.list_(_INT),
        "for each prompt whether its greedy continuation ends in a loop (1) or not (0); null where none was continued",
    ),
    "seconds": (_FLOAT, "wall time of edit, evaluation and restoration, seconds"),
    "device": (_TEXT, "where it was computed: the GPUs that the model lay on, or the CPU, and the host"),
    "worker": (_TEXT, "the process that computed it, as host/pid; null in studies of older versions"),
    "version": (
        _TEXT,
        "version of esa-ray, torch and transformers; on GPUs of CUDA and the driver, and how they round and fold",
    ),
    "created": (pa.timestamp("us", tz="UTC"), "when the row was written"),
}
#: Hardware rounds in ways of its own: an effect of 0.001 nats is measured against the same.
_INTACT = {
    "intact_nll": (
        pa.list_(_FLOAT),
        "the intact model's summed NLL of each evaluation window where this row was computed, nats; null where it is "
        "the stored baseline's to the bit",
    ),
}
_WEIGHT = {
    "tensor": (_TEXT, "name of the parameter"),
    "layer": (_INT, "transformer block, from 0; null outside blocks"),
    "component": (_TEXT, "q, k, v, o, gate, up, down, router, embed, head or norm"),
    "expert": (_INT, "expert, or head that has a matrix of its own, from 0; null where there is none"),
}

CELLS = _schema(
    cell_id=(_TEXT, "identity of the cell: 16 hex digits"),
    **_WHAT,
    metric=(_TEXT, "score that chose the weights, or listed: they were given"),
    mode=(_TEXT, "pool they were chosen from: per_layer, per_tensor or global; the list's name for listed ones"),
    k=(_INT, "weights chosen per pool; for listed ones, how many the list names"),
    seed=(_INT, "seed of the calibration windows and of the perturbation"),
    group=(_TEXT, "super, listed, random_k, matched_k, largest_k or bottom_k"),
    part=(
        _TEXT,
        "null: the whole set; layer: its weights in one block; only: one member alone; all_but_first, all_but_last: "
        "all but the highest or lowest ranks of each pool, which are left intact; single, pair: one member or two, by "
        "their places in the whole set",
    ),
    part_value=(_FLOAT, "the block from 0, the member from 1, or the fraction left intact; null for whole sets"),
    part_other=(_INT, "of a pair the second member, from 1; null otherwise"),
    unit=(_TEXT, "what the set's members are: weight, row, col, neuron or head; null in studies of older versions"),
    repeat=(_INT, "which repetition of the same cell, from 0"),
    depth=(_INT, "largest k of the ranking that a control was drawn for; null for groups that aren't drawn"),
    control_draw=(_INT, "which of the seed's sets of a drawn control, from 0; null for groups that aren't drawn"),
    perturbation=(_TEXT, "kind of damage"),
    strength=(_FLOAT, "its strength; null where the kind has none"),
    variant=(
        _TEXT,
        "what else names the kind: bit class, what noise is relative to, what shares a draw, grid of quantization, end "
        "of a path; null where the kind has no variants",
    ),
    n_weights=(_INT, "weights addressed"),
    n_changed=(
        _INT,
        "weights whose value changed; of an ok cell 0 where a draw or the rounding happened to change none: then its "
        "outcome is the intact model's, to the bit",
    ),
    delta_norm=(_FLOAT, "Euclidean norm of the change over all weights, in units of weight"),
    **_OUTCOME,
    **_INTACT,
    windows=(_INT, "evaluation windows used: all of the study's, unless the cell was stopped early"),
    resumed_at=(_INT, "block from which the forward pass was resumed; null for full forward passes, and for none"),
    restored=(pa.bool_(), "the weights were bit-identical to the originals afterwards"),
)

BASELINES = _schema(**_WHAT, **_OUTCOME)

RANKINGS = _schema(
    model=(_TEXT, "name of the model"),
    metric=(_TEXT, "score that ranks"),
    mode=(_TEXT, "pool: per_layer, per_tensor or global"),
    seed=(_INT, "seed of the calibration windows"),
    group=(_TEXT, "super or listed, or the control drawn for it"),
    control_draw=(_INT, "which of the seed's sets of a drawn control, from 0; null for groups that aren't drawn"),
    rank=(_INT, "place in the pool, from 1, the most sensitive (bottom_k: the least sensitive)"),
    **_WEIGHT,
    row=(_INT, "output index, whatever the storage order; null of columns, neurons and heads"),
    col=(_INT, "input index, whatever the storage order; null of rows, neurons and heads"),
    flat=(_INT, "index into the tensor's memory; of a unit that of its first weight there"),
    unit=(
        _TEXT,
        "what is ranked: weight, row, col, neuron or head, whose tensor and component are its first matrix's; null in "
        "studies of older versions, which ranked weights",
    ),
    number=(
        _INT,
        "which neuron or head of its block (or expert), row or column of its component, from 0; null of weights",
    ),
    members=(_INT, "how many weights it is; null in studies of older versions"),
    score=(_FLOAT, "its score"),
    std_error=(_FLOAT, "standard error of its score over probes; null where a score is not an estimate"),
    gradient=(_FLOAT, "derivative of the calibration loss, nats per token and unit of weight; null if not gathered"),
    gradients=(
        pa.list_(pa.float32()),
        "of a unit the same at each weight, tensor by tensor in the order of memory; null where no damage needs it",
    ),
    weight=(_FLOAT, "its value before any damage; of a unit the Euclidean norm of its weights"),
)

SCORE_STATS = _schema(
    model=(_TEXT, "name of the model"),
    metric=(_TEXT, "score"),
    mode=(_TEXT, "pool of the ranking; only an ensemble's scores depend on it"),
    seed=(_INT, "seed of the calibration windows"),
    **_WEIGHT,
    n=(_INT, "weights in the tensor (or in the part of it that is this component or expert)"),
    mean=(_FLOAT, "mean score"),
    std=(_FLOAT, "standard deviation of the score"),
    min=(_FLOAT, "smallest score"),
    max=(_FLOAT, "largest score"),
    quantiles=(pa.list_(_FLOAT), "score at the probabilities schema.QUANTILES"),
    top1pct_over_median=(_FLOAT, "mean of the top 1% of scores over the median score; null if the median is 0"),
    gini=(_FLOAT, "Gini coefficient of the scores: 0 all equal, 1 all in one weight"),
    top1pct_mass=(_FLOAT, "share of the sum of scores that the top 1% hold"),
    half_mass_fraction=(_FLOAT, "smallest fraction of the weights that holds half of the sum of scores"),
    tail_index=(_FLOAT, "Hill's tail index of the top 1%; the smaller, the heavier the tail"),
    probes=(_INT, "probes that an estimated score took; null otherwise"),
    relative_error=(
        _FLOAT,
        "estimated scores: norm of the standard errors over that of the scores, its noise taken out; null if all is "
        "noise, and for scores that are no estimates",
    ),
    probe_error=(_FLOAT, "relative error over all weights when probing ended; null for scores that are no estimates"),
)

SAMPLE_SIZES = _schema(
    model=(_TEXT, "name of the model"),
    metric=(_TEXT, "score that ranks"),
    mode=(_TEXT, "pool: per_layer, per_tensor or global"),
    seed=(_INT, "seed of the calibration windows"),
    windows=(_INT, "how many of the seed's calibration windows the score is made of"),
    rank=(_INT, "place in the pool, from 1"),
    **_WEIGHT,
    flat=(_INT, "index into the tensor's memory"),
    score=(_FLOAT, "its score"),
)

_SAMPLE = {
    "model": (_TEXT, "name of the model"),
    "seed": (_INT, "seed of the calibration windows that the scores and predictions are made of"),
    "metric": (_TEXT, "score by which the sample is stratified"),
    "stratum": (_TEXT, "range of score quantiles within the component, e.g. 0.90-0.99"),
    "inclusion": (_FLOAT, "probability with which a weight of this stratum is in the sample"),
    **_WEIGHT,
    "row": (_INT, "output index, whatever the storage order"),
    "col": (_INT, "input index, whatever the storage order"),
    "flat": (_INT, "index into the tensor's memory"),
    "weight": (_FLOAT, "its value before any damage"),
    "metrics": (pa.list_(_TEXT), "all scores that could be made of what the study gathered"),
    "scores": (pa.list_(_FLOAT), "its score by each of them"),
    "gradient": (_FLOAT, "derivative of the calibration loss, nats per token and unit of weight; null if unknown"),
    "curvature": (_FLOAT, "second derivative (estimated), nats per token and unit of weight²; null if unknown"),
}
SAMPLES = _schema(**_SAMPLE)

FIDELITY = _schema(
    **_SAMPLE,
    edit=(
        _TEXT,
        "what was done to this one weight: zero, sign_flip, or null_edit (nothing but its rounding: the noise)",
    ),
    delta_nll=(pa.list_(_FLOAT), "change of the summed NLL of each evaluation window, nats"),
    tokens=(pa.list_(_INT), "scored tokens of each evaluation window"),
    first_order=(_FLOAT, "predicted change g·δ, nats per token; null if unknown"),
    second_order=(_FLOAT, "predicted change g·δ + h·δ²/2, nats per token; null if unknown"),
)

PROTOCOLS = _schema(
    **_WHAT,
    protocol=(_TEXT, "smoke, standard or extended"),
    context=(_INT, "tokens a window, BOS included"),
    seed=(_INT, "seed that drew the windows"),
    **{k: v for k, v in _OUTCOME.items() if k not in ("kl", "loops")},
    counts=(pa.list_(_INT), "scored tokens by the probability of the first choice, in 15 bins of equal width"),
    sums=(pa.list_(_FLOAT), "sum of those probabilities in each bin"),
    right=(pa.list_(_INT), "tokens of each bin whose first choice is right"),
    nonfinite=(_INT, "scored tokens with NaN or infinite logits"),
    tokens_per_second=(_FLOAT, "tokens measured a second: forward passes, loss and confidence; loading left out"),
    peak_memory=(
        _INT,
        "most memory so far: of the GPU since the measurement began, of a CPU process since its start; bytes",
    ),
)

TASKS = _schema(
    **_WHAT,
    protocol=(_TEXT, "smoke, standard or extended"),
    task=(_TEXT, "name of the zero-shot task"),
    task_metric=(_TEXT, "what lm-eval measures of it, as acc or acc_norm"),
    value=(_FLOAT, "the metric"),
    std_error=(_FLOAT, "its standard error over examples; null if lm-eval has none"),
    examples=(_INT, "examples that were asked"),
    task_version=(_TEXT, "version of the task"),
    harness=(_TEXT, "version of lm-eval"),
    seconds=(_FLOAT, "wall time, seconds"),
    created=(pa.timestamp("us", tz="UTC"), "when the row was written"),
)

ABLATIONS = _schema(
    model=(_TEXT, "name of the model"),
    dtype=(_TEXT, "dtype of the weights: fp32, bf16, fp16"),
    layer=(_INT, "transformer block, from 0"),
    part=(_TEXT, "the sub-layer that is silenced: attention, mixer, ffn, or expert (one expert of the ffn)"),
    expert=(_INT, "expert, from 0; null for whole sub-layers"),
    positions=(pa.list_(_INT), "positions of each evaluation window that are routed to the expert; null if unknown"),
    routed=(pa.list_(_FLOAT), "sum of their routing weights; null if unknown"),
    information=(
        _FLOAT,
        "how special the expert's tokens are: D_KL(p(token | expert) ‖ p(token)) less its bias, nats; null if unknown",
    ),
    peak=(_FLOAT, "largest absolute output of the sub-layer's last matrix in the intact model"),
    **_OUTCOME,
    **_INTACT,
)

_REFUSED = (
    pa.bool_(),
    "of an error: whether it lies in what was asked for, so that the same command can't mend it, and its words say "
    "what to change; null otherwise",
)
COMPRESSIONS = _schema(
    compression_id=(_TEXT, "identity of the compression: 16 hex digits; rows of several texts share it"),
    **_WHAT,
    kind=(_TEXT, "prune, quantize, or dense: the model as it is"),
    label=(_TEXT, "the compression in short, as files name it"),
    score=(_TEXT, "prune: the score whose smallest weights leave; null otherwise"),
    group=(_TEXT, "prune: what weights compete within: row, tensor, block or model"),
    pattern=(_TEXT, "prune: unstructured, N:M (N of every M contiguous inputs are zero), row, col, neuron or kv"),
    sparsity=(_FLOAT, "prune: the share of weights that was asked to leave"),
    allocation=(_TEXT, "prune: how the sparsity is shared out over blocks: uniform, owl or damage"),
    update=(_TEXT, "prune: what is done to the weights that stay: none, sparsegpt or refit"),
    damping=(
        _FLOAT,
        "prune: what is added to a Hessian's diagonal, as a share of its mean; no part where none is used",
    ),
    sequential=(pa.bool_(), "prune: activations came out of the blocks pruned so far, not out of the intact model"),
    bits=(_INT, "quantize: bits of a weight that isn't kept"),
    group_size=(_INT, "quantize: contiguous inputs that share a scale"),
    kept=(_FLOAT, "quantize: the share of weights that was asked to stay in 16 bits"),
    keep_by=(_TEXT, "quantize: the rule that chose them; null where none are kept"),
    bits_per_weight=(_FLOAT, "bits that a weight of the compressed tensors takes, scales and indices included"),
    components=(_TEXT, "what was compressed, in the fewest names"),
    seed=(_INT, "seed of the calibration windows; null for dense rows"),
    text=(_TEXT, "the text whose windows were evaluated"),
    domain=(_TEXT, "in: the text that the compression was calibrated on; out: another"),
    n_weights=(_INT, "weights of the compressed tensors"),
    n_pruned=(_INT, "weights that are zero by the mask"),
    n_kept=(_INT, "weights held out in 16 bits"),
    n_changed=(_INT, "weights whose value changed"),
    delta_norm=(_FLOAT, "Euclidean norm of the change over all weights, in units of weight"),
    block_sparsity=(pa.list_(_FLOAT), "share of each block's weights that left, first block first"),
    block_error=(
        pa.list_(_FLOAT),
        "each block's relative error: ΣΔᵢHΔᵢᵀ over ΣwᵢHwᵢᵀ of its tensors with H of the inputs that they saw",
    ),
    **{k: v for k, v in _OUTCOME.items() if k not in ("kl", "loops")},
    intact_nll=(
        pa.list_(_FLOAT),
        "the dense model's summed NLL of each evaluation window where this row was computed, nats, as hardware rounds "
        "in ways of its own; null of the dense model, and in studies of older versions",
    ),
    blind=(_INT, "matrices that saw no input, such as an expert without tokens, and were scored by magnitude"),
    compress_seconds=(_FLOAT, "wall time of calibration and compression, seconds; shared by the rows of all texts"),
    refused=_REFUSED,
    saved=(_TEXT, "directory of the saved model; null where none was asked for"),
)

TUNINGS = _schema(
    tuning_id=(_TEXT, "identity of the tuning: 16 hex digits; its rows are one a step that was measured"),
    **_WHAT,
    target=(_TEXT, "the text that was tuned to"),
    label=(_TEXT, "the tuning in short, as files name it; intact: the model as it is"),
    way=(_TEXT, "the tuning but for its learning rate, of which one is chosen a way"),
    arm=(_TEXT, "which weights are trained: full, lora, critical-source, critical-target, magnitude, bottom, random"),
    fraction=(_FLOAT, "the share of the weights that was asked to be trained; null for the intact model"),
    score=(_TEXT, "the score of the source text that chose weights to train or to damage; null where none did"),
    draw=(_INT, "random: the number of the draw"),
    learning_rate=(_FLOAT, "the peak learning rate"),
    protect=(_TEXT, "what keeps what the source needs: none, ewc, freeze, scale"),
    strength=(_FLOAT, "the strength of the protection: λ, the share that is frozen, or τ; null without one"),
    rescore=(_INT, "steps between measurements of the Fisher information; 0: it is measured once"),
    damage=(_TEXT, "damage that critical weights had in training, as reports name it; null for none"),
    damaged=(_INT, "how many weights had it"),
    components=(_TEXT, "what could be trained, in the fewest names"),
    seed=(_INT, "seed of the training and calibration windows; null for the intact model"),
    n_weights=(_INT, "weights of the components"),
    trainable=(_INT, "numbers that were trained; of lora those of its adapters"),
    rank=(_INT, "lora: the rank of its adapters"),
    steps=(_INT, "training steps so far; 0 for the intact model"),
    last=(pa.bool_(), "whether this is the last step that was asked for"),
    train_nll=(_FLOAT, "mean loss of the steps since the last look, as they were taken, nats per token"),
    target_nll=(pa.list_(_FLOAT), "summed next-token NLL of each of the target's evaluation windows, nats"),
    target_tokens=(pa.list_(_INT), "scored tokens of each of them"),
    validation_nll=(
        pa.list_(_FLOAT),
        "as target_nll, of the seed's validation windows: learning rates are chosen by it",
    ),
    validation_tokens=(pa.list_(_INT), "scored tokens of each of them"),
    source_nll=(
        pa.list_(_FLOAT),
        "as target_nll, of the source text's evaluation windows: what is forgotten shows here",
    ),
    source_tokens=(pa.list_(_INT), "scored tokens of each of them"),
    intact_target_nll=(pa.list_(_FLOAT), "target_nll of the intact model where the row was computed; null in its own"),
    intact_source_nll=(pa.list_(_FLOAT), "source_nll of the intact model where the row was computed; null in its own"),
    n_changed=(_INT, "weights whose value changed"),
    delta_norm=(_FLOAT, "Euclidean norm of the change over all weights, in units of weight"),
    block_moved=(pa.list_(_FLOAT), "norm of the change in each block, first block first; last step alone"),
    moved_components=(pa.list_(_TEXT), "the components that hold what could be trained; last step alone"),
    component_moved=(pa.list_(_FLOAT), "norm of the change in each of moved_components; last step alone"),
    **{k: v for k, v in _OUTCOME.items() if k not in ("nll", "tokens", "hits", "kl", "loops")},
    refused=_REFUSED,
    saved=(_TEXT, "directory of the saved model; null where none was asked for, and before the last step"),
)

_STORED = {
    "dtype": (_TEXT, "dtype that the weights are stored in: fp32, fp16, bf16, int8"),
    "computed": (_TEXT, "dtype that the model computes in"),
    "protection": (_TEXT, "what stands between memory and model: none, secded, secded-critical0.001, …"),
    "protect": (_TEXT, "the protection without its numbers"),
    "critical": (_FLOAT, "share of the weights that are protected; null where all or none are"),
    "score": (_TEXT, "score that chose weights; null where none did"),
    "policy": (
        _TEXT,
        "what is done with errors that are detected and not corrected: zero, reload, or stop (the outcome is then the "
        "stored model's, which is loaded again); null without a code",
    ),
    "code": (_TEXT, "the SECDED code: hsiao or hamming; null without one"),
    "components": (_TEXT, "what is stored, in the fewest names"),
    "seed": (_INT, "seed of the calibration windows and of what is drawn"),
    "n_weights": (_INT, "weights that are stored"),
    "n_bits": (_INT, "bits that can be hit, check bits and copies included"),
    "overhead": (_FLOAT, "bits that the protection adds, over those of the weights"),
    "packed_overhead": (
        _FLOAT,
        "the same where the critical weights are copied into words of their own, found by an index; null where all or "
        "none are protected",
    ),
    "covered": (_FLOAT, "share of the weights that the protection covers"),
    "stored_nll": (
        pa.list_(_FLOAT),
        "summed NLL of each evaluation window of the model as it is stored and protected, without a fault, nats",
    ),
    "intact_nll": (pa.list_(_FLOAT), "the same of the model as it is computed without storage, on the same hardware"),
}

FAULTS = _schema(
    fault_id=(_TEXT, "identity of the packet of injections that the row is one of: 16 hex digits"),
    **{k: v for k, v in _WHAT.items() if k != "dtype"},
    label=(_TEXT, "the fault in short, as files name it"),
    fault=(_TEXT, "uniform, burst, row, column, stuck, or single: one flip"),
    rate=(_FLOAT, "probability of a bit to be hit; of bursts, rows and columns the expected share of bits in one"),
    events=(_INT, "how many bursts, rows or columns there were; null where a rate says so"),
    burst=(_INT, "bits of a burst; null of other faults"),
    row_bytes=(_INT, "bytes of a row of memory; null of faults without rows"),
    repeat=(_INT, "which injection, from 0"),
    **_STORED,
    n_flips=(_INT, "bits that read otherwise in memory, check bits and copies included"),
    n_words=(_INT, "protected words with a flip; null without a code"),
    n_corrected=(_INT, "words or weights with a flip whose data read right"),
    n_detected=(_INT, "words or weights whose error was detected and not corrected"),
    n_miscorrected=(_INT, "words or weights whose correction made them read otherwise than they were"),
    n_undetected=(_INT, "words or weights that read otherwise and told of no error; without a protection all of them"),
    n_changed=(_INT, "weights that read otherwise; where none does the outcome is the stored model's, to the bit"),
    delta_norm=(_FLOAT, "Euclidean norm of the change over all weights that stay finite, in units of weight"),
    bit=(_INT, "single: the bit that flipped, 0 the lowest; null of other faults"),
    bit_class=(_TEXT, "single: sign, exponent or mantissa; of int8 sign or magnitude"),
    **_WEIGHT,
    row=(_INT, "single: output index"),
    col=(_INT, "single: input index"),
    stratum=(_TEXT, "single: range of score quantiles within the component, e.g. 0.90-0.99"),
    population=(_INT, "single: weights of this component and range"),
    weight=(_FLOAT, "single: the weight as stored"),
    damaged=(_FLOAT, "single: what it read after the flip"),
    predicted=(_FLOAT, "single: change of the loss to first order, g·Δw, nats per token of the calibration windows"),
    **{k: v for k, v in _OUTCOME.items() if k not in ("kl", "loops")},
    windows=(_INT, "evaluation windows that were measured; fewer where the evaluation stopped early"),
    resumed_at=(
        _INT,
        "block from which the forward pass was run; null for the whole of it, and where no weight reads otherwise",
    ),
    refused=_REFUSED,
)

ATTACKS = _schema(
    attack_id=(_TEXT, "identity of the attack: 16 hex digits; its rows are one a committed flip"),
    **{k: v for k, v in _WHAT.items() if k != "dtype"},
    label=(_TEXT, "the attack in short, as files name it"),
    way=(_TEXT, "the attack but for its draw"),
    arm=(_TEXT, "guided, guided-super, guided-random, guided-matched, random-super, random or data-free"),
    threat=(_TEXT, "unrestricted, or stealthy: no value beyond the tensor's largest |w|"),
    budget=(_INT, "flips of weights that were allowed"),
    k=(_INT, "weights that the arm is confined to; null where all are"),
    draw=(_INT, "which draw of controls or bits, from 0; null of arms that draw nothing"),
    **_STORED,
    step=(_INT, "flips of weights so far; 0: the model as it is stored"),
    last=(pa.bool_(), "whether the attack ended here: collapsed, out of budget, or nothing left to flip"),
    bit=(_INT, "the bit that flipped, 0 the lowest; null at step 0"),
    bit_class=(_TEXT, "sign, exponent or mantissa; of int8 sign or magnitude"),
    **_WEIGHT,
    row=(_INT, "output index"),
    col=(_INT, "input index"),
    weight=(_FLOAT, "the weight as stored before the flip"),
    damaged=(_FLOAT, "what it read after the flip"),
    bits_flipped=(_INT, "bits of memory that had to flip so that the weight reads so, check bits included"),
    bits_spent=(_INT, "the same of all steps so far"),
    predicted=(_FLOAT, "gain to first order, g·Δw, nats of the search windows' summed loss; null of unguided arms"),
    selected_nll=(_FLOAT, "summed NLL of the selection windows after the flip, nats; null of unguided arms"),
    tried=(_INT, "candidates that were tried by a forward pass"),
    collapsed=(pa.bool_(), "whether the loss is that of chance, ln V nats per token, or more, or not finite"),
    vocabulary=(_INT, "V: tokens that the model tells apart"),
    **{k: v for k, v in _OUTCOME.items() if k not in ("kl", "loops")},
    refused=_REFUSED,
)

TABLES: dict[str, pa.Schema] = {
    "cells": CELLS,
    "baselines": BASELINES,
    "rankings": RANKINGS,
    "score_stats": SCORE_STATS,
    "sample_sizes": SAMPLE_SIZES,
    "samples": SAMPLES,
    "fidelity": FIDELITY,
    "ablations": ABLATIONS,
    "protocols": PROTOCOLS,
    "tasks": TASKS,
    "compressions": COMPRESSIONS,
    "tunings": TUNINGS,
    "faults": FAULTS,
    "attacks": ATTACKS,
}


def define(table: str, schema: pa.Schema) -> None:
    """Make a table known that isn't among these: a measurement of somebody else's.

    >>> define("depth", pa.schema({"layer": pa.int64()}))
    >>> TABLES.pop("depth").metadata
    {b'esa_ray.schema': b'1'}
    """
    TABLES[table] = schema.with_metadata({"esa_ray.schema": SCHEMA_VERSION})
