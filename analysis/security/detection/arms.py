"""What of detection is the backdoor: the same detectors against clean models alone, and against memorised phrases."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import polars as pl

from analysis.security.detection.columns import ALL, ARMS, FEWEST
from analysis.security.detection.folds import TWIN_KNOWN
from analysis.security.detection.scored import Tested, out_of_fold
from analysis.security.detection.table import Models, Studies, models, studies_of
from analysis.statistics.roc import Scored, area
from analysis.study import Study
from esa_ray.spec import INSERTIONS, NEGATIVES
from esa_ray.spec.backdoors import BENIGN, COUNTERPARTS

CLEAN = "clean"


def arms(studies: Studies) -> pl.DataFrame:
    """One row per arm, reference, base and insertion, of parents that training hadn't; columns are ARMS.

    A detector that is judged against clean models alone finds whatever training on anything rare leaves. What it knows
    of the backdoor is what is left against models that memorised something harmless.
    """
    return _arms(studies_of(studies))


@lru_cache(maxsize=8)
def _arms(studies: tuple[Study, ...]) -> pl.DataFrame:
    return arms_of(models(studies))


def arms_of(of: Models) -> pl.DataFrame:
    """The arms of models at hand."""
    references = [ref for ref in (False, True) if not ref or of.referring.any()] if len(of) else []
    return pl.DataFrame([row for ref in references for row in _rows(of, ref)], schema=ARMS)


def _rows(of: Models, reference: bool) -> Iterator[dict[str, Any]]:
    every, insertions = [ALL, *of.insertions], np.isin(of.kind, INSERTIONS)
    benign = np.isin(of.kind, BENIGN)
    alone = _tested(of, insertions | (of.kind == CLEAN), reference)
    whole = out_of_fold(of, "seen", reference=reference)
    yield from _judged("clean alone", alone, reference, ((kind, _of(kind), [CLEAN]) for kind in every))
    for kind in of.insertions:
        twins = _tested(of, np.isin(of.kind, [kind, COUNTERPARTS[kind]]), reference)
        yield from _judged("counterpart alone", twins, reference, [(kind, [kind], [COUNTERPARTS[kind]])])
    if benign.any():
        yield from _judged("memorised", whole, reference, ((kind, _of(kind), BENIGN) for kind in every))
        yield from _judged("benign against clean", whole, reference, [(ALL, BENIGN, [CLEAN])])
    if len(of.insertions) > 1 and {COUNTERPARTS[kind] for kind in of.insertions} <= set(of.kind.tolist()):
        known = out_of_fold(of, TWIN_KNOWN, reference=reference)
        yield from _judged(TWIN_KNOWN, known, reference, [(ALL, INSERTIONS, NEGATIVES)])


def _of(insertion: str) -> tuple[str, ...]:
    return INSERTIONS if insertion == ALL else (insertion,)


def _tested(of: Models, mine: np.ndarray, reference: bool) -> Tested:
    return out_of_fold(of.of(mine), "seen", reference=reference)


def _judged(arm: str, found: Tested, reference: bool, pairs: Any) -> Iterator[dict[str, Any]]:
    """A row per base and (insertion, kinds to be found, kinds that they are told from)."""
    bases = sorted(set(found.models.base.tolist()))
    for (insertion, kinds, others), base in product(pairs, [ALL, *bases] if len(bases) > 1 else [ALL]):
        mine = np.isin(found.kind, [*kinds, *others]) & found.where(base)
        at = {"arm": arm, "reference": reference, "base": base, "insertion": insertion}
        yield at | _row(found, mine, np.isin(found.kind, kinds))


def _row(found: Tested, mine: np.ndarray, positive: np.ndarray) -> dict[str, Any]:
    m, n = (len(np.unique(found.at[mine & its])) for its in (positive, ~positive))
    row = {"poisoned": m, "others": n, "parents": len(set(found.models.parent[found.at[mine]].tolist()))}
    if min(m, n) < FEWEST:
        return row | {"why_not": f"{m} models to be found and {n} others; {FEWEST} of each are needed to tell"}
    told = found.scored(mine)
    whole = area(Scored(told.score, positive[mine], told.stratum, told.cluster, told.block))
    return row | {"auroc": whole.value, "low": whole.interval.low, "high": whole.interval.high}
