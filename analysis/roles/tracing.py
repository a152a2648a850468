"""Where restoring a state brings a fact back, whether paraphrases agree, and whether critical weights are there."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from analysis.statistics.inference import LEVEL, weighted_spearman
from analysis.study import Study
from esa_ray.spec.roles import CORRUPTIONS

#: Positions in the order of a prompt, and what can be restored.
POSITIONS = ("subject-first", "subject-middle", "subject-last", "after", "last")
SUBLAYERS = ("residual", "attention", "ffn")
RESAMPLES = 1_999
#: Facts or places below which nothing is said.
FEWEST = 3
ARM = ["corruption", "restored", "sublayer"]

TRACED: dict[str, Any] = {
    "corruption": pl.String, "restored": pl.Int64, "sublayer": pl.String, "position": pl.String, "block": pl.Int64,
    "facts": pl.Int64, "effect": pl.Float64, "share": pl.Float64, "low": pl.Float64, "high": pl.Float64,
}  # fmt: skip
KNOWN: dict[str, Any] = {
    "source": pl.String, "facts": pl.Int64, "known": pl.Int64, "prompts": pl.Int64, "known_prompts": pl.Int64,
    "clean": pl.Float64, "corrupted": pl.Float64,
}  # fmt: skip
CONSISTENT: dict[str, Any] = {
    "corruption": pl.String, "restored": pl.Int64, "sublayer": pl.String, "facts": pl.Int64, "pairs": pl.Int64,
    "rho": pl.Float64, "low": pl.Float64, "high": pl.Float64, "others": pl.Float64, "difference": pl.Float64,
    "difference_low": pl.Float64, "difference_high": pl.Float64, "same_peak": pl.Float64,
}  # fmt: skip
SENSITIVE: dict[str, Any] = {
    "corruption": pl.String, "restored": pl.Int64, "sublayer": pl.String, "position": pl.String, "places": pl.Int64,
    "facts": pl.Int64, "rho": pl.Float64, "low": pl.Float64, "high": pl.Float64,
}  # fmt: skip
#: What stands for the sub-layers that have a matrix of their own, together, and for the position that gives most back.
BOTH, BEST = "attention and ffn", "any"


@lru_cache(maxsize=8)
def known_facts(study: Study) -> pl.DataFrame:
    """One row per source: facts asked about, those that the model knows in at least one paraphrase, and prompts."""
    table = study.facts
    if table.is_empty():
        return pl.DataFrame(schema=KNOWN)
    prompts = table.group_by("source", "fact", "paraphrase", maintain_order=True).agg(
        pl.col("known").any(), pl.col("clean").first(), pl.col("corrupted").mean()
    )
    facts = prompts.group_by("source", "fact", maintain_order=True).agg(pl.col("known").any())
    counts = facts.group_by("source", maintain_order=True).agg(facts=pl.len(), known=pl.col("known").sum())
    told = prompts.group_by("source").agg(
        prompts=pl.len(), known_prompts=pl.col("known").sum(), clean=pl.col("clean").filter("known").mean(),
        corrupted=pl.col("corrupted").filter("known").mean(),
    )  # fmt: skip
    joined = counts.join(told, on="source", how="left", maintain_order="left")
    return joined.select(pl.col(c).cast(kind) for c, kind in KNOWN.items())


def _traced_rows(study: Study) -> pl.DataFrame:
    table = study.facts.filter((pl.col("status") == "ok") & pl.col("known"))
    return table.drop_nulls(["effect", "block", "position"]).with_columns(taken=pl.col("clean") - pl.col("corrupted"))


@lru_cache(maxsize=8)
def traced(study: Study) -> pl.DataFrame:
    """One row per corruption, number of restored blocks, sub-layer, position and block.

    ``effect`` is the mean indirect effect over facts (their paraphrases averaged), in logits; ``share`` the sum of
    effects over the sum of what the corruption took, with a bootstrap's 95% interval over facts.
    """
    table = _traced_rows(study)
    if table.is_empty():
        return pl.DataFrame(schema=TRACED)
    keys = [*ARM, "position", "block"]
    facts = table.group_by(*keys, "fact", maintain_order=True).agg(pl.col("effect").mean(), pl.col("taken").mean())
    rows = [dict(zip(keys, key, strict=True)) | _share(mine) for key, mine in facts.group_by(keys, maintain_order=True)]
    found = pl.DataFrame(rows, schema=TRACED)
    return found.sort(
        _order("corruption", CORRUPTIONS),
        "restored",
        _order("sublayer", SUBLAYERS),
        _order("position", POSITIONS),
        "block",
    )


def _order(column: str, values: tuple[str, ...]) -> pl.Expr:
    return pl.col(column).replace_strict({v: i for i, v in enumerate(values)}, default=len(values))


def _share(mine: pl.DataFrame) -> dict[str, Any]:
    effect, taken = mine["effect"].to_numpy(), mine["taken"].to_numpy()
    told = {"facts": len(mine), "effect": float(effect.mean())}
    if taken.sum() <= 0:
        return told
    told["share"] = float(effect.sum() / taken.sum())
    if len(mine) < FEWEST:
        return told
    counts = _draws(len(mine))
    ends = np.quantile((counts @ effect) / (counts @ taken), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return told | {"low": float(ends[0]), "high": float(ends[1])}


@lru_cache(maxsize=32)
def _draws(n: int) -> np.ndarray:
    """(resamples, n): how often each of n facts is drawn."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)


