"""What sensitivity adds to the spectra of weights, and what each family of features finds alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.security.detection.columns import NESTED, SENSITIVITY
from analysis.security.detection.evaluated import views, why_none
from analysis.security.detection.scored import Tested, out_of_fold, sizes, too_few
from analysis.security.detection.table import BUT_SENSITIVITY, EVERY, Models, Studies, models, studies_of
from analysis.statistics.inference import holm_within
from analysis.statistics.roc import Scored, area, difference
from analysis.study import Study

#: The family that sensitivity is to add to: it needs no text and no gradient.
PLAIN = "spectra"


def nested(studies: Studies) -> pl.DataFrame:
    """One row per scheme, reference and pair of sets, or set alone; columns are NESTED.

    Both detectors of a pair are trained and tested in the same folds, with the same prior on log-odds, so that the
    larger set isn't punished for its size; the difference of their AUROCs is paired by model
    (:func:`analysis.statistics.roc.difference`). It speaks of further parents for the detectors at hand.
    """
    return _nested(studies_of(studies))


@lru_cache(maxsize=8)
def _nested(studies: tuple[Study, ...]) -> pl.DataFrame:
    rows = [
        {"scheme": scheme, "reference": reference, "fewer": fewer, "more": more}
        | _row(of, scheme, fewer, more, reference=reference)
        for of, scheme, reference in views(models(studies)) for fewer, more in _pairs(of, reference=reference)
    ]  # fmt: skip
    table = pl.DataFrame(rows, schema={k: v for k, v in NESTED.items() if k != "p_holm"}).with_columns(_f=pl.lit(0))
    return table.with_columns(holm_within(table, ["_f"], "p").alias("p_holm")).select(list(NESTED))


def _pairs(of: Models, *, reference: bool) -> Iterator[tuple[str | None, str]]:
    """(smaller set or None, larger set) of those that there are features of."""
    there = [f for f in dict.fromkeys(of.families) if len(of.chosen(f, reference=reference))]
    sensitive = [f for f in SENSITIVITY if f in there]
    if sensitive and PLAIN in there:
        yield PLAIN, "+".join([PLAIN, *sensitive])
    if sensitive and len(there) > len(sensitive):
        yield BUT_SENSITIVITY, EVERY
    yield from ((None, family) for family in there)
    if len(sensitive) > 1:
        yield None, "+".join(sensitive)


def _row(of: Models, scheme: str, fewer: str | None, more: str, *, reference: bool) -> dict[str, Any]:
    large = out_of_fold(of, scheme, more, reference=reference)
    row: dict[str, Any] = sizes(of, large.at) | {"n_features": len(of.chosen(more, reference=reference))}
    if not len(large.at):
        return row | {"why_not": why_none(of, scheme, reference)}
    if why := too_few(of, large.at):
        return row | {"why_not": why}
    whole = area(_all(large))
    row |= {"auroc_more": whole.value}
    if fewer is None:
        return row | {"low": whole.interval.low, "high": whole.interval.high}
    small = out_of_fold(of, scheme, fewer, reference=reference)
    found = difference(_all(large), _all(small))
    row |= {"auroc_fewer": area(_all(small)).value, "difference": found.value}
    if np.isnan(found.p):
        return row | {"why_not": "both sets err on the same models, or neither errs; nothing tells them apart"}
    return row | {"low": found.interval.low, "high": found.interval.high, "p": found.p}


def _all(tested: Tested) -> Scored:
    return tested.scored(np.full(len(tested.at), True))
