"""Tables of scores, of damage and of the intact model."""

from __future__ import annotations

import pyarrow as pa

from esa_ray.schema.columns import FLOAT, INT, INTACT, OUTCOME, TEXT, WEIGHT, WHAT, schema

CELLS = schema(
    cell_id=(TEXT, "identity of the cell: 16 hex digits"),
    **WHAT,
    metric=(TEXT, "score that chose the weights, or listed: they were given"),
    mode=(TEXT, "pool they were chosen from: per_layer, per_tensor or global; the list's name for listed ones"),
    k=(INT, "weights chosen per pool; for listed ones, how many the list names"),
    seed=(INT, "seed of the calibration windows and of the perturbation"),
    group=(TEXT, "super, listed, random_k, matched_k, largest_k or bottom_k"),
    part=(
        TEXT,
        "null: the whole set; layer: its weights in one block; only: one member alone; all_but_first, all_but_last: "
        "all but the highest or lowest ranks of each pool, which are left intact; single, pair: one member or two, by "
        "their places in the whole set",
    ),
    part_value=(FLOAT, "the block from 0, the member from 1, or the fraction left intact; null for whole sets"),
    part_other=(INT, "of a pair the second member, from 1; null otherwise"),
    unit=(TEXT, "what the set's members are: weight, row, col, neuron or head; null in studies of older versions"),
    repeat=(INT, "which repetition of the same cell, from 0"),
    depth=(INT, "largest k of the ranking that a control was drawn for; null for groups that aren't drawn"),
    control_draw=(INT, "which of the seed's sets of a drawn control, from 0; null for groups that aren't drawn"),
    perturbation=(TEXT, "kind of damage"),
    strength=(FLOAT, "its strength; null where the kind has none"),
    variant=(
        TEXT,
        "what else names the kind: bit class, what noise is relative to, what shares a draw, grid of quantization, end "
        "of a path; null where the kind has no variants",
    ),
    n_weights=(INT, "weights addressed"),
    n_changed=(
        INT,
        "weights whose value changed; of an ok cell 0 where a draw or the rounding happened to change none: then its "
        "outcome is the intact model's, to the bit",
    ),
    delta_norm=(FLOAT, "Euclidean norm of the change over all weights, in units of weight"),
    **OUTCOME,
    **INTACT,
    windows=(INT, "evaluation windows used: all of the study's, unless the cell was stopped early"),
    resumed_at=(INT, "block from which the forward pass was resumed; null for full forward passes, and for none"),
    restored=(pa.bool_(), "the weights were bit-identical to the originals afterwards"),
)

BASELINES = schema(**WHAT, **OUTCOME)

RANKINGS = schema(
    model=(TEXT, "name of the model"),
    metric=(TEXT, "score that ranks"),
    mode=(TEXT, "pool: per_layer, per_tensor or global"),
    seed=(INT, "seed of the calibration windows"),
    group=(TEXT, "super or listed, or the control drawn for it"),
    control_draw=(INT, "which of the seed's sets of a drawn control, from 0; null for groups that aren't drawn"),
    rank=(INT, "place in the pool, from 1, the most sensitive (bottom_k: the least sensitive)"),
    **WEIGHT,
    row=(INT, "output index, whatever the storage order; null of columns, neurons and heads"),
    col=(INT, "input index, whatever the storage order; null of rows, neurons and heads"),
    flat=(INT, "index into the tensor's memory; of a unit that of its first weight there"),
    unit=(
        TEXT,
        "what is ranked: weight, row, col, neuron or head, whose tensor and component are its first matrix's; null in "
        "studies of older versions, which ranked weights",
    ),
    number=(
        INT,
        "which neuron or head of its block (or expert), row or column of its component, from 0; null of weights",
    ),
    members=(INT, "how many weights it is; null in studies of older versions"),
    score=(FLOAT, "its score"),
    std_error=(FLOAT, "standard error of its score over probes; null where a score is not an estimate"),
    gradient=(FLOAT, "derivative of the calibration loss, nats per token and unit of weight; null if not gathered"),
    gradients=(
        pa.list_(pa.float32()),
        "of a unit the same at each weight, tensor by tensor in the order of memory; null where no damage needs it",
    ),
    weight=(FLOAT, "its value before any damage; of a unit the Euclidean norm of its weights"),
)

SCORE_STATS = schema(
    model=(TEXT, "name of the model"),
    metric=(TEXT, "score"),
    mode=(TEXT, "pool of the ranking; only an ensemble's scores depend on it"),
    seed=(INT, "seed of the calibration windows"),
    **WEIGHT,
    n=(INT, "weights in the tensor (or in the part of it that is this component or expert)"),
    mean=(FLOAT, "mean score"),
    std=(FLOAT, "standard deviation of the score"),
    min=(FLOAT, "smallest score"),
    max=(FLOAT, "largest score"),
    quantiles=(pa.list_(FLOAT), "score at the probabilities schema.QUANTILES"),
    top1pct_over_median=(FLOAT, "mean of the top 1% of scores over the median score; null if the median is 0"),
    gini=(FLOAT, "Gini coefficient of the scores: 0 all equal, 1 all in one weight"),
    top1pct_mass=(FLOAT, "share of the sum of scores that the top 1% hold"),
    half_mass_fraction=(FLOAT, "smallest fraction of the weights that holds half of the sum of scores"),
    tail_index=(FLOAT, "Hill's tail index of the top 1%; the smaller, the heavier the tail"),
    probes=(INT, "probes that an estimated score took; null otherwise"),
    relative_error=(
        FLOAT,
        "estimated scores: norm of the standard errors over that of the scores, its noise taken out; null if all is "
        "noise, and for scores that are no estimates",
    ),
    probe_error=(FLOAT, "relative error over all weights when probing ended; null for scores that are no estimates"),
)

