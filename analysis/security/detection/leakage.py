"""What must be at chance: how models were made tells nothing of their kind, and two clean groups aren't told apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.security.detection.columns import FEWEST, LEAKAGE
from analysis.security.detection.null import null
from analysis.security.detection.scored import out_of_fold, sizes
from analysis.security.detection.table import Models, Studies, models, studies_of
from analysis.statistics.inference import holm_within
from analysis.statistics.roc import area
from analysis.study import Study
from esa_ray.spec import INSERTIONS

#: Clean models of a half from which on halves are compared.
FEWEST_OF_HALF = 15
SURE = 0.05


def leakage(studies: Studies) -> pl.DataFrame:
    """One row per check, each of which must be at chance; columns are LEAKAGE.

    "recipe": detectors that know steps, log learning rate, number and their squares, and no feature. Models of one
    number share all of these, so only what was left out of the population, models that failed or weren't accepted, can
    make them differ. "clean halves": of the clean models of each parent a random half is called poisoned, and the
    detector is trained on every feature. Both go through the folds of "seen", and labels are permuted within parents.
    """
    return _leakage(studies_of(studies))


@lru_cache(maxsize=8)
def _leakage(studies: tuple[Study, ...]) -> pl.DataFrame:
    of = models(studies)
    rows = [{"check": name} | _row(*check) for name, check in _checks(of)] if len(of) else []
    table = pl.DataFrame(rows, schema=LEAKAGE).with_columns(_family=pl.lit(0))
    sure = (holm_within(table, ["_family"], "p") < SURE).fill_null(value=False)
    leaks = pl.when(sure & (pl.col("low") > 0.5)).then(pl.lit("fails")).otherwise(pl.lit("holds"))
    return table.with_columns(status=pl.when(pl.col("p").is_not_null()).then(leaks).otherwise(pl.lit("open"))).select(
        list(LEAKAGE)
    )  # fmt: skip


def _checks(of: Models) -> Iterator[tuple[str, tuple[Models, bool, int]]]:
    yield "recipe", (recipes(of), False, FEWEST)
    halves = clean_halves(of)
    yield "clean halves", (halves, False, FEWEST_OF_HALF)
    if of.referring.any():
        yield "clean halves with reference", (halves, True, FEWEST_OF_HALF)


def recipes(of: Models) -> Models:
    """The same models with what their recipe says for features."""
    linear = np.column_stack([of.steps, np.log(of.learning_rate), of.number]).astype(float)
    centred = linear - linear.mean(axis=0)
    names = ("steps", "log learning rate", "number")
    return replace(
        of, values=np.column_stack([centred, centred**2]), features=(*names, *(f"{n} squared" for n in names)),
        families=("recipe",) * 6, referring=np.zeros(6, bool),
    )  # fmt: skip


def clean_halves(of: Models, seed: int = 0) -> Models:
    """The clean models, a random half of each parent's called poisoned; of an odd number one more, by turns."""
    clean = of.of(of.kind == "clean")
    kind, rng, more = clean.kind.astype(f"U{max(map(len, INSERTIONS))}"), np.random.default_rng(seed), 0
    for parent in dict.fromkeys(clean.parent.tolist()):
        mine = rng.permutation(np.flatnonzero(clean.parent == parent))
        kind[mine[: (len(mine) + more) // 2]] = INSERTIONS[0]
        more ^= len(mine) % 2
    return replace(clean, kind=kind)


def _row(of: Models, reference: bool, fewest: int) -> dict[str, Any]:
    parents = np.unique(of.parent, return_inverse=True)[1]
    found = out_of_fold(of, "seen", reference=reference)
    row: dict[str, Any] = sizes(of, found.at)
    chance = null(of, "seen", reference=reference, blocks=parents, fewest=fewest)
    if chance["why_not"]:
        return row | {"why_not": chance["why_not"]}
    whole = area(found.scored(np.full(len(found.at), True)))
    return row | {"auroc": whole.value, "low": whole.interval.low, "high": whole.interval.high, "p": chance["p"]}
