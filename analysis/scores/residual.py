"""Do super weights share rows, columns and residual channels?

Every p here describes the structure of one model's sets against uniform draws in the same tensors. Weights are no
replications: it says nothing of other models, and a score that is a product of a row's and a column's factor
(act_mag, super_activation) concentrates by construction.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from analysis.names import unit_of
from analysis.statistics.inference import holm
from analysis.study import Study

#: Draws of the null: as many weights, uniform in the same tensors.
DRAWS = 99

#: A layer leans on a channel if uniform draws would put so many weights there no more often than this.
RARE = 0.05

#: Components that write to the residual stream (their row is its channel) and that read from it (their column is).
WRITES = ["o", "down", "mixer_out"]
READS = ["q", "k", "v", "gate", "up", "router", "mixer_in", "mixer_q", "mixer_k", "mixer_v"]

#: A latent that a model may make of the residual stream, and what then reads the latent instead of the stream.
LATENTS = {"q_latent": {"q"}, "kv_latent": {"k", "v"}}

MATRIX = ["tensor", "component", "expert"]
_SCORE: dict[str, Any] = {"metric": pl.String, "mode": pl.String, "k": pl.Int64}
LINES: dict[str, Any] = _SCORE | {
    "line": pl.String, "seeds": pl.Int64, "weights": pl.Float64, "tensors": pl.Float64, "left_out": pl.Int64,
    **{f"{name}{end}": pl.Float64 for name in ("top_share", "distinct", "gini") for end in ("", "_uniform", "_p")},
    "top_share_random": pl.Float64, "distinct_random": pl.Float64,
}  # fmt: skip
CHANNELS: dict[str, Any] = _SCORE | {
    "channel": pl.Int64, "layers": pl.Float64, "of_layers": pl.Int64, "weights": pl.Float64, "seeds": pl.Int64,
    "of_seeds": pl.Int64, "expected": pl.Float64, "p": pl.Float64, "p_holm": pl.Float64,
}  # fmt: skip


def _slope(places: np.ndarray) -> tuple[float, float] | None:
    """(a, b) of flat = a·row + b·col + c if it holds exactly for these (flat, row, col)."""
    design = np.column_stack([places[:, 1], places[:, 2], np.ones(len(places))])
    if np.linalg.matrix_rank(design) < 3:
        return None
    found = np.linalg.lstsq(design, places[:, 0], rcond=None)[0]
    exact = np.abs(design @ found - places[:, 0]).max() < 0.5
    return (float(found[0]), float(found[1])) if exact else None


@lru_cache(maxsize=8)
def shapes(study: Study) -> dict[tuple[str, str, int | None], tuple[int, int]]:
    """(tensor, component, expert) → (rows, columns), worked out from where its stored weights lie in memory.

    A weight lies at a·row + b·col + c, with b = 1 and a the columns if rows are stored one after the other, and
    a = 1 if the matrix is stored transposed; the number of weights is known. Matrices of which too few weights are
    stored, or whose rows are interleaved with another component's, are absent; and so are all where whole rows,
    columns, neurons or heads are ranked, which lie on one line or on all.
    """
    if unit_of(study) != "weight":
        return {}
    sizes: dict[tuple, int] = {}
    whole: dict[tuple, int] = {}
    for tensor, component, expert, n in study.score_stats.unique(MATRIX).select(*MATRIX, "n").iter_rows():
        sizes[tensor, component, expert] = n
        whole[tensor, expert] = whole.get((tensor, expert), 0) + n
    found = {}
    rows = study.rankings.select(*MATRIX, "flat", "row", "col").unique()
    for key, mine in rows.group_by(MATRIX):
        tensor, _, expert = key
        line = _slope(mine.select("flat", "row", "col").to_numpy().astype(float))
        if line is None or key not in sizes:
            continue
        a, b = round(line[0]), round(line[1])
        columns = a if b == 1 else whole[tensor, expert] // b if a == 1 else 0
        if columns > 0 and sizes[key] % columns == 0:
            found[key] = (sizes[key] // columns, columns)
    return found


def concentration(index: np.ndarray, owner: np.ndarray, lengths: np.ndarray) -> tuple[float, float, float]:
    """(share in the most frequent line, distinct lines a weight, Gini over lines) of weights on lines, over tensors.

    ``index`` is each weight's row (or column), ``owner`` its tensor, ``lengths`` how many rows each tensor has. The
    first is Σ over tensors of its fullest line, over all weights; the second the number of lines used over all
    weights; the third the mean over tensors, weighted by their weights, of the Gini coefficient of weights a line.
    """
    # A component that is stacked with others has fewer rows than the last of its rows' numbers says.
    apart = max(int(lengths.max()), int(index.max()) + 1)
    lines, counts = np.unique(owner * apart + index, return_counts=True)
    tensor = lines // apart
    order = np.lexsort((-counts, tensor))
    counts, tensor = counts[order], tensor[order]
    first = np.searchsorted(tensor, np.arange(len(lengths)))
    total, m = len(index), np.bincount(owner, minlength=len(lengths))
    top = counts[first[m > 0]].sum() / total
    # Ascending ranks among all lines: those without a weight come first and add nothing to the sum.
    rank = lengths[tensor] - (np.arange(len(counts)) - first[tensor])
    weighted = np.bincount(tensor, rank * counts, minlength=len(lengths))
    gini = (2 * weighted - (lengths + 1) * m) / lengths
    return float(top), len(counts) / total, float(gini.sum() / total)


@lru_cache(maxsize=8)
def line_concentration(study: Study) -> pl.DataFrame:
    """One row per score and ``line`` (row or col) at the largest k: do the super weights share rows, columns?

    ``top_share``, ``distinct`` and ``gini`` are as in :func:`concentration`, averaged over seeds; ``_uniform`` the
    mean of uniform draws of as many weights in the same tensors, ``_p`` the largest over seeds of the share of such
    draws at least as concentrated ((1 + hits)/100); ``_random`` what the study's own random_k has, if it drew one.
    ``left_out``: tensors whose shape isn't known.
    """
    k = max(study.spec["topk"])
    chosen = study.rankings.filter(pl.col("rank") <= k)
    rows: list[dict[str, Any]] = []
    sets = chosen.filter(pl.col("group") == "super")
    for (metric, mode), mine in sets.group_by(["metric", "mode"], maintain_order=True):
        controls = chosen.filter(
            (pl.col("group") == "random_k") & (pl.col("control_draw").fill_null(0) == 0),
            (pl.col("metric") == metric) & (pl.col("mode") == mode),
        )
        for axis, line in enumerate(("row", "col")):
            seeds = [_lines(study, part, axis) for _, part in mine.group_by("seed", maintain_order=True)]
            seeds = [s for s in seeds if s]
            if not seeds:
                continue
            drawn = [_lines(study, part, axis, null=False) for _, part in controls.group_by("seed")]
            row = {"metric": metric, "mode": mode, "k": k, "line": line, "seeds": len(seeds)}
            rows.append(row | _over_seeds(seeds, [d for d in drawn if d]))
    return pl.DataFrame(rows, schema=LINES)


def _over_seeds(seeds: list[dict[str, float]], drawn: list[dict[str, float]]) -> dict[str, float]:
    worst = {name: max if name.endswith("_p") else np.mean for name in seeds[0]}
    row = {name: float(how([s[name] for s in seeds])) for name, how in worst.items()}
    row["left_out"] = int(max(s["left_out"] for s in seeds))
    return row | {f"{n}_random": float(np.mean([d[n] for d in drawn])) for n in ("top_share", "distinct") if drawn}


def _lines(study: Study, chosen: pl.DataFrame, axis: int, null: bool = True) -> dict[str, float]:
    known = shapes(study)
    keys = list(chosen.select(MATRIX).iter_rows())
    inside = np.array([key in known for key in keys], dtype=bool)
    left_out = len({key for key in keys if key not in known})
    if not inside.any():
        return {}
    tensors = sorted({key for key in keys if key in known}, key=str)
    number = {key: i for i, key in enumerate(tensors)}
    owner = np.array([number[key] for key in keys if key in known])
    lengths = np.array([known[key][axis] for key in tensors])
    index = chosen[("row", "col")[axis]].to_numpy()[inside]
    values = dict(zip(("top_share", "distinct", "gini"), concentration(index, owner, lengths), strict=True))
    row = values | {"weights": float(len(index)), "tensors": float(len(tensors)), "left_out": float(left_out)}
    return row | (_against_uniform(values, owner, lengths) if null else {})


def _against_uniform(values: dict[str, float], owner: np.ndarray, lengths: np.ndarray) -> dict[str, float]:
    # A tensor holds thousands of times more weights than are drawn, so drawing with replacement does.
    rng = np.random.default_rng(0)
    null = np.array([concentration(rng.integers(0, lengths[owner]), owner, lengths) for _ in range(DRAWS)])
    row: dict[str, float] = {}
    for i, name in enumerate(("top_share", "distinct", "gini")):
        as_far = null[:, i] <= values[name] if name == "distinct" else null[:, i] >= values[name]
        row |= {f"{name}_uniform": float(null[:, i].mean()), f"{name}_p": float((1 + as_far.sum()) / (1 + DRAWS))}
    return row


def least_count(m: int, channels: int) -> int:
    """How many of m weights must lie on one of so many equally likely channels for that to be rare (at most 5%).

    >>> least_count(5, 4096), least_count(100, 576)
    (1, 2)
    """
    return int(stats.binom.ppf(1 - RARE, m, 1 / channels)) + 1


def poisson_binomial_tail(probabilities: np.ndarray, at_least: int) -> float:
    """P(X ≥ x) for X the number of successes of independent trials with these probabilities.

    >>> round(poisson_binomial_tail(np.array([0.5, 0.5]), 2), 6)
    0.25
    """
    mass = np.array([1.0])
    for p in probabilities:
        mass = np.convolve(mass, [1 - p, p])
    return float(mass[at_least:].sum())


def _reads(study: Study) -> list[str]:
    """Components of this model that read from the residual stream."""
    there = set(study.score_stats["component"])
    of_latents = set().union(*(made for latent, made in LATENTS.items() if latent in there))
    return [c for c in (*READS, *LATENTS, "attn_gate") if c not in of_latents]


def _residual_width(study: Study) -> int | None:
    reads = _reads(study)
    known = [shape[1] if component in reads else shape[0]
             for (_, component, _), shape in shapes(study).items() if component in (*reads, *WRITES)]  # fmt: skip
    return max(set(known), key=known.count) if known else None


def _with_channels(study: Study) -> pl.DataFrame:
    writes, reads = (pl.col("component").is_in(some) for some in (WRITES, _reads(study)))
    channel = pl.when(writes).then("row").when(reads).then("col")
    return (
        study.rankings.filter((pl.col("group") == "super") & (pl.col("rank") <= max(study.spec["topk"])))
        .with_columns(channel.alias("channel"))
        .drop_nulls(["channel", "layer"])
    )


@lru_cache(maxsize=8)
def channel_layers(study: Study) -> pl.DataFrame:
    """One row per score, mode, residual channel and layer: super weights on it at the largest k, a seed on average."""
    by_seed = _with_channels(study).group_by(["metric", "mode", "channel", "layer", "seed"]).len()
    seeds = study.rankings.group_by("metric", "mode").agg(pl.col("seed").n_unique().alias("seeds"))
    summed = by_seed.group_by(["metric", "mode", "channel", "layer"]).agg(pl.col("len").sum())
    return (
        summed.join(seeds, on=["metric", "mode"])
        .with_columns((pl.col("len") / pl.col("seeds")).alias("weights"))
        .select("metric", "mode", "channel", "layer", "weights")
        .sort("metric", "mode", "channel", "layer")
    )


@lru_cache(maxsize=8)
def residual_channels(study: Study) -> pl.DataFrame:
    """One row per score and residual channel that recurs, at the largest k: in how many layers the set leans on it.

    The channel is the row of what writes to the residual stream (o, down) and the column of what reads from it.
    ``layers`` and ``weights`` are means over seeds that have it, ``seeds`` (of ``of_seeds``) those that lean on it in
    two layers or more.
    Under uniform draws a layer's m weights fall on one of H channels Binomial(m, 1/H) times. A layer counts if it holds
    more than 95% of such draws do: one weight of a small set does, a large one takes several. ``expected`` is the
    number of layers that would count, ``p`` that of so many or more (Poisson-binomial), the largest over seeds (1 where
    a seed lacks the channel); ``p_holm`` is corrected over all H channels.
    """
    width, k = _residual_width(study), max(study.spec["topk"])
    if width is None:
        return pl.DataFrame(schema=CHANNELS)
    chosen = _with_channels(study)
    frames = [
        _recurrence(mine, width).with_columns(
            pl.lit(metric).alias("metric"), pl.lit(mode).alias("mode"), pl.lit(k, dtype=pl.Int64).alias("k")
        )
        for (metric, mode), mine in chosen.group_by(["metric", "mode"], maintain_order=True)
    ]
    empty = pl.DataFrame(schema=CHANNELS)
    return pl.concat([empty, *(f.select(pl.col(n).cast(t) for n, t in CHANNELS.items()) for f in frames)]).sort(
        ["metric", "mode", "p_holm", "layers", "weights", "channel"],
        descending=[False, False, False, True, True, False],
    )


def _recurrence(chosen: pl.DataFrame, width: int) -> pl.DataFrame:
    found = []
    for (seed,), mine in chosen.group_by(["seed"], maintain_order=True):
        sizes = mine.group_by("layer").agg(pl.len().alias("size"))
        least = [least_count(m, width) for m in sizes["size"]]
        sizes = sizes.with_columns(pl.Series("least", least))
        probabilities = stats.binom.sf(np.array(least) - 1, sizes["size"].to_numpy(), 1 / width)
        held = mine.group_by("channel", "layer").len().join(sizes, on="layer")
        counts = held.group_by("channel").agg(
            (pl.col("len") >= pl.col("least")).sum().alias("layers"), pl.col("len").sum().alias("weights")
        )
        tail = {n: poisson_binomial_tail(probabilities, n) for n in counts["layers"].unique()}
        counts = counts.with_columns(
            pl.col("layers").replace_strict(tail, return_dtype=pl.Float64).alias("p"),
            pl.lit(float(probabilities.sum())).alias("expected"),
            pl.lit(seed).alias("seed"),
        )
        found.append(counts.with_columns(pl.Series("p_holm", holm(counts["p"].to_numpy(), width))))
    seeds = len(found)
    # A seed without the channel is evidence against it: its p is 1.
    whole = pl.when(pl.col("seeds_with") == seeds)
    return (
        pl.concat(found)
        .group_by("channel")
        .agg(
            pl.col("layers").mean(), pl.col("weights").mean(), pl.col("expected").mean(),
            (pl.col("layers") > 1).sum().alias("seeds"), pl.len().alias("seeds_with"),
            pl.col("p").max(), pl.col("p_holm").max(),
        )
        .filter(pl.col("seeds") > 0)
        .with_columns(
            whole.then("p").otherwise(1.0).alias("p"), whole.then("p_holm").otherwise(1.0).alias("p_holm"),
            pl.lit(seeds).alias("of_seeds"), pl.lit(chosen["layer"].n_unique()).alias("of_layers"),
        )
    )  # fmt: skip