@lru_cache(maxsize=8)
def consistency(study: Study) -> pl.DataFrame:
    """One row per corruption, number of restored blocks and sub-layer: do ways of asking for a fact agree on where?

    ``rho`` is the mean over facts of Spearman's ρ, over places (position × block), between two paraphrases of one fact
    that the model knows, with a bootstrap's 95% interval over facts. ``others`` is the same between two paraphrases of
    two *different* facts of one relation, over all pairs of these: what prompts of the kind have in common.
    ``difference`` is ``rho`` less ``others``, by the same bootstrap; null where no relation has two facts.
    ``same_peak`` is the share of pairs whose largest effect lies at the same position and within one block.
    """
    rows = []
    for key, mine in _traced_rows(study).group_by(ARM, maintain_order=True):
        maps = _maps(mine)
        facts = sorted({fact for fact, _ in maps})
        own = {fact: [m for (f, _), m in sorted(maps.items()) if f == fact] for fact in facts}
        pairs = {fact: list(combinations(mine_, 2)) for fact, mine_ in own.items() if len(mine_) > 1}
        if len(pairs) < FEWEST:
            continue
        every = [pair for each in pairs.values() for pair in each]
        told = dict(zip(_AGREED, _agreed(mine, maps), strict=True))
        rows.append(dict(zip(ARM, key, strict=True)) | {"facts": len(pairs), "pairs": len(every)} | told | {
            "same_peak": float(np.mean([_same_peak(a, b) for a, b in every])),
        })  # fmt: skip
    return pl.DataFrame(rows, schema=CONSISTENT).sort(
        _order("corruption", CORRUPTIONS), "restored", _order("sublayer", SUBLAYERS)
    )


Map = dict[tuple[str, int], float]
_AGREED = ("rho", "low", "high", "others", "difference", "difference_low", "difference_high")


def _maps(mine: pl.DataFrame) -> dict[tuple[str, int], Map]:
    """(fact, paraphrase) → place → effect."""
    found: dict[tuple[str, int], Map] = {}
    for r in mine.select("fact", "paraphrase", "position", "block", "effect").iter_rows(named=True):
        found.setdefault((r["fact"], r["paraphrase"]), {})[r["position"], r["block"]] = r["effect"]
    return found


def _agreed(mine: pl.DataFrame, maps: dict[tuple[str, int], Map]) -> list[float | None]:
    """ρ of ways of asking for one fact and for others of its relation, their difference, and intervals over facts."""
    kinds = {r[0]: r[1:] for r in mine.select("fact", "source", "relation").unique(maintain_order=True).rows()}
    keys, rho = list(maps), _correlations(list(maps.values()))
    facts, ways = (np.array([key[i] for key in keys]) for i in (0, 1))
    names = sorted(kinds)
    one_hot = (facts == np.array(names)[:, None]).astype(float)
    told = np.isfinite(rho) & (ways[:, None] != ways)
    sums, counts = (one_hot @ np.where(told, x, 0.0) @ one_hot.T for x in (rho, 1.0))
    with np.errstate(invalid="ignore"):
        means = sums / counts
    alike = np.array([[kinds[a] == kinds[b] for b in names] for a in names]) & ~np.eye(len(names), dtype=bool)
    own, cross, paired = np.diagonal(means), np.nan_to_num(means), (alike & (counts > 0)).astype(float)
    drawn = np.vstack([np.ones(len(names)), _draws(len(names))])
    has = np.isfinite(own).astype(float)
    with np.errstate(invalid="ignore"):
        same = (drawn @ np.nan_to_num(own)) / (drawn @ has)
        others = ((drawn @ (cross * paired)) * drawn).sum(axis=1) / ((drawn @ paired) * drawn).sum(axis=1)
    found: list[float | None] = [float(same[0]), *_ends(same[1:])]
    if not paired.any():
        return [*found, None, None, None, None]
    return [*found, float(others[0]), float(same[0] - others[0]), *_ends((same - others)[1:])]


def _ends(drawn: np.ndarray) -> list[float]:
    return np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()


def _correlations(maps: list[Map]) -> np.ndarray:
    """Spearman's ρ of every two maps over the places that both have; NaN of few places, and where nothing varies."""
    kinds: dict[frozenset[tuple[str, int]], list[int]] = {}
    for i, each in enumerate(maps):
        kinds.setdefault(frozenset(each), []).append(i)
    found = np.full((len(maps), len(maps)), np.nan)
    for a, rows in kinds.items():
        for b, columns in kinds.items():
            places = sorted(a & b)
            if len(places) >= FEWEST:
                one, other = (_standing([[maps[i][p] for p in places] for i in each]) for each in (rows, columns))
                found[np.ix_(rows, columns)] = one @ other.T
    return found