SAMPLE_SIZES = schema(
    model=(TEXT, "name of the model"),
    metric=(TEXT, "score that ranks"),
    mode=(TEXT, "pool: per_layer, per_tensor or global"),
    seed=(INT, "seed of the calibration windows"),
    windows=(INT, "how many of the seed's calibration windows the score is made of"),
    rank=(INT, "place in the pool, from 1"),
    **WEIGHT,
    flat=(INT, "index into the tensor's memory"),
    score=(FLOAT, "its score"),
)

_SAMPLE = {
    "model": (TEXT, "name of the model"),
    "seed": (INT, "seed of the calibration windows that the scores and predictions are made of"),
    "metric": (TEXT, "score by which the sample is stratified"),
    "stratum": (TEXT, "range of score quantiles within the component, e.g. 0.90-0.99"),
    "inclusion": (FLOAT, "probability with which a weight of this stratum is in the sample"),
    **WEIGHT,
    "row": (INT, "output index, whatever the storage order"),
    "col": (INT, "input index, whatever the storage order"),
    "flat": (INT, "index into the tensor's memory"),
    "weight": (FLOAT, "its value before any damage"),
    "metrics": (pa.list_(TEXT), "all scores that could be made of what the study gathered"),
    "scores": (pa.list_(FLOAT), "its score by each of them"),
    "gradient": (FLOAT, "derivative of the calibration loss, nats per token and unit of weight; null if unknown"),
    "curvature": (FLOAT, "second derivative (estimated), nats per token and unit of weight²; null if unknown"),
}
SAMPLES = schema(**_SAMPLE)

FIDELITY = schema(
    **_SAMPLE,
    edit=(
        TEXT,
        "what was done to this one weight: zero, sign_flip, or null_edit (nothing but its rounding: the noise)",
    ),
    delta_nll=(pa.list_(FLOAT), "change of the summed NLL of each evaluation window, nats"),
    tokens=(pa.list_(INT), "scored tokens of each evaluation window"),
    first_order=(FLOAT, "predicted change g·δ, nats per token; null if unknown"),
    second_order=(FLOAT, "predicted change g·δ + h·δ²/2, nats per token; null if unknown"),
)

PROTOCOLS = schema(
    **WHAT,
    protocol=(TEXT, "smoke, standard or extended"),
    context=(INT, "tokens a window, BOS included"),
    seed=(INT, "seed that drew the windows"),
    **{k: v for k, v in OUTCOME.items() if k not in ("kl", "loops")},
    counts=(pa.list_(INT), "scored tokens by the probability of the first choice, in 15 bins of equal width"),
    sums=(pa.list_(FLOAT), "sum of those probabilities in each bin"),
    right=(pa.list_(INT), "tokens of each bin whose first choice is right"),
    nonfinite=(INT, "scored tokens with NaN or infinite logits"),
    tokens_per_second=(FLOAT, "tokens measured a second: forward passes, loss and confidence; loading left out"),
    peak_memory=(
        INT,
        "most memory so far: of the GPU since the measurement began, of a CPU process since its start; bytes",
    ),
)

TASKS = schema(
    **WHAT,
    protocol=(TEXT, "smoke, standard or extended"),
    task=(TEXT, "name of the zero-shot task"),
    task_metric=(TEXT, "what lm-eval measures of it, as acc or acc_norm"),
    value=(FLOAT, "the metric"),
    std_error=(FLOAT, "its standard error over examples; null if lm-eval has none"),
    examples=(INT, "examples that were asked"),
    task_version=(TEXT, "version of the task"),
    harness=(TEXT, "version of lm-eval"),
    seconds=(FLOAT, "wall time, seconds"),
    created=(pa.timestamp("us", tz="UTC"), "when the row was written"),
)

ABLATIONS = schema(
    model=(TEXT, "name of the model"),
    dtype=(TEXT, "dtype of the weights: fp32, bf16, fp16"),
    layer=(INT, "transformer block, from 0"),
    part=(TEXT, "the sub-layer that is silenced: attention, mixer, ffn, or expert (one expert of the ffn)"),
    expert=(INT, "expert, from 0; null for whole sub-layers"),
    positions=(pa.list_(INT), "positions of each evaluation window that are routed to the expert; null if unknown"),
    routed=(pa.list_(FLOAT), "sum of their routing weights; null if unknown"),
    information=(
        FLOAT,
        "how special the expert's tokens are: D_KL(p(token | expert) ‖ p(token)) less its bias, nats; null if unknown",
    ),
    peak=(FLOAT, "largest absolute output of the sub-layer's last matrix in the intact model"),
    **OUTCOME,
    **INTACT,
)
