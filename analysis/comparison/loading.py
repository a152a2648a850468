"""Several studies as one comparison: which models there are, and what each is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from analysis.alike import TEXT, WINDOWS, check_alike
from analysis.names import unit_of, units
from analysis.scores.distribution import scored_tensors
from analysis.study import Study, StudyError, below, load
from analysis.tuning.hardening import origin

MODELS: dict[str, Any] = {
    "model": pl.String, "family": pl.String, "kind": pl.String, "tuning": pl.String, "parameters": pl.Int64,
    "body": pl.Int64, "active": pl.Int64, "layers": pl.Int64, "width": pl.Int64, "experts": pl.Int64,
    "scored": pl.Int64, "vocabulary": pl.Int64, "architecture": pl.String,
}  # fmt: skip

#: What must agree for models to be compared → how it is found in a study.
SAME: dict[str, Callable[[Study], Any]] = TEXT | {"first score": lambda study: _score(study.spec["scores"][0])}


def _score(score: Mapping[str, Any]) -> str:
    return f"{score['metric']} {score['mode']} of {', '.join(score['components'])}"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Studies of several models, one each, in the order of families and sizes; ``sizes`` are to be predicted, and
    studies at ``begun`` have no scores yet.

    ``tuned`` are studies of models that were tuned out of these: no models of their own to families and laws.
    ``populations`` are studies of models with and without a backdoor, one of each base.
    """

    studies: tuple[Study, ...]
    labels: Mapping[str, Mapping[str, str]]
    sizes: tuple[int, ...] = ()
    begun: tuple[str, ...] = ()
    tuned: tuple[Study, ...] = ()
    populations: tuple[Study, ...] = ()

    @property
    def every(self) -> tuple[Study, ...]:
        """All studies that have begun."""
        return tuple(dict.fromkeys((*self.studies, *self.tuned, *self.populations)))

    def facts(self, study: Study) -> dict[str, Any]:
        """What a study's model is, as the run found it or a list of models says; sizes of older studies are null."""
        found: dict[str, Any] = {name: study.resolved.get(name) for name in MODELS}
        found["model"] = model_name(study)
        found["family"] = found["family"] or found["architecture"]
        found |= self.labels.get(found["model"], {})
        found["scored"] = scored_weights(study)
        return found

    @cached_property
    def models(self) -> pl.DataFrame:
        """One row a model: family, kind (dense or moe), tuning, and its numbers of parameters.

        ``body`` leaves out embedding and output head, ``active`` counts those that one token passes, ``scored`` those
        that the study's first score ranks.
        """
        return pl.DataFrame([self.facts(study) for study in self.studies], schema=MODELS)

    def by_name(self, model: str) -> Study:
        """A model's study."""
        return self.studies[self.models["model"].to_list().index(model)]


def scored_weights(study: Study) -> int:
    """How many weights a study's first score ranks."""
    return int(scored_tensors(study, study.spec["scores"][0]["metric"])["n"].sum())


def model_name(study: Study) -> str:
    """A model's name as its tables have it."""
    for table in (study.baselines, study.rankings):
        if len(table):
            return table["model"][0]
    return study.spec["model"]["source"]


def compare(
    locations: Iterable[str | Path], labels: Mapping[str, Mapping[str, str]] | None = None, sizes: Sequence[int] = ()
) -> Comparison:
    """Open the studies at and below these locations.

    Parameters
    ----------
    labels
        Model → family, kind and tuning, where a study's own are to be replaced.
    sizes
        Parameters in blocks of models that weren't measured, for the report to predict.

    Raises
    ------
    StudyError
        If a model has two studies, none is finished enough to be compared, or they can't be compared: other text,
        windows of another length, or rankings of other units than weights. Studies without a score, which only
        compress, tune or damage what is stored, are left out; those of a population are compared by it.

    Example
    -------
    >>> compare(["results/scaling"]).models.select("model", "family", "body")  # doctest: +SKIP
    """
    places = dict.fromkeys(each for location in locations for each in below(location))
    loaded = [*map(load, places)]
    every = [each for each in loaded if each.spec["scores"]]
    studies = [study for study in every if len(study.baselines) and len(study.score_stats)]
    populations = [study for study in loaded if len(study.backdoors)]
    begun = tuple(str(study.location) for study in every if study not in studies)
    if not studies and not populations:
        raise StudyError(_nothing(loaded))
    if other := next((study for study in studies if unit_of(study) != "weight"), None):
        raise StudyError(
            f"{other.location} ranks {units(other)}, and shares and laws are of single weights; name the directories "
            "of studies of weights"
        )
    tuned = _tuned(studies)
    own = [study for study in studies if study not in tuned]
    found = Comparison(tuple(own), labels or {})
    _once(own, found.models["model"].to_list())
    _once(populations, [model_name(study) for study in populations])
    check_alike(studies, SAME)
    check_alike(populations, WINDOWS)
    order = found.models.with_row_index().sort("family", "body", "model", nulls_last=True)["index"].to_list()
    ordered = tuple(own[i] for i in order)
    return Comparison(ordered, labels or {}, tuple(sizes), begun, tuple(tuned), tuple(populations))


def _once(studies: Sequence[Study], names: Sequence[str]) -> None:
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise StudyError(
            f"{twice[0]} has two studies there ({_where(studies, names, twice[0])}); name the directories of those to "
            "compare, one for each model"
        )


def _nothing(studies: Sequence[Study]) -> str:
    """Why none of some studies can be compared, and what to do."""
    for table, told in (
        ("compressions", "what each compression costs, against every other method at its size"),
        ("tunings", "what each tuning gains and forgets, against full tuning and random masks"),
        ("faults", "how likely faults break the model, and what protection buys"),
        ("attacks", "how many flips an adversary needs, arm by arm"),
    ):
        if studies and all(study.spec.get(table) for study in studies):
            where = studies[0].location
            return (
                f"a study of {table} ranks no weights, and models are compared by these; esa report {where} tells "
                f"{told}, one model at a time"
            )
    return "no study there has a baseline and scores yet; run it first"


def _tuned(studies: Sequence[Study]) -> list[Study]:
    """Those of models that were tuned out of another one's here."""
    there = {study.resolved["model"] for study in studies}
    return [study for study in studies if (made := origin(study)) and made["parent"]["fingerprint"] in there]


def _where(studies: Sequence[Study], names: Sequence[str], name: str) -> str:
    """Where the studies of a model are."""
    return " and ".join(str(study.location) for study, each in zip(studies, names, strict=True) if each == name)
