"""What compressing does to each block's output, and whether that tells what it costs."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from analysis.compression.points import WHO, Point, points
from analysis.statistics.inference import LEVEL
from analysis.study import Study

PERMUTATIONS = 9_999
#: Fewest compressions of which a correlation is told.
FEWEST = 4

BLOCKS: dict[str, Any] = WHO | {
    "layer": pl.Int64, "error": pl.Float64, "least": pl.Float64, "most": pl.Float64, "sparsity": pl.Float64,
    "seeds": pl.Int64,
}  # fmt: skip
ERRORS: dict[str, Any] = {
    "kind": pl.String, "text": pl.String, "domain": pl.String, "speaks_of": pl.String, "compressions": pl.Int64,
    "spearman": pl.Float64, "low": pl.Float64, "high": pl.Float64, "p": pl.Float64, "why_not": pl.String,
}  # fmt: skip


@lru_cache(maxsize=8)
def block_errors(study: Study) -> pl.DataFrame:
    """One row per compression and block, first block 0: the relative error of its output, of the text in domain.

    ``error`` is ΣΔᵢHΔᵢᵀ over ΣwᵢHwᵢᵀ of the block's tensors, with H of the inputs that they saw, averaged over
    calibration seeds; ``least`` and ``most`` are the extreme seeds. ``sparsity`` is the share of the block's weights
    that left. Errors come from calibration, so they are the same for all texts. Blocks of which nothing was compressed
    have no row.
    """
    rows = [row for p in points(study) if p.domain == "in" for row in _blocks(p)]
    return pl.DataFrame(rows, schema=BLOCKS)


def _blocks(p: Point) -> list[dict[str, Any]]:
    told = p.rows.drop_nulls("block_error")
    if told.is_empty():
        return []
    errors = np.array(told["block_error"].to_list(), float)
    shares = told["block_sparsity"].drop_nulls().to_list()
    left = np.array(shares, float).mean(axis=0) if shares else np.full(errors.shape[1], np.nan)
    return [
        p.who | {
            "layer": i, "error": errors[:, i].mean(), "least": errors[:, i].min(), "most": errors[:, i].max(),
            "sparsity": left[i] if np.isfinite(left[i]) else None, "seeds": len(errors),
        } for i in range(errors.shape[1]) if not np.isnan(errors[:, i]).any()
    ]  # fmt: skip


@lru_cache(maxsize=8)
def error_correlations(study: Study) -> pl.DataFrame:
    """One row per kind of compression, text and question: does the summed block error rank the excess NLL?

    ``spearman`` is the rank correlation over compressions of the sum of block errors and the excess. ``speaks_of`` all:
    over all settings, which are easy to rank by how much they remove; equal size: ranks within each setting, centred
    (the mean rank of the setting taken off), which is what choosing a method needs. The interval is Fisher's, for
    further compressions if these are a sample of them; ``p`` is that of permutations (within settings for equal size).
    """
    rows = list[dict[str, Any]]()
    where = dict.fromkeys((p.what["kind"], p.text, p.domain) for p in points(study))
    for kind, text, domain in where:
        mine = [p for p in points(study) if (p.what["kind"], p.text) == (kind, text)]
        mine = [p for p in mine if p.excess and p.rows["block_error"].is_not_null().any() and np.isfinite(_summed(p))]
        if not mine:
            continue
        x, y = np.array([_summed(p) for p in mine]), np.array([np.mean(list(p.excess.values())) for p in mine])
        settings = [p.setting for p in mine]
        common = {"kind": kind, "text": text, "domain": domain}
        for question, strata in (("all", [()] * len(mine)), ("equal size", settings)):
            rows.append(common | {"speaks_of": question} | _correlated(x, y, strata))
    return pl.DataFrame(rows, schema=ERRORS)


def _summed(p: Point) -> float:
    return float(np.mean([sum(x for x in e if x is not None) for e in p.rows["block_error"].drop_nulls().to_list()]))


def _correlated(x: np.ndarray, y: np.ndarray, strata: list[tuple]) -> dict[str, Any]:
    groups = [np.flatnonzero([s == one for s in strata]) for one in dict.fromkeys(strata)]
    groups = [g for g in groups if len(g) > 1]
    n = sum(map(len, groups))
    if n - len(groups) < FEWEST - 1:
        return {"compressions": n, "why_not": f"fewer than {FEWEST} compressions to compare"}
    a, b = (np.concatenate([_centred_ranks(v[g]) for g in groups]) for v in (x, y))
    if not (a.any() and b.any()):
        return {"compressions": n, "why_not": "all are alike"}
    rho, low, high = _fisher(a, b, n - len(groups) + 1)
    rng, sizes = np.random.default_rng(0), [len(g) for g in groups]
    parts = np.split(b, np.cumsum(sizes)[:-1])
    drawn = np.hstack([rng.permuted(np.tile(part, (PERMUTATIONS, 1)), axis=1) for part in parts]) @ a
    p = (1 + int((np.abs(drawn) >= abs(a @ b) * (1 - 1e-12)).sum())) / (1 + PERMUTATIONS)
    return {"compressions": n, "spearman": rho, "low": low, "high": high, "p": p}


def _centred_ranks(v: np.ndarray) -> np.ndarray:
    ranks = stats.rankdata(v)
    return ranks - ranks.mean()


def _fisher(a: np.ndarray, b: np.ndarray, n: int) -> tuple[float, float, float]:
    """ρ and its interval by Fisher's z, with Bonett and Wright's (2000) variance for ranks."""
    rho = float(a @ b / np.sqrt((a @ a) * (b @ b)))
    z, half = np.arctanh(np.clip(rho, -0.9999, 0.9999)), stats.norm.ppf((1 + LEVEL) / 2)
    half *= np.sqrt((1 + rho**2 / 2) / max(n - 3, 1))
    return rho, float(np.tanh(z - half)), float(np.tanh(z + half))
