"""What tells architectures apart: models as vectors of features, grouped without labels and classified with them.

Legend: n models, F features, B resamples.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from scipy.cluster import hierarchy
from scipy.spatial.distance import pdist
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from analysis.comparison.growth import SIDES, Censored, Measured, collapse, curve
from analysis.comparison.loading import Comparison, model_name
from analysis.comparison.quantities import measured, reference
from analysis.scores.distribution import tensor_sums
from analysis.study import Study
from esa_ray.spec import COMPONENT_GROUPS as GROUPS

RESAMPLES, PERMUTATIONS, SHUFFLES = 400, 99, 5
#: Models of a class, and classes, from which on a class can be learnt with one left out.
FEWEST_OF_A_CLASS, FEWEST_CLASSES = 3, 2
#: Models from which on groups are more than pairs.
FEWEST_MODELS = 4

#: Quantities that don't depend on how a tokenizer cuts text, and so can stand in a vector beside those of any model.
INDEPENDENT = (
    "gini",
    "tail_index",
    "half_mass_fraction",
    "attention_share",
    "depth",
    "jaccard",
    "tenth_collapse_fraction",
)
#: Those that vary over orders of magnitude.
LOGARITHMIC = frozenset({"half_mass_fraction", "tenth_collapse_fraction", "tail_index"})
#: Routers left out: how many weights they have goes by the number of experts.
COMPONENTS = tuple(c for group in GROUPS.values() for c in group if c != "router")


def _shares(study: Study) -> dict[str, float]:
    """For each component, log of its mean score a weight over that of all weights."""
    rows = tensor_sums(study)
    if rows.is_empty():
        return {}
    overall = float(rows["sum"].sum()) / int(rows["n"].sum())
    by = rows.group_by("component", maintain_order=True).agg(pl.col("sum").sum() / pl.col("n").sum())
    return {f"score of {c}": float(np.log(v / overall)) for c, v in by.iter_rows() if c in COMPONENTS and v > 0}


@lru_cache(maxsize=4)
def features(comparison: Comparison) -> pl.DataFrame:
    """One row a model: a column for every feature that all models have.

    They are the tokenizer-free quantities (logarithms of those that span orders of magnitude), and how much a weight of
    each component scores beside the mean weight.
    """
    found, rows = measured(comparison), []
    for study in comparison.studies:
        name = model_name(study)
        row: dict[str, Any] = {"model": name}
        for quantity in INDEPENDENT:
            if (m := found.get((quantity, name))) is not None and m.value > 0:
                row[quantity] = float(np.log(m.value)) if quantity in LOGARITHMIC else m.value
        rows.append(row | _shares(study))
    table = pl.DataFrame(rows, infer_schema_length=None)
    whole = [c for c in table.columns if table[c].null_count() == 0]
    return table.select(whole)


def matrix(table: pl.DataFrame) -> tuple[np.ndarray, list[str]]:
    """Features that vary, standardised over models, (n, F), and their names."""
    names = [c for c in table.columns if c != "model" and table[c].n_unique() > 1]
    x = table.select(names).to_numpy().astype(float) if names else np.empty((len(table), 0))
    return (x - x.mean(axis=0)) / x.std(axis=0) if names else x, names


@dataclass(frozen=True)
class Grouping:
    """A dendrogram of models by Ward's method.

    ``linkage`` is scipy's; ``support`` is, for each of its merges, the share of resamples of the features in which
    exactly these models are a group (Felsenstein 1985, Evolution 39:783); ``cophenetic`` the correlation of the tree's
    distances with the models' own. ``agreement`` is the adjusted Rand index of the tree, cut into as many groups as
    there are families, with the families; ``p`` that of permuted families.
    """

    models: list[str]
    linkage: np.ndarray
    support: list[float]
    cophenetic: float
    agreement: float | None
    p: float | None
    why_not: str | None = None


def _members(linkage: np.ndarray, n: int) -> list[frozenset[int]]:
    """The models under each merge."""
    found: list[frozenset[int]] = [frozenset([i]) for i in range(n)]
    for a, b, *_ in linkage:
        found.append(found[int(a)] | found[int(b)])
    return found[n:]


def grouped(x: np.ndarray, models: list[str], families: list[str], *, seed: int = 0) -> Grouping | None:
    """Group models by their standardised features (n, F); None with fewer than four models or two features.

    Example
    -------
    >>> x = np.array([[0.0, 0.1], [0.1, 0.0], [5.0, 5.1], [5.1, 5.0]])
    >>> grouped(x, list("abcd"), ["one", "one", "two", "two"]).agreement
    1.0
    """
    n = len(x)
    if n < FEWEST_MODELS or x.shape[1] < 2:
        return None
    tree = hierarchy.linkage(x, "ward")
    wanted, draw = _members(tree, n), np.random.default_rng(seed)
    seen = np.zeros(len(wanted))
    for _ in range(RESAMPLES):
        again = set(_members(hierarchy.linkage(x[:, draw.integers(0, x.shape[1], x.shape[1])], "ward"), n))
        seen += [group in again for group in wanted]
    cophenetic = float(hierarchy.cophenet(tree, pdist(x))[0])
    classes = len(set(families))
    told: tuple[float | None, float | None, str | None] = (None, None, None)
    if FEWEST_CLASSES <= classes < n:
        cut = hierarchy.fcluster(tree, classes, "maxclust")
        agreement = float(adjusted_rand_score(families, cut))
        null = [adjusted_rand_score(draw.permutation(families), cut) for _ in range(PERMUTATIONS)]
        told = (agreement, (1 + sum(a >= agreement - 1e-12 for a in null)) / (PERMUTATIONS + 1), None)
    else:
        told = (None, None, f"{classes} families of {n} models can't be compared with groups")
    return Grouping(models, tree, (seen / RESAMPLES).tolist(), cophenetic, *told)


CLASSIFIERS: dict[str, Any] = {
    "linear discriminant": lambda: LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
    "nearest centroid": NearestCentroid,
}


@dataclass(frozen=True)
class Told:
    """How well one classifier tells classes apart, each model judged by the others.

    ``accuracy`` is balanced (the mean over classes), beside ``chance``, the mean over permutations of the classes, and
    ``p``, the share of those that are as good, times the number of classifiers. ``importance`` is by how much accuracy
    falls when a feature is shuffled between models.
    """

    classifier: str
    classes: dict[str, int]
    accuracy: float
    chance: float
    p: float
    importance: dict[str, float]


def _accuracy(model: Pipeline, x: np.ndarray, classes: np.ndarray) -> float:
    with warnings.catch_warnings():
        # A feature that is constant within classes is a perfect one, and no cause for concern.
        warnings.simplefilter("ignore", UserWarning)
        right = cross_val_predict(model, x, classes, cv=LeaveOneOut()) == classes
    return float(np.mean([right[classes == c].mean() for c in np.unique(classes)]))


def told_apart(x: np.ndarray, names: list[str], classes: list[str], *, seed: int = 0) -> list[Told] | str:
    """Tell classes of models apart by their features (n, F), leaving one model out at a time.

    Classes of fewer than three models are left out. A sentence instead of results says what is missing.

    Example
    -------
    >>> x = np.array([[0.0, 1], [0.1, 2], [0.2, 1], [5.0, 2], [5.1, 1], [5.2, 2]])
    >>> [t.accuracy for t in told_apart(x, ["a", "b"], ["one"] * 3 + ["two"] * 3)]
    [1.0, 1.0]
    """
    counts = {c: classes.count(c) for c in dict.fromkeys(classes)}
    kept = {c: n for c, n in counts.items() if n >= FEWEST_OF_A_CLASS}
    if len(kept) < FEWEST_CLASSES or not names:
        return f"needs {FEWEST_CLASSES} classes of {FEWEST_OF_A_CLASS} models each, and there are " + (
            ", ".join(f"{n} of {c}" for c, n in counts.items()) or "none"
        )
    mine = np.array([c in kept for c in classes])
    x, y = x[mine], np.array(classes)[mine]
    found = []
    for title, make in CLASSIFIERS.items():
        model = make_pipeline(StandardScaler(), make())
        draw = np.random.default_rng(seed)
        accuracy = _accuracy(model, x, y)
        null = np.array([_accuracy(model, x, draw.permutation(y)) for _ in range(PERMUTATIONS)])
        importance = {name: accuracy - _shuffled(model, x, y, i, draw) for i, name in enumerate(names)}
        p = (1 + int((null >= accuracy - 1e-12).sum())) / (PERMUTATIONS + 1)
        found.append(Told(title, kept, accuracy, float(null.mean()), min(1.0, len(CLASSIFIERS) * p), importance))
    return found


def _shuffled(model: Pipeline, x: np.ndarray, y: np.ndarray, feature: int, draw: np.random.Generator) -> float:
    """Mean accuracy with one feature handed to another model."""
    found = []
    for _ in range(SHUFFLES):
        other = x.copy()
        other[:, feature] = draw.permutation(other[:, feature])
        found.append(_accuracy(model, other, y))
    return float(np.mean(found))


RANKS: dict[str, Any] = {
    "model": pl.String, "family": pl.String, "tuning": pl.String, "body": pl.Int64, "value": pl.Float64,
    "low": pl.Float64, "high": pl.Float64, "beyond": pl.String,
    "rank": pl.Int64, "rank_low": pl.Float64, "rank_high": pl.Float64,
}  # fmt: skip
DRAWS = 2000


def robustness(comparison: Comparison, share: float = 0.1) -> pl.DataFrame:
    """Models from the most robust to the least: which fraction of its weights does a share of a collapse.

    ``beyond`` says of a model that its smallest set does more already ("less than"), or its largest less ("more than"):
    ``value`` is then that set's fraction, and the model's own may be anything below or above. ``rank`` is null where
    that leaves it open; ``rank_low`` and ``rank_high`` hold 95% of the ranks that it may have when all models' values
    are drawn from their intervals. Models without damage, or of a vocabulary that isn't known, are left out.
    """
    at, rows, drawn = reference(comparison), [], []
    draw = np.random.default_rng(0)
    for study, fact in zip(comparison.studies, comparison.models.iter_rows(named=True), strict=True):
        curved, level = curve(study, at.damage), collapse(study)
        if curved is None or level is None:
            continue
        row: dict[str, Any] = {c: fact[c] for c in ("model", "family", "tuning", "body")}
        reached = curved.reaching(share * level)
        if isinstance(reached, Censored):
            less = reached is SIDES[-1]
            bound = float(curved.weights[0 if less else -1]) / curved.scored
            row |= {"value": bound, "beyond": "less than" if less else "more than"}
            drawn.append(np.tile([[0.0], [bound]] if less else [[bound], [np.inf]], DRAWS + 1))
        else:
            its = Measured.of(reached / curved.scored, curved.units)
            assert its is not None
            row |= {"value": its.value, "low": its.low, "high": its.high}
            drawn.append(np.tile(np.append(its.value, its.drawn(draw, DRAWS)), (2, 1)))
        rows.append(row)
    if len(rows) < 2:
        return pl.DataFrame(schema=RANKS)
    best, worst = _possible_ranks(*np.array(drawn).transpose(1, 0, 2))
    ranks = {
        "rank": pl.Series([int(b) if b == w else None for b, w in zip(best[:, 0], worst[:, 0], strict=True)]),
        "rank_low": np.quantile(best[:, 1:], 0.025, axis=1),
        "rank_high": np.quantile(worst[:, 1:], 0.975, axis=1),
        "order": best[:, 0] + worst[:, 0],
    }
    table = pl.DataFrame(rows, schema={c: t for c, t in RANKS.items() if "rank" not in c}).with_columns(**ranks)
    return table.sort("order", -pl.col("value")).select(pl.col(c).cast(t) for c, t in RANKS.items())


def _possible_ranks(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best and the worst rank of each of n values known to lie between low and high, (n, R) each; 1 the largest."""
    above = (low[None] > high[:, None]).sum(axis=1)
    below = (high[None] < low[:, None]).sum(axis=1)
    return above + 1, len(low) - below
