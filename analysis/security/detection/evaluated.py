"""How well detectors tell models with a backdoor from those without, on parents, insertions and bases unseen."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import polars as pl

from analysis.security.detection.columns import ALL, DETECTION, ROC, SCHEMES
from analysis.security.detection.null import permuted
from analysis.security.detection.scored import Tested, out_of_fold, sizes, too_few
from analysis.security.detection.table import Models, Studies, models, studies_of
from analysis.statistics.roc import area, found_share
from analysis.study import Study

#: Share of the models without a backdoor that may raise an alarm.
ALARMS = 0.05
#: False-positive rates at which curves are told.
GRID = np.linspace(0, 1, 101)


def detection(studies: Studies) -> pl.DataFrame:
    """One row per scheme, reference, base, insertion and negatives; columns are DETECTION.

    Detectors are L2 logistic regressions on standardised features (:mod:`analysis.security.detection.classifier`).
    Intervals speak of further models of these kinds from further parents of these bases, for the detectors at hand
    (:func:`analysis.statistics.roc.area`). By simulation (30 models a kind, 10 parents) they hold what detectors
    trained on further such populations reach on average in 96% with 8 features and 90% with 40; the estimate lies 0.01
    below that, as scores of several detectors share a scale that differs a little between them.
    """
    return _detection(studies_of(studies))


@lru_cache(maxsize=8)
def _detection(studies: tuple[Study, ...]) -> pl.DataFrame:
    rows = [row for one in views(models(studies)) for row in _rows(*one)]
    table = pl.DataFrame(rows, schema={k: v for k, v in DETECTION.items() if k != "p"})
    chance = permuted(studies).select("scheme", "reference", "p").with_columns(
        base=pl.lit(ALL), insertion=pl.lit(ALL), negatives=pl.lit(ALL)
    )  # fmt: skip
    keys = ["scheme", "reference", "base", "insertion", "negatives"]
    return table.join(chance, on=keys, how="left", maintain_order="left").select(list(DETECTION))


def views(of: Models) -> list[tuple[Models, str, bool]]:
    """Every scheme, without a reference and with one where a feature needs it."""
    return [(of, scheme, ref) for scheme, ref in product(SCHEMES, (False, True)) if not ref or of.referring.any()]


def _rows(of: Models, scheme: str, reference: bool) -> Iterator[dict[str, Any]]:
    found = out_of_fold(of, scheme, reference=reference)
    at = {"scheme": scheme, "reference": reference}
    if not len(found.at):
        empty = dict.fromkeys(("base", "insertion", "negatives"), ALL) | {"poisoned": 0, "others": 0, "parents": 0}
        yield at | empty | {"why_not": why_none(of, scheme, reference)}
        return
    for where in product(*(_choices(names) for names in (of.bases, of.insertions, _negatives(of)))):
        yield at | dict(zip(("base", "insertion", "negatives"), where, strict=True)) | _row(found, found.where(*where))


def why_none(of: Models, scheme: str, reference: bool) -> str:
    """Why a scheme has no fold."""
    if not len(of.chosen(ALL, reference=reference)):
        return "no model has a feature"
    if len(of.bases) < 2 and scheme in ("unseen base", "unseen both"):
        return "a base can only be left out of two or more; give the studies of several"
    if len(of.insertions) < 2 and scheme in ("unseen insertion", "unseen both"):
        return "an insertion can only be left out of two or more"
    return "no detector can be trained: models with and without a backdoor of two parents are needed"


def _choices(names: list[str]) -> list[str]:
    return [ALL, *names] if len(names) > 1 else [ALL]


def _negatives(of: Models) -> list[str]:
    return sorted(set(of.kind[~of.poisoned].tolist()))


def _row(found: Tested, mine: np.ndarray) -> dict[str, Any]:
    at = found.at[mine]
    row: dict[str, Any] = sizes(found.models, at)
    if why := too_few(found.models, at):
        return row | {"why_not": why}
    scored = found.scored(mine)
    whole = area(scored)
    ((tpr, ends),) = found_share(scored, np.array([ALARMS]), whole.design)
    return row | {
        "auroc": whole.value, "low": whole.interval.low, "high": whole.interval.high,
        "tpr": tpr, "tpr_low": ends.low, "tpr_high": ends.high,
    }  # fmt: skip


def roc_curves(studies: Studies) -> pl.DataFrame:
    """One row per scheme, reference, insertion and point of a curve; columns are ROC.

    The threshold is each stratum's own: that of a base's detectors and, where insertions are left out, of those without
    the one that is tested. Classes of fewer than 30 models have no curve.
    """
    return _curves(studies_of(studies))


@lru_cache(maxsize=8)
def _curves(studies: tuple[Study, ...]) -> pl.DataFrame:
    rows = []
    for of, scheme, reference in views(models(studies)):
        found = out_of_fold(of, scheme, reference=reference)
        for insertion in _choices(of.insertions):
            mine = found.where(insertion=insertion)
            if too_few(of, found.at[mine]) is None:
                at = {"scheme": scheme, "reference": reference, "insertion": insertion}
                rows += [at | point for point in _curve(found, mine)]
    return pl.DataFrame(rows, schema=ROC)


def _curve(found: Tested, mine: np.ndarray) -> Iterator[dict[str, float]]:
    scored = found.scored(mine)
    for fpr, (tpr, ends) in zip(GRID, found_share(scored, GRID, area(scored).design), strict=True):
        yield {"fpr": float(fpr), "tpr": tpr, "low": ends.low, "high": ends.high}
