"""Compressions side by side: what names one, and its excess loss by calibration seed and evaluation window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import polars as pl
from pydantic import TypeAdapter

from analysis.study import Study
from esa_ray.spec import METHODS, Compression, PruneSpec, grouped, is_data_free, n_of_m
from esa_ray.spec.compression import COMPRESSED, DAMPING

#: What names a compression; its rows differ in seed and text alone.
IDENTITY = (
    "kind", "score", "group", "pattern", "sparsity", "allocation", "update", "damping", "sequential", "bits",
    "group_size", "kept", "keep_by", "components",
)  # fmt: skip
#: The components that are compressed where nothing is said.
USUAL = ",".join(grouped(COMPRESSED))
#: How a table on compressions begins.
WHO: dict[str, Any] = {
    "kind": pl.String, "setting": pl.String, "method": pl.String, "published": pl.Boolean, "label": pl.String,
    "text": pl.String, "domain": pl.String,
}  # fmt: skip
_COMPRESSIONS = TypeAdapter(tuple[Compression, ...])
#: Rules of keeping weights that look at no text, and so don't depend on the calibration seed.
_FIXED_RULES = (None, "magnitude")


@dataclass(frozen=True, eq=False)
class Point:
    """One compression on one text.

    ``what`` holds the columns :data:`IDENTITY`. ``excess`` is calibration seed → (W,): NLL of the compressed model
    minus NLL of the dense model, where possible on the same hardware, in each evaluation window, over the mean number
    of tokens of a window, in nats per token; so its mean is the sum of all differences over the sum of all tokens.
    Seeds whose loss isn't finite have none. ``rows`` are its stored rows of this text, ``dense`` the dense model's.
    """

    what: dict[str, Any]
    label: str
    text: str
    domain: str
    excess: dict[int, np.ndarray]
    rows: pl.DataFrame
    dense: dict[str, Any]

    @cached_property
    def published(self) -> str | None:
        """The name under which it was published, if it is one of :data:`esa_ray.spec.METHODS`."""
        return published(self.what)

    @property
    def method(self) -> str:
        """How it compresses, whatever how far: a published name, or score, group, allocation, update and damping."""
        return self.published or recipe(self.what)

    @property
    def setting(self) -> tuple:
        """How far it compresses: points of one setting are compared."""
        return setting(self.what)

    @property
    def seeded(self) -> bool:
        """Whether it depends on the calibration seed."""
        what = self.what
        if what["kind"] == "quantize":
            return what["keep_by"] not in _FIXED_RULES
        return not (is_data_free(what["score"]) and what["update"] == "none" and what["allocation"] == "uniform")

    @property
    def who(self) -> dict[str, Any]:
        """The columns :data:`WHO`."""
        return {
            "kind": self.what["kind"], "setting": setting_label(self.what), "method": self.method,
            "published": self.published is not None, "label": self.label, "text": self.text, "domain": self.domain,
        }  # fmt: skip

    @property
    def measured(self) -> pl.DataFrame:
        """Its rows that have an outcome, divergence among them."""
        return self.rows.filter(pl.col("status") != "error")

    def mean(self, column: str) -> float | None:
        """The mean over seeds of a column; None where it is nowhere told."""
        told = self.measured[column].drop_nulls()
        return float(np.mean(told.to_numpy())) if len(told) else None

    @property
    def sparsity(self) -> float | None:
        """The share of the compressed tensors' weights that is zero by the mask."""
        told = self.measured.drop_nulls(["n_pruned", "n_weights"])
        return int(told["n_pruned"].sum()) / int(told["n_weights"].sum()) if len(told) else None

    @property
    def cost(self) -> float | None:
        """Mean excess over seeds and windows, nats per token; None where no seed has a finite loss."""
        return float(np.mean(list(self.excess.values()))) if self.excess else None

    def count(self, status: str) -> int:
        """How many of its rows have a status."""
        return self.rows.filter(pl.col("status") == status).height


