"""Super − control in several studies (models) at once: legend in :mod:`analysis.damage.meta`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.damage.meta import POOLED, WHO, averaged, combined, evidence, strengths
from analysis.damage.paired import kind_of
from analysis.damage.windows import baseline
from analysis.names import DAMAGE, label
from analysis.study import Study

ACROSS: dict[str, Any] = WHO | {
    "perturbation": pl.String, "strength": pl.Float64, "variant": pl.String, "damage": pl.String,
    "control": pl.String, "studies": pl.List(pl.String), "same_windows": pl.Boolean, "kinds": pl.Int64,
    "strengths": pl.Int64, "effects": pl.List(pl.Float64),
} | POOLED | dict.fromkeys(["difference", "difference_low", "difference_high"], pl.Float64)  # fmt: skip


#: Study → its series, of one damage or of one kind of damage.
ByStudy = dict[int, np.ndarray]


def across_studies(studies: Sequence[Study]) -> pl.DataFrame:
    """What at least two studies (models) have: a row per damage and control, one per kind, and one over all kinds.

    The effects of the studies (``effects``, in the order of ``studies``) are pooled as in :func:`combined`, with a
    study in place of a kind. Where studies were evaluated on the same windows (``same_windows``: same text, same
    tokens), windows are resampled jointly for them, which is what makes a base and an instruct model a pair.
    ``difference`` is the second's effect minus the first's, with its bootstrap interval, where there are two studies.

    A kind of several strengths also has a row over the ``strengths`` that all studies with this kind share, averaged
    window by window (``strength`` null). The rows over all kinds (damage "all kinds"), one for each k, take each
    study's mean over the ``kinds`` that all studies have, each over its shared strengths. A few models are no sample of
    models: heterogeneity and prediction from so few say little.
    """
    return _across(tuple(studies))


@lru_cache(maxsize=8)
def _across(studies: tuple[Study, ...]) -> pl.DataFrame:
    # (score, pool, k, control) → kind → damage → study → series
    found: dict[tuple, dict[tuple, dict[tuple, ByStudy]]] = {}
    for at, study in enumerate(studies):
        for one in strengths(study):
            if one.series is not None:
                kinds = found.setdefault((*(one.what[name] for name in WHO), one.control), {})
                kinds.setdefault(kind_of(one.what), {}).setdefault(tuple(one.what.values()), {})[at] = one.series
    # Two studies with the same of these were evaluated on the same windows.
    texts = {
        at: f"{study.resolved['text']} {study.spec['data']['window']} {baseline(study)['tokens'].tolist()}"
        for at, study in enumerate(studies)
        if not study.baselines.is_empty()
    }
    rows: list[dict[str, Any]] = []
    for where, kinds in found.items():
        for damages in kinds.values():
            rows += _of_kind(studies, damages, where[-1], texts)
        everyone = set(range(len(studies)))
        shared = [mine for damages in kinds.values() if (mine := _shared(list(damages.values()), everyone))[0]]
        if len(shared) > 1 and len(studies) > 1:
            row = dict(zip([*WHO, "control"], where, strict=True)) | {"damage": "all kinds", "kinds": len(shared)}
            row["strengths"] = sum(n for _, n in shared)
            rows.append(row | _studies(studies, [by_study for by_study, _ in shared], texts))
    return pl.DataFrame(rows, schema=ACROSS).sort(pl.col("damage") == "all kinds", maintain_order=True)


def _of_kind(
    studies: tuple[Study, ...], damages: dict[tuple, ByStudy], control: str, texts: dict[int, str]
) -> Iterator[dict[str, Any]]:
    """The rows of one kind of damage: of each strength, and of all that are shared."""
    for key, by_study in damages.items():
        mine, _ = _shared([by_study], {at for at, x in by_study.items() if averaged([x]) is not None})
        if len(mine) > 1:
            row = dict(zip(DAMAGE, key, strict=True))
            row |= {"damage": label(row), "control": control, "kinds": 1, "strengths": 1}
            yield row | _studies(studies, [mine], texts)
    mine, n = _shared(list(damages.values()), set().union(*damages.values()))
    if n > 1 and len(mine) > 1:
        row = dict(zip(DAMAGE, next(iter(damages)), strict=True))
        name = " ".join(filter(None, [label(row | {"strength": None}), kind_of(row)[-1]]))
        row |= {"strength": None, "damage": name, "control": control, "kinds": 1, "strengths": n}
        yield row | _studies(studies, [mine], texts)


def _shared(damages: list[ByStudy], who: set[int]) -> tuple[ByStudy, int]:
    """(study → series averaged over the damages that all of these studies have, how many); empty where one has none."""
    shared = [by_study for by_study in damages if who <= by_study.keys()]
    series = {at: averaged([by_study[at] for by_study in shared]) for at in sorted(who)}
    known = {at: x for at, x in series.items() if x is not None}
    return (known, len(shared)) if len(known) == len(who) else ({}, 0)


def _studies(studies: tuple[Study, ...], kinds: list[dict[int, np.ndarray]], texts: dict[int, str]) -> dict[str, Any]:
    """The effects of each study, a mean over kinds that all of them have, pooled."""
    who = sorted(kinds[0])
    order = [(at, by_study[at]) for at in who for by_study in kinds]
    every = evidence([series for _, series in order], [texts[at] for at, _ in order])
    shares = np.array([[(at == mine) / len(kinds) for at, _ in order] for mine in who])
    found = every.averaged(shares)
    same, names = len({texts[at] for at in who}) == 1, [studies[at].spec["name"] for at in who]
    row: dict[str, Any] = combined(found) | {"studies": names, "same_windows": same, "effects": found.g.tolist()}
    if len(who) == 2:
        change = found.mean_interval(np.array([-1.0, 1.0]))
        row |= dict(zip(["difference", "difference_low", "difference_high"], change, strict=True))
    return row
