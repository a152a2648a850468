"""Tables of faults in stored weights, and of attacks on them."""

from __future__ import annotations

import pyarrow as pa

from esa_ray.schema.columns import FLOAT, INT, OUTCOME, REFUSED, TEXT, WEIGHT, WHAT, schema

_STORED = {
    "dtype": (TEXT, "dtype that the weights are stored in: fp32, fp16, bf16, int8"),
    "computed": (TEXT, "dtype that the model computes in"),
    "protection": (TEXT, "what stands between memory and model: none, secded, secded-critical0.001, …"),
    "protect": (TEXT, "the protection without its numbers"),
    "critical": (FLOAT, "share of the weights that are protected; null where all or none are"),
    "score": (TEXT, "score that chose weights; null where none did"),
    "policy": (
        TEXT,
        "what is done with errors that are detected and not corrected: zero, reload, or stop (the outcome is then the "
        "stored model's, which is loaded again); null without a code",
    ),
    "code": (TEXT, "the SECDED code: hsiao or hamming; null without one"),
    "components": (TEXT, "what is stored, in the fewest names"),
    "seed": (INT, "seed of the calibration windows and of what is drawn"),
    "n_weights": (INT, "weights that are stored"),
    "n_bits": (INT, "bits that can be hit, check bits and copies included"),
    "overhead": (FLOAT, "bits that the protection adds, over those of the weights"),
    "packed_overhead": (
        FLOAT,
        "the same where the critical weights are copied into words of their own, found by an index; null where all or "
        "none are protected",
    ),
    "covered": (FLOAT, "share of the weights that the protection covers"),
    "stored_nll": (
        pa.list_(FLOAT),
        "summed NLL of each evaluation window of the model as it is stored and protected, without a fault, nats",
    ),
    "intact_nll": (pa.list_(FLOAT), "the same of the model as it is computed without storage, on the same hardware"),
}

FAULTS = schema(
    fault_id=(TEXT, "identity of the packet of injections that the row is one of: 16 hex digits"),
    **{k: v for k, v in WHAT.items() if k != "dtype"},
    label=(TEXT, "the fault in short, as files name it"),
    fault=(TEXT, "uniform, burst, row, column, stuck, or single: one flip"),
    rate=(FLOAT, "probability of a bit to be hit; of bursts, rows and columns the expected share of bits in one"),
    events=(INT, "how many bursts, rows or columns there were; null where a rate says so"),
    burst=(INT, "bits of a burst; null of other faults"),
    row_bytes=(INT, "bytes of a row of memory; null of faults without rows"),
    repeat=(INT, "which injection, from 0"),
    **_STORED,
    n_flips=(INT, "bits that read otherwise in memory, check bits and copies included"),
    n_words=(INT, "protected words with a flip; null without a code"),
    n_corrected=(INT, "words or weights with a flip whose data read right"),
    n_detected=(INT, "words or weights whose error was detected and not corrected"),
    n_miscorrected=(INT, "words or weights whose correction made them read otherwise than they were"),
    n_undetected=(INT, "words or weights that read otherwise and told of no error; without a protection all of them"),
    n_changed=(INT, "weights that read otherwise; where none does the outcome is the stored model's, to the bit"),
    delta_norm=(FLOAT, "Euclidean norm of the change over all weights that stay finite, in units of weight"),
    bit=(INT, "single: the bit that flipped, 0 the lowest; null of other faults"),
    bit_class=(TEXT, "single: sign, exponent or mantissa; of int8 sign or magnitude"),
    **WEIGHT,
    row=(INT, "single: output index"),
    col=(INT, "single: input index"),
    stratum=(TEXT, "single: range of score quantiles within the component, e.g. 0.90-0.99"),
    population=(INT, "single: weights of this component and range"),
    weight=(FLOAT, "single: the weight as stored"),
    damaged=(FLOAT, "single: what it read after the flip"),
    predicted=(FLOAT, "single: change of the loss to first order, g·Δw, nats per token of the calibration windows"),
    **{k: v for k, v in OUTCOME.items() if k not in ("kl", "loops")},
    windows=(INT, "evaluation windows that were measured; fewer where the evaluation stopped early"),
    resumed_at=(
        INT,
        "block from which the forward pass was run; null for the whole of it, and where no weight reads otherwise",
    ),
    refused=REFUSED,
)

ATTACKS = schema(
    attack_id=(TEXT, "identity of the attack: 16 hex digits; its rows are one a committed flip"),
    **{k: v for k, v in WHAT.items() if k != "dtype"},
    label=(TEXT, "the attack in short, as files name it"),
    way=(TEXT, "the attack but for its draw"),
    arm=(TEXT, "guided, guided-super, guided-random, guided-matched, random-super, random or data-free"),
    threat=(TEXT, "unrestricted, or stealthy: no value beyond the tensor's largest |w|"),
    budget=(INT, "flips of weights that were allowed"),
    k=(INT, "weights that the arm is confined to; null where all are"),
    draw=(INT, "which draw of controls or bits, from 0; null of arms that draw nothing"),
    **_STORED,
    step=(INT, "flips of weights so far; 0: the model as it is stored"),
    last=(pa.bool_(), "whether the attack ended here: collapsed, out of budget, or nothing left to flip"),
    bit=(INT, "the bit that flipped, 0 the lowest; null at step 0"),
    bit_class=(TEXT, "sign, exponent or mantissa; of int8 sign or magnitude"),
    **WEIGHT,
    row=(INT, "output index"),
    col=(INT, "input index"),
    weight=(FLOAT, "the weight as stored before the flip"),
    damaged=(FLOAT, "what it read after the flip"),
    bits_flipped=(INT, "bits of memory that had to flip so that the weight reads so, check bits included"),
    bits_spent=(INT, "the same of all steps so far"),
    predicted=(FLOAT, "gain to first order, g·Δw, nats of the search windows' summed loss; null of unguided arms"),
    selected_nll=(FLOAT, "summed NLL of the selection windows after the flip, nats; null of unguided arms"),
    tried=(INT, "candidates that were tried by a forward pass"),
    collapsed=(pa.bool_(), "whether the loss is that of chance, ln V nats per token, or more, or not finite"),
    vocabulary=(INT, "V: tokens that the model tells apart"),
    **{k: v for k, v in OUTCOME.items() if k not in ("kl", "loops")},
    refused=REFUSED,
)
