"""From a study's spec to its cells: pure, ordered, and without loading anything."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any, ClassVar, TypeVar

from esa_ray.identity import IDENTITY_VERSION, digest
from esa_ray.spec import (
    DRAWN_CONTROLS,
    LISTED,
    PAIRED_CONTROLS,
    DataSpec,
    PerturbSpec,
    ScoreSpec,
    Spec,
    StudySpec,
    Subset,
    WeightList,
    members,
)

#: The score whose pass also gives the gradient that some kinds of damage follow.
GRADIENT_SCORE = "grad_x_weight"


_Item = TypeVar("_Item")


class Listed(Spec):
    """A list of weights by its name and content."""

    # A list is what it names, whatever it is called.
    origin: ClassVar[frozenset[str]] = frozenset({"name"})

    name: str
    digest: str
    unit: str = "weight"

    @classmethod
    def of(cls, weights: WeightList) -> Listed:
        """The reference to a list."""
        return cls(name=weights.name, digest=weights.digest, unit=weights.unit)


class Cell(Spec):
    """One evaluation: this group of k weights, chosen by this score and seed or listed, damaged in this way.

    Either ``score`` or ``listed`` says where the set comes from, ``part`` which of its weights are damaged (None:
    all), ``repeat`` which run of the same cell it is. ``depth`` is the largest k of the ranking that a control was
    drawn for, since it leaves out all of that ranking's super weights; None for groups that aren't drawn.
    ``early_stop`` is the error rate at which it may end before its last window. ``control_draw`` is which of the
    seed's sets of a drawn control it damages.
    """

    score: ScoreSpec | None = None
    listed: Listed | None = None
    k: int
    seed: int
    group: str
    perturbation: PerturbSpec
    part: Subset | None = None
    repeat: int = 0
    depth: int | None = None
    early_stop: float | None = None
    control_draw: int = 0

    @property
    def chosen_by(self) -> tuple[str, str]:
        """The columns ``metric`` and ``mode``: score and pool, or "listed" and the list's name."""
        if self.listed:
            return LISTED, self.listed.name
        assert self.score
        return self.score.metric, self.score.mode

    @property
    def draw(self) -> tuple[int, ...]:
        """What names the random stream of kinds that draw: the seed, and from the second run on which run it is."""
        return (self.seed, self.repeat) if self.repeat else (self.seed,)

    @property
    def label(self) -> str:
        """Readable file stem, e.g. ``grad_x_weight-per_layer-s1337-k50-super-zero``."""
        words = [*self.chosen_by, f"s{self.seed}", f"k{self.k}", self.group, self.perturbation.label]
        more = [self.part.label if self.part else "", f"r{self.repeat}" if self.repeat else ""]
        return "-".join([*words, *filter(None, [*more, f"c{self.control_draw}" if self.control_draw else ""])])

    @property
    def columns(self) -> dict[str, Any]:
        """What its row says of it (``schema.CELLS``); with ``study.json``, all that it takes to compute it again."""
        metric, mode = self.chosen_by
        return {
            "metric": metric,
            "mode": mode,
            "k": self.k,
            "seed": self.seed,
            "group": self.group,
            "part": self.part.kind if self.part else None,
            "part_value": self.part.value if self.part else None,
            "part_other": self.part.other if self.part else None,
            "unit": self.score.unit if self.score else self.listed.unit if self.listed else None,
            "repeat": self.repeat,
            "depth": self.depth,
            "control_draw": self.control_draw if self.group in DRAWN_CONTROLS else None,
            "perturbation": self.perturbation.kind,
            "strength": self.perturbation.strength,
            "variant": self.perturbation.variant,
        }


@dataclass(frozen=True)
class Fingerprints:
    """What a spec left open, as found on the machine that runs it; part of every cell's identity.

    ``model``, ``text`` and ``target``, the text that is tuned to, are content fingerprints; ``dtype`` is never "auto".
    """

    model: str
    dtype: str
    text: str
    target: str | None = None

    @classmethod
    def of(cls, record: dict[str, Any]) -> Fingerprints:
        """Those of a study's ``study.json``."""
        found = record["resolved"]
        return cls(found["model"], found["dtype"], found["text"], found.get("target"))


