"""What damage does to attention: sinks, entropy and spikes under each, and what that has to do with loss."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.study import Study
from esa_ray.spec.roles import SINK, SPIKE
from esa_ray.statistics.partial import partial_correlation

#: What names one damage, whoever chose the weight: attention is seen on the same windows by every seed.
DAMAGE = ["subject", "unit", "edit"]
#: The two kinds of subjects, as tables call them.
LEADING, MATCHED = "leading", "matched"
#: Components whose damage leaves the patterns of their own block as they are: they act behind them.
BEHIND = ("v", "o", "gate", "up", "down", "router")
#: What attention is told by: a column of :func:`attention_changes` → in words.
CHANGES = {
    "d_rate": "sink rate", "d_sink": "attention to the first key", "d_elsewhere": "attention to the next best key",
    "d_entropy": "entropy", "d_previous": "attention to the token before",
}  # fmt: skip
_PLACE = ["group", "rank", "tensor", "layer", "component", "expert", "row", "col", "weight"]
_HEADS = ["sink", "elsewhere", "entropy", "previous"]


@lru_cache(maxsize=8)
def attention_rows(study: Study) -> pl.DataFrame:
    """Rows of ``attention/`` that have a result, each damage once, with ``which``: leading or matched.

    The same weight may be chosen by several seeds, or lead by one and be matched by another: then it leads.
    """
    table = study.attention.filter(pl.col("status") == "ok")
    which = pl.when(pl.col("group") == "matched_k").then(pl.lit(MATCHED)).otherwise(pl.lit(LEADING))
    table = table.with_columns(which=which).sort("which", "seed", "rank", maintain_order=True)
    return table.unique([*DAMAGE, "block"], keep="first", maintain_order=True)


@lru_cache(maxsize=8)
def attention_heads(study: Study) -> pl.DataFrame:
    """The same, a row a head: ``head``, and each column of heads as a number."""
    table = attention_rows(study)
    lists = [f"{name}{end}" for name in _HEADS for end in ("", "_intact")]
    table = table.with_columns(head=pl.int_ranges(pl.col("sink").list.len())).explode("head", *lists)
    behind = pl.col("component").is_in(BEHIND)
    reached = (pl.col("block") > pl.col("layer")) | ((pl.col("block") == pl.col("layer")) & ~behind)
    return table.with_columns(reached=reached.fill_null(True))


@lru_cache(maxsize=8)
def attention_changes(study: Study) -> pl.DataFrame:
    """One row a damage: what it changed of attention over all heads, of spikes, of logits and of the loss.

    ``rate``: share of heads whose mean attention to the first key exceeds 0.3, ``rate_intact`` the same before, and
    ``d_…`` changes of means over heads. ``spike_kept`` and ``sink_kept`` are 1 where damage takes nothing: the mean of
    min(1, after/before) over the blocks with a spike (100 times the median or more) and over the heads that are sinks,
    of those that the damage can reach; null where there is none. ``delta_z`` is the RMS change of logits, ``delta_nll``
    in nats per token.
    """
    heads, blocks = attention_heads(study), attention_rows(study)
    if heads.is_empty():
        return pl.DataFrame()
    kept = pl.min_horizontal(1.0, pl.col("sink") / pl.col("sink_intact"))
    sinks = (pl.col("sink_intact") > SINK) & pl.col("reached")
    found = heads.group_by(DAMAGE, maintain_order=True).agg(
        pl.col("which", "delta_z", *_PLACE).first(),
        delta_nll=pl.col("delta_nll").list.mean().first(),
        rate=(pl.col("sink") > SINK).mean(), rate_intact=(pl.col("sink_intact") > SINK).mean(),
        **{f"d_{name}": (pl.col(name) - pl.col(f"{name}_intact")).mean() for name in _HEADS},
        sink_kept=kept.filter(sinks).mean(), sinks=sinks.sum(),
    ).with_columns(d_rate=pl.col("rate") - pl.col("rate_intact"))  # fmt: skip
    after = (pl.col("block") >= pl.col("layer")).fill_null(True)
    spiking = (pl.col("spike_intact") >= SPIKE) & after
    spikes = blocks.group_by(DAMAGE, maintain_order=True).agg(
        spike_kept=pl.min_horizontal(1.0, pl.col("spike") / pl.col("spike_intact")).filter(spiking).mean(),
        spikes=spiking.sum(), spike=pl.col("spike").max(), spike_intact=pl.col("spike_intact").max(),
    )  # fmt: skip
    return found.join(spikes, on=DAMAGE, maintain_order="left")


@lru_cache(maxsize=8)
def intact_attention(study: Study) -> pl.DataFrame:
    """One row a block that has attention, of the intact model: heads, share of sinks, means over heads, and the spike.

    ``spike_channel`` is its channel in most windows, ``spike_first`` the share of windows that have it at the first
    position.
    """
    table = attention_rows(study)
    if table.is_empty():
        return pl.DataFrame()
    table = table.unique("block", keep="first").sort("block")
    means = {name: pl.col(f"{name}_intact").list.mean() for name in _HEADS}
    rate = pl.col("sink_intact").list.eval((pl.element() > SINK).cast(pl.Float64)).list.mean()
    spike = {name: f"{name}_intact" for name in ("spike", "spike_channel", "spike_first")}
    return table.select("block", heads=pl.col("sink_intact").list.len(), rate=rate, **spike, **means)


PARTIALS: dict[str, Any] = {
    "edit": pl.String, "unit": pl.String, "which": pl.String, "change": pl.String, "n": pl.Int64, "rho": pl.Float64,
    "partial": pl.Float64, "low": pl.Float64, "high": pl.Float64,
}  # fmt: skip


@lru_cache(maxsize=8)
def attention_partials(study: Study) -> pl.DataFrame:
    """Spearman's ρ of ΔNLL with each change of attention over damaged weights, leading and matched apart.

    ``rho`` as it is; ``partial`` with the RMS change of the logits held fixed, since whatever moves logits more costs
    more, with a 95% interval of a bootstrap over weights. Null where a change doesn't vary, or weights are too few.
    """
    table, rows = attention_changes(study), []
    if table.is_empty():
        return pl.DataFrame(schema=PARTIALS)
    for (edit, unit, which), mine in table.group_by(["edit", "unit", "which"], maintain_order=True):
        cost, moved = (mine[name].to_numpy() for name in ("delta_nll", "delta_z"))
        for change in CHANGES:
            found = partial_correlation(mine[change].to_numpy(), cost, moved)
            values = (found.rho, found.partial, found.interval.low, found.interval.high)
            rho, partial, low, high = (None if np.isnan(v) else v for v in values)
            rows.append({"edit": edit, "unit": unit, "which": which, "change": change, "n": found.n, "rho": rho,
                         "partial": partial, "low": low, "high": high})  # fmt: skip
    return pl.DataFrame(rows, schema=PARTIALS)


def worst(study: Study) -> pl.DataFrame:
    """Rows of the leading weight or set whose damage costs most, the study's first kind of damage; empty without."""
    table = attention_changes(study)
    if table.is_empty():
        return table
    leading = table.filter((pl.col("which") == LEADING) & (pl.col("edit") == table["edit"][0]))
    return leading.sort("delta_nll", descending=True, maintain_order=True).head(1)
