"""One question to studies of several models: does what saves loss in one of them save it in the others?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import polars as pl

from analysis.compression.against import against
from analysis.compression.goals import BY_SENSITIVITY
from analysis.study import Study

#: Rivals that every model's method is held against.
MAGNITUDE, BEST = "magnitude", "best"

FAMILIES: dict[str, Any] = {
    "kind": pl.String, "model": pl.String, "setting": pl.String, "method": pl.String, "candidates": pl.Int64,
    "text": pl.String, "domain": pl.String, "against": pl.String, "rival": pl.String, "saving": pl.Float64,
    "low": pl.Float64, "high": pl.Float64, "seeds": pl.Int64, "diverged": pl.Int64, "rival_diverged": pl.Int64,
    "why_not": pl.String,
}  # fmt: skip


def families(studies: Iterable[tuple[str, Study]]) -> pl.DataFrame:
    """One row per model, setting that all models have, text and rival: what our method saves of the rival's excess NLL.

    Ours is a pruning that nobody has published, or a rule of keeping that goes by gradients: of the ``candidates`` at a
    setting the one with the smallest excess in domain. ``against`` is "magnitude", or "best": the published method (or
    other rule) with the smallest excess on that text. ``saving``, ``low`` and ``high`` are those of
    :func:`analysis.compression.against.against`, each model by itself. ``studies`` are models' names and their studies.
    """
    rows = [row | {"model": model} for model, study in studies for row in _of(study)]
    table = pl.DataFrame(rows, schema=FAMILIES)
    models = table.group_by("kind", "setting").agg(pl.col("model").n_unique().alias("n"))
    every = table.group_by("kind").agg(pl.col("model").n_unique().alias("of"))
    shared = models.join(every, on="kind").filter(pl.col("n") == pl.col("of"))
    return table.join(shared.select("kind", "setting"), on=["kind", "setting"], how="semi", maintain_order="left")


def _of(study: Study) -> Iterator[dict[str, Any]]:
    table = against(study)
    sensitive = (pl.col("kind") == "quantize") & pl.col("method").is_in(BY_SENSITIVITY)
    ours = table.filter(sensitive | ((pl.col("kind") == "prune") & ~pl.col("published")))
    for _, mine in ours.group_by("kind", "setting", maintain_order=True):
        home = mine.filter(pl.col("domain") == "in").sort("diverged", "excess", nulls_last=True)
        if home.is_empty():
            continue
        label, candidates = home["label"][0], home["label"].n_unique()
        for row in mine.filter(pl.col("label") == label).iter_rows(named=True):
            for name, is_it in ((MAGNITUDE, row["rival"] == MAGNITUDE), (BEST, row["best"])):
                if is_it:
                    yield {k: row.get(k) for k in FAMILIES} | {"candidates": candidates, "against": name}