def _standing(values: list[list[float]]) -> np.ndarray:
    """Ranks of each row less their mean, of length 1; NaN where all are alike."""
    ranks = stats.rankdata(np.array(values), axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    length = np.linalg.norm(ranks, axis=1, keepdims=True)
    return np.asarray(ranks / np.where(length > 0, length, np.nan))


def _same_peak(a: Map, b: Map) -> bool:
    (at, block), (at_b, block_b) = max(a, key=lambda p: a[p]), max(b, key=lambda p: b[p])
    return at == at_b and abs(block - block_b) <= 1


@lru_cache(maxsize=8)
def traced_sensitivity(study: Study) -> pl.DataFrame:
    """One row per corruption, number of restored blocks, sub-layer and position: is it sensitive where facts are?

    Spearman's ρ, over places (block × sub-layer), of what restoring the place gives back with the sensitivity Σ|g·w|
    of the place's last matrix; the sub-layers apart and together, position by position and at the position that gives
    back most. The 95% interval is a bootstrap over facts and blocks at once: places of a block are drawn together.
    """
    table = traced_effects(study)
    rows = []
    for (corruption, restored), mine in table.group_by("corruption", "restored", maintain_order=True):
        for sublayer in (BOTH, *SUBLAYERS[1:]):
            part = mine if sublayer == BOTH else mine.filter(pl.col("sublayer") == sublayer)
            for position in (BEST, *(p for p in POSITIONS if p in mine["position"])):
                at = part if position == BEST else part.filter(pl.col("position") == position)
                if (row := _correlated(at)) is not None:
                    rows.append({"corruption": corruption, "restored": restored, "sublayer": sublayer,
                                 "position": position} | row)  # fmt: skip
    return pl.DataFrame(rows, schema=SENSITIVE)


def traced_effects(study: Study) -> pl.DataFrame:
    """One row per fact and place that has a sensitivity: the effect, paraphrases averaged."""
    table = _traced_rows(study).drop_nulls("sensitivity")
    keys = [*ARM, "position", "block", "fact"]
    return table.group_by(keys, maintain_order=True).agg(pl.col("effect").mean(), pl.col("sensitivity").first())


def _correlated(at: pl.DataFrame) -> dict[str, Any] | None:
    facts = at["fact"].unique(maintain_order=True).to_list()
    places = at.select("block", "sublayer").unique(maintain_order=True).rows()
    if len(facts) < FEWEST or len(places) < FEWEST + 1:
        return None
    positions = at["position"].unique(maintain_order=True).to_list()
    cube = np.full((len(facts), len(positions), len(places)), np.nan)
    where = [{v: i for i, v in enumerate(each)} for each in (facts, positions, places)]
    sensitivity = np.full(len(places), np.nan)
    for r in at.iter_rows(named=True):
        place = where[2][r["block"], r["sublayer"]]
        cube[where[0][r["fact"]], where[1][r["position"]], place] = r["effect"]
        sensitivity[place] = r["sensitivity"]
    blocks = np.array([block for block, _ in places])
    value = weighted_spearman(_best(cube), sensitivity)
    if np.isnan(value):
        return None
    ends = np.nanquantile(_drawn(cube, sensitivity, blocks), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"places": len(places), "facts": len(facts), "rho": value, "low": float(ends[0]), "high": float(ends[1])}


def _best(cube: np.ndarray) -> np.ndarray:
    """Each place's mean effect over facts, at the position where that is largest."""
    return np.asarray(np.nanmax(np.nanmean(cube, axis=0), axis=0))


def _drawn(cube: np.ndarray, sensitivity: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    rng, names = np.random.default_rng(0), np.unique(blocks)
    groups = [np.flatnonzero(blocks == name) for name in names]
    found = []
    for _ in range(RESAMPLES // 4):
        facts = rng.integers(0, len(cube), len(cube))
        places = np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))])
        found.append(weighted_spearman(_best(cube[facts][:, :, places]), sensitivity[places]))
    return np.array(found)


def place_means(study: Study) -> pl.DataFrame:
    """One row per block and sub-layer with a sensitivity: the largest mean effect over positions, of the first arm."""
    table = traced_effects(study)
    if table.is_empty():
        return table.select("block", "sublayer", "sensitivity", "effect")
    first = table.sort(pl.col("corruption") != "subject", "restored", maintain_order=True).row(0, named=True)
    mine = table.filter(*(pl.col(c) == first[c] for c in ("corruption", "restored")))
    means = mine.group_by("block", "sublayer", "position", maintain_order=True).agg(
        pl.col("effect").mean(), pl.col("sensitivity").first()
    )
    return means.group_by("block", "sublayer", maintain_order=True).agg(
        pl.col("sensitivity").first(), pl.col("effect").max()
    )