def published(what: dict[str, Any]) -> str | None:
    """The published method that a pruning is, up to its sparsity: None if it is none.

    Among N of M inputs no larger group matters, and a score of weights alone sees no activations. Damping is an option
    of SparseGPT's own, so that it is published at any; one other than its default is said.

    >>> what = METHODS["wanda"].model_dump()
    >>> published(what), published(what | {"pattern": "2:4", "group": "tensor"}), published(what | {"update": "refit"})
    ('wanda', 'wanda', None)
    >>> published(METHODS["sparsegpt"].model_dump() | {"damping": 0.1})
    'sparsegpt-d0.1'
    """
    if what["kind"] != "prune" or not (what["pattern"] == "unstructured" or n_of_m(what["pattern"])):
        return None
    return next(("-".join([name, *_damped(what)]) for name, method in METHODS.items() if _is(what, method)), None)


def _is(what: dict[str, Any], method: PruneSpec) -> bool:
    same = all(what[name] == getattr(method, name) for name in ("score", "allocation", "update"))
    grouped = n_of_m(what["pattern"]) is not None or what["group"] == method.group
    unseen = is_data_free(method.score) and method.update == "none"
    return same and grouped and (unseen or what["sequential"] == method.sequential)


def at_any_damping(method: pl.Expr) -> pl.Expr:
    """A published method's name without the damping that it was run at.

    >>> pl.select(at_any_damping(pl.lit("owl+sparsegpt-d0.1"))).item()
    'owl+sparsegpt'
    """
    return method.str.replace("-d[0-9.e+-]+$", "")


def recipe(what: dict[str, Any]) -> str:
    """A compression in short without how far it goes.

    >>> recipe({"kind": "prune", "score": "regional", "group": "row", "pattern": "unstructured", "allocation": "damage",
    ...         "update": "refit", "damping": 0.1, "sequential": True})
    'regional-row-damage-refit-d0.1'
    >>> recipe({"kind": "quantize", "keep_by": None})
    'nothing kept'
    """
    if what["kind"] == "quantize":
        return what["keep_by"] or "nothing kept"
    words = [what["score"]]
    words += [what["group"]] if n_of_m(what["pattern"]) is None else []
    words += [what["allocation"]] if what["allocation"] != "uniform" else []
    words += [what["update"]] if what["update"] != "none" else []
    return "-".join([*words, *_damped(what), *([] if what["sequential"] else ["oneshot"])])


def _damped(what: dict[str, Any]) -> list[str]:
    return [f"d{what['damping']:g}"] if what["damping"] != DAMPING else []


def setting(what: dict[str, Any]) -> tuple:
    """What two compressions must have in common to be compared."""
    names = {"prune": ("pattern", "sparsity"), "quantize": ("bits", "group_size", "kept")}[what["kind"]]
    return (what["kind"], *(what[name] for name in names), what["components"])


def setting_label(what: dict[str, Any]) -> str:
    """A setting in words.

    >>> setting_label({"kind": "prune", "pattern": "unstructured", "sparsity": 0.5, "components": USUAL})
    '50%'
    >>> setting_label({"kind": "prune", "pattern": "2:4", "sparsity": 0.5, "components": "down"})
    '2:4 of down'
    >>> setting_label({"kind": "quantize", "bits": 3, "group_size": 64, "kept": 0.0035, "components": USUAL})
    '3 bits g64 0.35% kept'
    """
    part = "" if what["components"] in (None, USUAL) else f" of {what['components']}"
    if what["kind"] == "quantize":
        kept = f" {100 * what['kept']:g}% kept" if what["kept"] else ""
        return f"{what['bits']} bits g{what['group_size']}{kept}{part}"
    if n_of_m(what["pattern"]):
        return what["pattern"] + part
    return f"{100 * what['sparsity']:g}%{'' if what['pattern'] == 'unstructured' else ' ' + what['pattern']}{part}"


