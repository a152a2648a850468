"""Injections one by one: what each fault did to the loss, and whether it broke the model."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import polars as pl

from analysis.study import Study

#: Nats per token above the stored model's loss from which on a model counts as broken; a diverged one does, too.
BROKEN = 0.1
#: Protections that cost no bits, the rivals of error correction.
FREE = ("zero-exponent-bit", "clamp", "parity-zero", "rotation")
NONE = "none"
#: What names one experiment on faults, as the tables on them begin: injections that agree in these are repetitions.
WHAT: dict[str, Any] = {
    "fault": pl.String, "dtype": pl.String, "components": pl.String, "dose": pl.String, "rate": pl.Float64,
    "events": pl.Int64, "protection": pl.String, "protect": pl.String,
}  # fmt: skip
#: The same but for the protection: what protections are compared at.
AT = ["fault", "dtype", "components", "dose"]
#: Orders of tables.
FAULT_ORDER = ("uniform", "burst", "row", "column", "stuck", "single")
DTYPE_ORDER = ("fp32", "fp16", "bf16", "int8")
PROTECT_ORDER = (NONE, *FREE, "secded-critical", "tmr-critical", "secded")


def chance(study: Study) -> float | None:
    """ln V, the loss of a uniform guess in nats per token; None of studies that don't say how many tokens there are."""
    vocabulary = study.resolved.get("vocabulary")
    return math.log(vocabulary) if vocabulary else None


@lru_cache(maxsize=8)
def injections(study: Study) -> pl.DataFrame:
    """The table ``faults`` with what each injection did, those that failed or had nothing to hit left out.

    ``delta`` is Σ NLL less Σ stored NLL over the windows that were measured, over their tokens: nats per token above
    the model as it is stored and protected, without a fault; 0 where nothing read otherwise, null where it diverged.
    ``broke``: delta > 0.1, or diverged. ``collapsed``: the loss is that of a uniform guess or more, or diverged.
    ``stopped``: an error was detected that the policy answers by stopping. ``fault`` names bursts by their bits and
    rows by their bytes where these aren't the usual ones.
    """
    windows, tokens = pl.col("nll").list.len(), pl.col("tokens").list.sum()
    lost, kept = pl.col("status") == "diverged", pl.col("n_changed") == 0
    base = pl.col("stored_nll").list.head(windows).list.sum()
    delta = pl.when(lost).then(None).when(kept).then(0.0).otherwise((pl.col("nll").list.sum() - base) / tokens)
    most = chance(study)
    table = _faults(study).filter(~pl.col("status").is_in(("error", "empty"))).with_columns(
        fault=_kind(), dose=_dose(), delta=delta.fill_nan(None), loss=pl.col("nll").list.sum() / tokens,
    )  # fmt: skip
    beyond = pl.lit(None, pl.Boolean) if most is None else pl.col("loss") >= most
    return table.with_columns(
        broke=lost | (pl.col("delta") > BROKEN).fill_null(value=False),
        collapsed=lost | (beyond & ~kept).fill_null(value=False),
        stopped=(pl.col("policy") == "stop").fill_null(value=False) & (pl.col("n_detected").fill_null(0) > 0),
    )


def _faults(study: Study) -> pl.DataFrame:
    """The stored rows, in the order in which tables show them."""
    order = {"fault": FAULT_ORDER, "dtype": DTYPE_ORDER, "protect": PROTECT_ORDER}
    keys = [pl.col(name).replace_strict({v: i for i, v in enumerate(values)}, default=len(values), return_dtype=pl.Int8)
            for name, values in order.items()]  # fmt: skip
    fault, dtype, protect = keys
    return study.faults.sort(fault, dtype, "components", "rate", "events", protect, "critical", "seed", "repeat",
                             maintain_order=True)  # fmt: skip


def _kind() -> pl.Expr:
    usual = pl.col("row_bytes").is_null() | (pl.col("row_bytes") == 2048)
    burst = pl.format("burst of {}", "burst")
    return (
        pl.when(pl.col("burst").is_not_null()).then(burst).when(usual).then(pl.col("fault"))
        .otherwise(pl.format("{} of {} bytes", "fault", "row_bytes"))
    )  # fmt: skip


def _dose() -> pl.Expr:
    told = pl.struct("rate", "events").map_elements(dose_of, pl.String)
    return pl.when(pl.col("rate").is_null() & pl.col("events").is_null()).then(pl.lit("")).otherwise(told)


def dose_of(row: dict[str, Any]) -> str:
    """How much, as tables say it.

    >>> dose_of({"rate": 1e-6, "events": None}), dose_of({"rate": None, "events": 1})
    ('1e-06', '1 event')
    """
    if row["rate"] is not None:
        return f"{row['rate']:g}"
    return f"{row['events']} event{'s' * (row['events'] != 1)}"


def failures(study: Study) -> int:
    """How many packets of injections failed: each has one row, whatever it was to hold."""
    return study.faults.filter(pl.col("status") == "error").height
