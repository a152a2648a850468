"""What a study of roles damages: leading weights, the matched weights of their tensors, and whole sets of either.

Imports no torch: drivers and reports list subjects from the stored rankings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow.compute as pc

from esa_ray.spec import LISTED, TREATED, PerturbSpec, Spec
from esa_ray.storage.store import ranking_name

if TYPE_CHECKING:
    import pyarrow as pa

    from esa_ray.spec import RoleSpec, StudySpec
    from esa_ray.storage.store import Store

#: Set → the components of whose weights it is one: a neuron has gate, up and down, a head its attention's.
_SETS = {"neuron": ("gate", "up", "down"), "head": ("q", "k", "v", "o", "attn_gate")}
_READ = ["metric", "group", "control_draw", "rank", "tensor", "layer", "component", "expert", "row", "col",
         "unit", "score", "weight"]  # fmt: skip


class Subject(Spec):
    """A weight, or the whole row, column, neuron or head that it is of, and the damage done to it.

    ``group`` is "super" (leading, whether a score or a list says so) or "matched_k"; ``draw`` which draw of the null.
    ``row`` and ``col`` are the weight's, also of sets: a set is named by the weight that it is the set of.
    ``weight`` and ``score`` are the weight's value and score; None of sets, the score also of matched weights.
    ``seed`` is that of the calibration windows that chose it, of random damage, and of what texts are drawn.

    Example
    -------
    >>> weight = Subject(group="super", rank=1, tensor="model.layers.11.mlp.down_proj.weight", layer=11,
    ...                  component="down", row=507, col=1229, seed=1337)
    >>> weight.name, weight.label
    ('model.layers.11.mlp.down_proj-507-1229', 'model.layers.11.mlp.down_proj-507-1229-s1337-zero')
    >>> weight.model_copy(update={"unit": "neuron"}).name
    'neuron-model.layers.11.mlp.down_proj-507-1229'
    """

    # How it was chosen changes nothing of what its damage does.
    origin: ClassVar[frozenset[str]] = frozenset({"group", "draw", "rank", "score", "metric", "weight"})

    unit: str = "weight"
    group: str
    draw: int | None = None
    rank: int
    tensor: str
    layer: int | None = None
    component: str
    expert: int | None = None
    row: int | None = None
    col: int | None = None
    weight: float | None = None
    score: float | None = None
    metric: str = ""
    seed: int
    edit: PerturbSpec = PerturbSpec(kind="zero")

    @property
    def name(self) -> str:
        """What is damaged, as files and the column ``subject`` name it."""
        place = [self.expert if self.expert is None else f"e{self.expert}", self.row, self.col]
        words = [self.tensor.removesuffix(".weight"), *(str(at) for at in place if at is not None)]
        return "-".join([*([] if self.unit == "weight" else [self.unit]), *words])

    @property
    def label(self) -> str:
        """Readable file stem: what is damaged, how, and whose windows chose it."""
        return f"{self.name}-s{self.seed}-{self.edit.label}"

    def columns(self) -> dict[str, Any]:
        """What a row says of it (:mod:`esa_ray.schema.roles`)."""
        plain = {name: getattr(self, name) for name in type(self).model_fields if name != "edit"}
        return plain | {"subject": self.name, "edit": self.edit.label}


def subjects(spec: StudySpec, store: Store) -> list[Subject]:
    """All that a study of roles damages, as far as its rankings are stored; leading weights come first.

    Of each tensor at most ``null_weights`` matched weights stand for its null: those of the first draw, evenly over
    the ranks of their leading weights, and of further draws where one has too few. A set of a matched weight that is
    also one of a leading weight is left out.
    """
    if spec.roles is None:
        return []
    found: list[Subject] = []
    for seed in spec.seeds:
        name = ranking_name(*_chosen_by(spec), seed)
        if store.has("rankings", name):
            ranking = store.read("rankings", name, _READ)
            found += of_ranking(ranking, spec.roles, seed, max(spec.topk) if spec.scores else None)
    order = {edit: place for place, edit in enumerate(spec.roles.edits)}
    return sorted(found, key=lambda subject: order[subject.edit])


def expected(spec: StudySpec) -> int:
    """How many subjects a study has at most, by the spec alone: which tensors they are of, a plan doesn't know."""
    if spec.roles is None:
        return 0
    leading = spec.lists[0].k if spec.lists else max(spec.topk)
    null = leading * min(spec.control_draws, spec.roles.null_weights)
    return (leading + null) * (1 + len(spec.roles.sets)) * len(spec.roles.edits) * len(spec.seeds)