@lru_cache(maxsize=8)
def points(study: Study) -> tuple[Point, ...]:
    """Every compression on every text, by text (in domain first), setting and method.

    Nothing is said of a text whose dense row is missing. A seed that failed has no text: it is a failure on every one.
    """
    found, table = list[Point](), study.compressions.sort("label", "seed", nulls_last=True)
    undamped = (pl.col("kind") == "prune") & pl.col("damping").is_null()  # of studies older than the option
    table = table.with_columns(pl.when(undamped).then(DAMPING).otherwise("damping").alias("damping"))
    failed, table = table.filter(pl.col("text").is_null()), table.filter(pl.col("text").is_not_null())
    for (text, domain), rows in table.group_by(["text", "domain"], maintain_order=True):
        rows = pl.concat([rows, failed])
        dense = rows.filter((pl.col("kind") == "dense") & (pl.col("status") == "ok"))
        if dense.is_empty():
            continue
        base = dense.row(0, named=True)
        for key, mine in rows.filter(pl.col("kind") != "dense").group_by(IDENTITY, maintain_order=True):
            what = dict(zip(IDENTITY, key, strict=True))
            found.append(Point(what, mine["label"][0], str(text), str(domain), _excess(mine, base), mine, base))
    return tuple(sorted(found, key=_order))


def asked(study: Study) -> pl.DataFrame:
    """What a study asks for, whether or not it was measured: one row a compression and domain."""
    rows = []
    for spec in _COMPRESSIONS.validate_python(study.spec.get("compressions") or ()):
        what = spec.model_dump() | {"components": ",".join(grouped(spec.components))}
        name = published(what)
        for domain in ("in", "out")[: 1 + bool(study.spec.get("other_texts"))]:
            rows.append((what["kind"], setting_label(what), name or recipe(what), name is not None, domain))
    names = ("kind", "setting", "method", "published", "domain")
    return pl.DataFrame(rows, schema={name: WHO[name] for name in names}, orient="row")


def _order(p: Point) -> tuple:
    what = p.what
    if what["kind"] == "quantize":
        far = (1, "", -what["bits"], -what["group_size"], what["kept"])
    else:
        far = (0, "" if what["pattern"] == "unstructured" else what["pattern"], what["sparsity"], 0, 0)
    return p.domain != "in", p.text, *far, what["components"], p.published is None, p.method


def _excess(rows: pl.DataFrame, base: dict[str, Any]) -> dict[int, np.ndarray]:
    ok = rows.filter((pl.col("status") == "ok") & (pl.col("nll").list.len() == len(base["nll"])))
    tokens = float(np.mean(base["tokens"]))
    return {
        seed: (np.array(nll) - np.array(base["nll"] if own is None else own)) / tokens
        for seed, nll, own in ok.select("seed", "nll", "intact_nll").iter_rows()
    }


def together(compared: Sequence[Point]) -> tuple[list[int], np.ndarray]:
    """(the calibration seeds that all points have, their excess (P, S, W)): nats per token.

    A point that doesn't depend on the seed stands in for every seed, however often it was measured.
    """
    if not all(p.excess for p in compared):
        return [], np.empty((len(compared), 0, 0))
    varying = [set(p.excess) for p in compared if p.seeded] or [set(p.excess) for p in compared]
    seeds = sorted(set.intersection(*varying))
    if not seeds:
        return [], np.empty((len(compared), 0, 0))
    fallback = [next(iter(p.excess.values())) for p in compared]
    d = [[p.excess.get(s, own) for s in seeds] for p, own in zip(compared, fallback, strict=True)]
    return seeds, np.array(d)


def perplexity(nll_per_token: float) -> float:
    """exp of a loss in nats per token; infinite where that is beyond a float."""
    return math.exp(nll_per_token) if nll_per_token < 700 else math.inf
