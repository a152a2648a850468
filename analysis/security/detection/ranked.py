"""Each feature alone: which of them differ between models with a backdoor and those without, and by how much."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.security.detection.columns import ALL, RANKED
from analysis.security.detection.scored import sizes, too_few
from analysis.security.detection.table import Models, Studies, models, studies_of
from analysis.statistics.inference import corrected
from analysis.statistics.roc import Scored, area, influences
from analysis.study import Study


def ranked(studies: Studies) -> pl.DataFrame:
    """One row per insertion and feature, the best first; columns are RANKED.

    Nothing is trained. Where a feature couldn't be told of a model, that model isn't counted. Which end of a feature
    betrays a backdoor isn't chosen here either: AUROCs below ½ say that it is the small one.
    """
    return _ranked(studies_of(studies))


@lru_cache(maxsize=8)
def _ranked(studies: tuple[Study, ...]) -> pl.DataFrame:
    of = models(studies)
    insertions = [ALL, *of.insertions] if len(of.insertions) > 1 else [ALL]
    tables = [_of_insertion(of, insertion) for insertion in insertions]
    return pl.concat(tables).select(list(RANKED))


def _of_insertion(of: Models, insertion: str) -> pl.DataFrame:
    here = ~of.poisoned | (of.kind == insertion) if insertion != ALL else np.full(len(of), True)
    rows = [{"insertion": insertion} | row for row in _rows(of, here)]
    table = pl.DataFrame(rows, schema={k: v for k, v in RANKED.items() if k not in ("rank", "q")})
    table = corrected(table, q="fdr_bh") if table["p"].count() else table.with_columns(q=pl.lit(None, pl.Float64))
    table = table.sort((pl.col("auroc") - 0.5).abs(), descending=True, nulls_last=True, maintain_order=True)
    return table.with_columns(rank=pl.when(pl.col("auroc").is_not_null()).then(pl.int_range(1, len(table) + 1)))


def _rows(of: Models, here: np.ndarray) -> Iterator[dict[str, Any]]:
    for i, name in enumerate(of.features):
        mine = np.flatnonzero(here & np.isfinite(of.values[:, i]))
        told = {"feature": name, "family": of.families[i], "with_reference": bool(of.referring[i])}
        row: dict[str, Any] = told | sizes(of, mine)
        why = too_few(of, mine)
        yield row | ({"why_not": why} if why else _alone(of, mine, of.values[mine, i]))


def _alone(of: Models, mine: np.ndarray, value: np.ndarray) -> dict[str, Any]:
    base, parent = (np.unique(each[mine], return_inverse=True)[1] for each in (of.base, of.parent))
    scored = Scored(value, of.poisoned[mine], base, parent, base)
    if not scored.strata:
        return {"why_not": "no base has both models with a backdoor and without"}
    found = area(scored)
    bases = [scored.of(base == b) for b in np.unique(base)]
    each = [influences(one)[0] for one in bases if one.strata]
    return {"auroc": found.value, "low": found.interval.low, "high": found.interval.high, "p": found.p,
            "lowest": min(each), "highest": max(each)}  # fmt: skip
