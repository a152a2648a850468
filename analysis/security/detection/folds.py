"""Which models train a detector and which test it: never one parent's in both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from analysis.security.detection.table import Models
from esa_ray.spec.backdoors import COUNTERPARTS

#: Into how many folds a base's parents are dealt, at most.
FOLDS = 10
#: "unseen insertion", but that the benign models which are made as the left-out insertion train.
TWIN_KNOWN = "counterpart known"
#: Schemes whose training leaves out an insertion.
UNSEEN = ("unseen insertion", "unseen both", "any insertion", TWIN_KNOWN)


@dataclass(frozen=True, eq=False)
class Fold:
    """Places of the models that train and of those that test; ``stratum``: tested scores that may be compared.

    ``left_out`` is the insertion that training knows nothing of, "" where it knows all.
    """

    train: np.ndarray
    test: np.ndarray
    stratum: str
    left_out: str = ""


def parts(models: Models) -> np.ndarray:
    """Which fold of its base each model's parent is dealt into, (n,): parents in order of their seeds, by turns."""
    found = np.zeros(len(models), int)
    for base in models.bases:
        mine = models.base == base
        parents = sorted(set(models.parent[mine].tolist()), key=_seed)
        turn = {parent: i % min(FOLDS, len(parents)) for i, parent in enumerate(parents)}
        found[mine] = [turn[parent] for parent in models.parent[mine]]
    return found


def _seed(parent: str) -> tuple[int, str]:
    seed = parent.rpartition("~")[2]
    return (int(seed) if seed.isdigit() else 0, parent)


def folds(models: Models, scheme: str) -> list[Fold]:
    """The folds of a scheme; those whose training would lack models with or without a backdoor are left out.

    "seen": within each base, by parent. "unseen insertion": the same, an insertion at a time left out of training, with
    the benign models that are made as it is: a detector that knew these would take what they share for harmless. Its
    models are tested, and those without a backdoor, of parents that training hadn't. "unseen base": all other bases
    train, the base is tested. "unseen both": other bases and insertions train; the left-out base's models of the
    left-out insertion are tested, and those without a backdoor. "any" is "seen" with all bases together in training,
    as a detector for use is trained, and "any insertion" the same with an insertion left out. "counterpart known" is
    "unseen insertion" with the left-out insertion's benign models in training.
    """
    kinds = models.insertions if scheme in UNSEEN else [""]
    every = [
        _fold(models, *split, left_out, [left_out] if scheme == TWIN_KNOWN else untrained(left_out))
        for split in splits(models, scheme) for left_out in kinds
    ]  # fmt: skip
    return [fold for fold in every if _trains(models, fold)]


def splits(models: Models, scheme: str) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
    """(mask of the models that may train, of those that are tested, their base), for each time that some are tested."""
    part = parts(models)
    for base in models.bases:
        here = models.base == base
        if scheme in ("unseen base", "unseen both"):
            yield ~here, here, base
            continue
        for i in range(part[here].max() + 1):
            tested = here & (part == i)
            yield ~tested if scheme in ("any", "any insertion") else here & ~tested, tested, base


def untrained(left_out: str) -> list[str]:
    """Kinds that train nothing where an insertion is left out.

    >>> untrained("rank-one"), untrained("")
    (['rank-one', 'benign-rank-one'], [])
    """
    return [left_out, COUNTERPARTS[left_out]] if left_out else []


def _fold(
    models: Models, others: np.ndarray, tested: np.ndarray, base: str, left_out: str, out: list[str]
) -> Fold:  # fmt: skip
    train = others & ~np.isin(models.kind, out)
    test = tested & (~models.poisoned | (models.kind == left_out)) if left_out else tested
    return Fold(np.flatnonzero(train), np.flatnonzero(test), f"{base} {left_out}".strip(), left_out)


def _trains(models: Models, fold: Fold) -> bool:
    labels = models.poisoned[fold.train]
    return bool(len(fold.test) and labels.any() and not labels.all())
