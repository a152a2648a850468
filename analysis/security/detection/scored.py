"""Scores of models by detectors that knew neither them nor their parents, ready to be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from analysis.security.detection.classifier import fit
from analysis.security.detection.columns import ALL, FEWEST
from analysis.security.detection.folds import Fold, folds
from analysis.security.detection.table import EVERY, Models
from analysis.statistics.roc import Scored


@dataclass(frozen=True, eq=False)
class Tested:
    """One row a tested model and detector's view of the world: ``at`` is its place among the models, (n,) each."""

    models: Models
    at: np.ndarray
    stratum: np.ndarray
    left_out: np.ndarray
    score: np.ndarray

    @property
    def kind(self) -> np.ndarray:
        """How each was made."""
        return self.models.kind[self.at]

    @property
    def poisoned(self) -> np.ndarray:
        """Which hold a backdoor."""
        return self.models.poisoned[self.at]

    def where(self, base: str = ALL, insertion: str = ALL, negatives: str = ALL) -> np.ndarray:
        """Mask of the rows about a base, an insertion and some of the others."""
        mine = self.models.base[self.at] == base if base != ALL else np.full(len(self.at), True)
        kind = (self.kind == insertion) | ~self.poisoned if insertion != ALL else True
        world = np.isin(self.left_out, ("", insertion)) if insertion != ALL else True
        others = self.poisoned | (self.kind == negatives) if negatives != ALL else True
        return mine & kind & world & others

    def scored(self, mine: np.ndarray) -> Scored:
        """Rows as they are compared: within strata, clustered by parents, parents drawn within bases."""
        at = self.at[mine]
        code = [np.unique(each, return_inverse=True)[1]
                for each in (self.stratum[mine], self.models.parent[at], self.models.base[at])]  # fmt: skip
        return Scored(self.score[mine], self.models.poisoned[at], *code)


@lru_cache(maxsize=256)
def out_of_fold(models: Models, scheme: str, of: str = EVERY, *, reference: bool = False) -> Tested:
    """Every tested model's log-odds by a scheme's detectors, trained on a set of features; empty where none trains."""
    columns = models.chosen(of, reference=reference)
    every = folds(models, scheme) if len(columns) else []
    values, labels = models.values[:, columns], models.poisoned
    scores = [fit(values[f.train], labels[f.train]).log_odds(values[f.test]) for f in every]
    return tested(models, every, scores)


def tested(models: Models, every: Sequence[Fold], scores: list[np.ndarray]) -> Tested:
    """The rows of some folds' tests."""
    if not every:
        return Tested(models, np.zeros(0, int), np.zeros(0, str), np.zeros(0, str), np.zeros(0))
    at, score = np.concatenate([f.test for f in every]), np.concatenate(scores)
    stratum, left_out = (np.repeat([getattr(f, name) for f in every], [len(f.test) for f in every])
                         for name in ("stratum", "left_out"))  # fmt: skip
    return Tested(models, at, stratum, left_out, score)


def too_few(models: Models, at: np.ndarray, fewest: int = FEWEST) -> str | None:
    """Why nothing is said of tested models at these places, or None if there are enough of both classes."""
    own = np.unique(at)
    poisoned = int(models.poisoned[own].sum())
    if min(poisoned, len(own) - poisoned) >= fewest:
        return None
    return f"{poisoned} models with a backdoor and {len(own) - poisoned} without; {fewest} of each are needed to tell"


def sizes(models: Models, at: np.ndarray) -> dict[str, int]:
    """Models of both classes and parents at some places, each once."""
    own = np.unique(at)
    poisoned = int(models.poisoned[own].sum())
    return {"poisoned": poisoned, "others": len(own) - poisoned, "parents": len(set(models.parent[own].tolist()))}