def cells(spec: StudySpec) -> list[Cell]:
    """All cells of a study, each once, ordered so that neighbours share their ranking.

    >>> from esa_ray.spec import ModelSpec
    >>> spec = StudySpec(name="x", model=ModelSpec(source="m"), topk=(1, 2), seeds=(7,),
    ...                  perturbations=(PerturbSpec(kind="zero"),), groups=("super", "bottom_k"))
    >>> len(cells(spec))
    4
    """
    found = []
    for score in spec.scores:
        for seed in spec.seeds:
            for k in spec.topk:
                base = Cell(score=score, k=k, seed=seed, group="super", perturbation=_ANY, early_stop=spec.early_stop)
                alone = spec.one_by_one and score.mode == "global" and k == max(spec.topk)
                found += list(_of_set(spec, base, spec.groups, max(spec.topk), alone=alone))
    for weights in spec.lists:
        groups = (LISTED, *spec.controls_of(weights))
        for seed in spec.seeds:
            base = Cell(
                listed=Listed.of(weights), k=weights.k, seed=seed, group=LISTED, perturbation=_ANY,
                early_stop=spec.early_stop,
            )  # fmt: skip
            found += list(_of_set(spec, base, groups, weights.k, alone=spec.one_by_one))
    return found


@lru_cache(maxsize=1)
def n_cells(spec: StudySpec) -> int:
    """How many cells a study has, counted once by all that share them."""
    return len(cells(spec))


#: Stands in a cell's place for a kind until the grid fills it.
_ANY = PerturbSpec(kind="zero")


def _of_set(spec: StudySpec, base: Cell, groups: tuple[str, ...], depth: int, *, alone: bool) -> Iterator[Cell]:
    """The cells of one set and its controls: whole, again, in parts, and one by one."""
    treated = groups[0]
    only = [Subset(kind="only", value=i + 1) for i in range(base.k)] if alone else []
    if base.k == depth:
        only += by_twos(spec.pairs)
    for perturbation in spec.perturbations:
        for group in groups:
            drawn = depth if group in PAIRED_CONTROLS else None
            mine = base.model_copy(update={"group": group, "depth": drawn, "perturbation": perturbation})
            parts = [_realised(p, base.k) for p in spec.parts if p.kind == "layer" or group == treated]
            yield from (_with(mine, repeat=r) for r in range(spec.repeats))
            if group in DRAWN_CONTROLS:
                yield from (_with(mine, control_draw=c) for c in range(1, spec.control_draws))
            yield from (_with(mine, part=p) for p in [*dict.fromkeys(parts), *(only if group == treated else [])])


def by_twos(n: int) -> list[Subset]:
    """The first n members of a set one at a time, and every pair of them.

    >>> [part.label for part in by_twos(2)]
    ['single-1', 'single-2', 'pair-1-2']
    """
    pairs = [Subset(kind="pair", value=i, other=j) for i, j in combinations(range(1, n + 1), 2)]
    return [*(Subset(kind="single", value=i) for i in range(1, n + 1)), *pairs]


def _realised(part: Subset, k: int) -> Subset:
    """A fraction of k as the whole number of weights that it comes to, so that the row states what was done."""
    return part.model_copy(update={"value": round(part.value * k) / k}) if part.kind.startswith("all_but") else part


def _with(cell: Cell, **changes: Any) -> Cell:
    # Thousands of cells differ in a field that is checked already.
    return cell.model_construct(**{**cell.__dict__, **changes})


def cell_id(cell: Cell, data: DataSpec, resolved: Fingerprints) -> str:
    """The cell's identity: 16 hex digits over everything that changes its number and isn't said by a default."""
    return digest(
        {
            "version": IDENTITY_VERSION,
            "model": resolved.model,
            "dtype": resolved.dtype,
            "data": {"text": resolved.text, **data.content()},
            **cell.content(),
        }
    )


def continuation(data: DataSpec) -> int:
    """Tokens by which a prompt is continued: prompt and continuation fill a window."""
    return data.window - data.window // 2


def gathered(spec: StudySpec) -> set[str]:
    """The scores that a study's passes gather, members of ensembles and the gradient of its damage included."""
    needs_gradient = any(p.needs_gradient for p in spec.perturbations)
    return {m for s in spec.scores for m in members(s.metric)} | ({GRADIENT_SCORE} if needs_gradient else set())


def chunks(items: list[_Item], size: int) -> list[list[_Item]]:
    """Consecutive pieces of at most ``size`` items."""
    return [items[i * size : (i + 1) * size] for i in range(math.ceil(len(items) / size))]