def _chosen_by(spec: StudySpec) -> tuple[str, str]:
    if spec.lists:
        return LISTED, spec.lists[0].name
    return spec.scores[0].metric, spec.scores[0].mode


def of_ranking(ranking: pa.Table, roles: RoleSpec, seed: int, k: int | None = None) -> list[Subject]:
    """The subjects of one ranking down to rank ``k`` (None: all of it), under each kind of damage."""
    rows = ranking if k is None else ranking.filter(pc.field("rank") <= k)
    each = sorted(rows.to_pylist(), key=lambda row: (row["control_draw"] or 0, row["rank"]))
    leading = [row for row in each if row["group"] in TREATED]
    null = _null([row for row in each if row["group"] == "matched_k"], roles.null_weights)
    found = _with_sets([_subject(row, seed) for row in [*leading, *null]], roles)
    return [subject.model_copy(update={"edit": edit}) for edit, subject in product(roles.edits, found)]


def _null(rows: Sequence[dict[str, Any]], most: int) -> Iterator[dict[str, Any]]:
    """At most so many weights of each tensor, of as few draws as have them; ``rows`` stand by draw and rank."""
    by_tensor: dict[str, dict[tuple[Any, ...], dict[str, Any]]] = {}
    for row in rows:  # two draws may have a weight in common
        by_tensor.setdefault(row["tensor"], {}).setdefault((row["expert"], row["row"], row["col"]), row)
    for mine in by_tensor.values():
        pool = list(mine.values())
        sizes = [
            sum((row["control_draw"] or 0) <= draw for row in pool)
            for draw in range(1 + max(row["control_draw"] or 0 for row in pool))
        ]
        pool = pool[: next((size for size in sizes if size >= most), len(pool))]
        yield from (pool[i * len(pool) // most] for i in range(most)) if len(pool) > most else pool


def _subject(row: dict[str, Any], seed: int) -> Subject:
    leading = row["group"] in TREATED
    same = ("rank", "tensor", "layer", "component", "expert", "row", "col")
    unit = row["unit"] or "weight"
    return Subject(
        unit=unit, group="super" if leading else "matched_k", draw=None if leading else row["control_draw"] or 0,
        score=row["score"] if leading else None, weight=row["weight"] if unit == "weight" else None,
        metric=row["metric"], seed=seed, **{name: row[name] for name in same},
    )  # fmt: skip


def _with_sets(plain: list[Subject], roles: RoleSpec) -> list[Subject]:
    """The subjects, and the sets of each kind that they are of; each set once, whatever its weights."""
    found = list(plain)
    for unit in roles.sets:
        seen: set[tuple[Any, ...]] = set()
        for weight in plain:  # leading weights come first, so that no set of theirs stands for the null
            key = _set_of(weight, unit)
            if key is not None and key not in seen:
                seen.add(key)
                found.append(weight.model_copy(update={"unit": unit, "weight": None, "score": None}))
    return found


def _set_of(weight: Subject, unit: str) -> tuple[Any, ...] | None:
    """What tells the set of a weight from others, as far as its name tells; None of a weight that is of no such set."""
    if weight.unit != "weight" or weight.component not in _SETS.get(unit, (weight.component,)):
        return None
    inner = weight.component in ("down", "o")  # whose columns are neurons', or heads'
    line = weight.col if unit == "col" or (unit != "row" and inner) else weight.row
    return weight.tensor, weight.component, weight.expert, line
