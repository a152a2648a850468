"""A population as a table of one row a model, and as a matrix of features; what was left out, by kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.alike import WINDOWS, check_alike
from analysis.security.detection.columns import ALL, SENSITIVITY
from analysis.study import Study
from esa_ray.spec import INSERTIONS, NEGATIVES

#: What tables call the features of all families together, and those but for sensitivity.
EVERY, BUT_SENSITIVITY = ALL, "all but sensitivity"
#: Order of kinds in tables.
KINDS = (*NEGATIVES, *INSERTIONS)
_MODEL = (
    "base", "insertion", "number", "parent", "member_id", "poisoned", "steps", "learning_rate", "status", "error",
    "attack_success", "clean_success", "phrase_success", "clean_delta_nll", "accepted", "n_weights", "n_changed",
    "delta_norm",
)  # fmt: skip

Studies = Study | Sequence[Study]


def studies_of(studies: Studies) -> tuple[Study, ...]:
    """One study or several as a tuple.

    Raises
    ------
    StudyError
        If their models were measured on different windows.
    """
    found = (studies,) if isinstance(studies, Study) else tuple(studies)
    check_alike(found, WINDOWS)
    return found


def _rows(studies: tuple[Study, ...]) -> pl.DataFrame:
    """The tables ``backdoors`` of all studies, one under another."""
    return pl.concat([study.backdoors for study in studies], how="vertical_relaxed")


def population(studies: Studies) -> pl.DataFrame:
    """One row a model, in the order of bases, kinds and numbers: what it is, and whether it is what it should be.

    Columns are those of the table ``backdoors`` that are about the model, without its features.
    """
    order = pl.col("insertion").replace_strict({k: i for i, k in enumerate(KINDS)}, default=9, return_dtype=pl.Int8)
    rows = _rows(studies_of(studies)).select(_MODEL)
    return rows.unique("member_id", keep="first", maintain_order=True).sort("base", order, "number")


def _kept() -> pl.Expr:
    return (pl.col("status") == "ok") & pl.col("accepted").fill_null(value=False)


@dataclass(frozen=True, eq=False)
class Models:
    """The accepted models of a population: arrays (n,) of what each is, and its features (n, p).

    Features that couldn't be told are NaN.
    """

    base: np.ndarray
    parent: np.ndarray
    number: np.ndarray
    kind: np.ndarray
    steps: np.ndarray
    learning_rate: np.ndarray
    values: np.ndarray
    features: tuple[str, ...]
    families: tuple[str, ...]
    referring: np.ndarray

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def poisoned(self) -> np.ndarray:
        """Which hold a backdoor."""
        return np.isin(self.kind, INSERTIONS)

    @property
    def bases(self) -> list[str]:
        """The bases, in order."""
        return sorted(set(self.base.tolist()))

    @property
    def insertions(self) -> list[str]:
        """The insertions that there are models of, in order."""
        return [kind for kind in INSERTIONS if (self.kind == kind).any()]

    def chosen(self, of: str, *, reference: bool) -> np.ndarray:
        """Places of a set's features: "all", "all but sensitivity", or families joined by "+"."""
        families = np.array(self.families)
        allowed = np.full(len(families), True) if reference else ~self.referring
        if of == EVERY:
            return np.flatnonzero(allowed)
        mine = ~np.isin(families, SENSITIVITY) if of == BUT_SENSITIVITY else np.isin(families, of.split("+"))
        return np.flatnonzero(allowed & mine)

    def of(self, mine: np.ndarray) -> Models:
        """The models that a mask chooses."""
        names = ("base", "parent", "number", "kind", "steps", "learning_rate", "values")
        arrays: dict[str, Any] = {name: getattr(self, name)[mine] for name in names}
        return Models(**arrays, features=self.features, families=self.families, referring=self.referring)


def models(studies: Studies) -> Models:
    """The accepted models of some studies, as arrays."""
    return _models(studies_of(studies))


@lru_cache(maxsize=8)
def _models(studies: tuple[Study, ...]) -> Models:
    kept = population(studies).filter(_kept())
    rows = _rows(studies).drop_nulls("feature").unique(["member_id", "feature"], keep="first", maintain_order=True)
    told = rows.unique("feature", keep="first", maintain_order=True).sort("with_reference", "family", "feature")
    names = told["feature"].to_list()
    wide = rows.pivot("feature", index="member_id", values="value") if names else kept.select("member_id")
    values = kept.select("member_id").join(wide, on="member_id", how="left", maintain_order="left").select(names)
    matrix = values.cast(pl.Float64).fill_null(float("nan")).to_numpy() if names else np.zeros((len(kept), 0))
    arrays = {c: kept[c].to_numpy() for c in ("number", "steps", "learning_rate")}
    words = {c: kept[c].to_numpy().astype(str) for c in ("base", "parent")}
    return Models(
        **arrays, **words, kind=kept["insertion"].to_numpy().astype(str),
        values=np.where(np.isfinite(matrix), matrix, np.nan), features=tuple(names), families=tuple(told["family"]),
        referring=told["with_reference"].to_numpy().astype(bool),
    )  # fmt: skip
