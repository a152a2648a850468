"""What columns of several tables share: kinds, meanings and units."""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = "1"

TEXT, INT, FLOAT = pa.string(), pa.int64(), pa.float64()


def schema(**columns: tuple[pa.DataType, str]) -> pa.Schema:
    """A table's columns, each with its kind and what it means."""
    fields = [pa.field(name, kind, metadata={"doc": doc}) for name, (kind, doc) in columns.items()]
    return pa.schema(fields, metadata={"esa_ray.schema": SCHEMA_VERSION})


WHAT = {
    "study": (TEXT, "name of the study"),
    "model": (TEXT, "name of the model"),
    "dtype": (TEXT, "dtype of the weights: fp32, bf16, fp16"),
    "data": (TEXT, "the text source"),
}
OUTCOME = {
    "status": (
        TEXT,
        "ok, diverged (NaN or infinite loss), empty (no weights that the damage can change) or error (no result)",
    ),
    "error": (TEXT, "why there is no result; null otherwise"),
    "nll": (pa.list_(FLOAT), "summed next-token NLL of each evaluation window, nats"),
    "tokens": (pa.list_(INT), "scored tokens of each evaluation window"),
    "hits": (pa.list_(INT), "tokens of each evaluation window whose top-1 prediction is right"),
    "kl": (
        pa.list_(FLOAT),
        "KL divergence of the damaged from the intact model's next-token distribution, KL(intact ‖ damaged), summed "
        "over each evaluation window's scored tokens, nats; null for the intact model",
    ),
    "loops": (
        pa.list_(INT),
        "for each prompt whether its greedy continuation ends in a loop (1) or not (0); null where none was continued",
    ),
    "seconds": (FLOAT, "wall time of edit, evaluation and restoration, seconds"),
    "device": (TEXT, "where it was computed: the GPUs that the model lay on, or the CPU, and the host"),
    "worker": (TEXT, "the process that computed it, as host/pid; null in studies of older versions"),
    "version": (
        TEXT,
        "version of esa-ray, torch and transformers; on GPUs of CUDA and the driver, and how they round and fold",
    ),
    "created": (pa.timestamp("us", tz="UTC"), "when the row was written"),
}
#: Hardware rounds in ways of its own: an effect of 0.001 nats is measured against the same.
INTACT = {
    "intact_nll": (
        pa.list_(FLOAT),
        "the intact model's summed NLL of each evaluation window where this row was computed, nats; null where it is "
        "the stored baseline's to the bit",
    ),
}
WEIGHT = {
    "tensor": (TEXT, "name of the parameter"),
    "layer": (INT, "transformer block, from 0; null outside blocks"),
    "component": (TEXT, "q, k, v, o, gate, up, down, router, embed, head or norm"),
    "expert": (INT, "expert, or head that has a matrix of its own, from 0; null where there is none"),
}

REFUSED = (
    pa.bool_(),
    "of an error: whether it lies in what was asked for, so that the same command can't mend it, and its words say "
    "what to change; null otherwise",
)
