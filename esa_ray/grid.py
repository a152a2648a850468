"""From a study's spec to its cells: pure, ordered, and without loading anything."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from esa_ray.identity import IDENTITY_VERSION, digest
from esa_ray.spec import DATA_FREE, DRAWN_CONTROLS, PROBED, DataSpec, PerturbSpec, ScoreSpec, Spec, StudySpec, members

#: What the census does to each weight: zero it, flip it, and for every fourth measure the noise.
EDITS_PER_WEIGHT = 2.25


class Cell(Spec):
    """One evaluation: this group of k weights, chosen by this score and seed, damaged in this way.

    ``depth`` is the largest k of the ranking that a control was drawn for, since it leaves out all of that
    ranking's super weights; None for groups that aren't drawn.
    """

    score: ScoreSpec
    k: int
    seed: int
    group: str
    perturbation: PerturbSpec
    depth: int | None = None

    @property
    def label(self) -> str:
        """Readable file stem, e.g. ``grad_x_weight-per_layer-s1337-k50-super-zero``."""
        return f"{self.score.metric}-{self.score.mode}-s{self.seed}-k{self.k}-{self.group}-{self.perturbation.label}"

    @property
    def columns(self) -> dict[str, Any]:
        """What its row says of it (``schema.CELLS``); with ``study.json``, all that it takes to compute it again."""
        return {
            "metric": self.score.metric,
            "mode": self.score.mode,
            "k": self.k,
            "seed": self.seed,
            "group": self.group,
            "depth": self.depth,
            "perturbation": self.perturbation.kind,
            "strength": self.perturbation.strength,
            "variant": self.perturbation.variant,
        }


@dataclass(frozen=True)
class Resolved:
    """What a spec left open, as found on the machine that runs it; part of every cell's identity.

    ``model`` and ``text`` are content fingerprints; ``dtype`` is never "auto".
    """

    model: str
    dtype: str
    text: str


def cells(spec: StudySpec) -> list[Cell]:
    """All cells of a study, each once, ordered so that neighbours share their ranking.

    >>> from esa_ray.spec import ModelSpec
    >>> spec = StudySpec(name="x", model=ModelSpec(source="m"), topk=(1, 2), seeds=(7,),
    ...                  perturbations=(PerturbSpec(kind="zero"),), groups=("super", "bottom_k"))
    >>> len(cells(spec))
    4
    """
    return [
        Cell(
            score=score,
            k=k,
            seed=seed,
            group=group,
            perturbation=perturbation,
            depth=max(spec.topk) if group in DRAWN_CONTROLS else None,
        )
        for score in spec.scores
        for seed in spec.seeds
        for k in spec.topk
        for perturbation in spec.perturbations
        for group in spec.groups
    ]


def _data_identity(data: DataSpec, resolved: Resolved) -> dict:
    # Where the text came from is not part of the question; what it says is. The batch shape is: it
    # decides the order of floating-point sums.
    return {"text": resolved.text, **data.model_dump(exclude={"source", "text_column", "split"})}


def cell_id(cell: Cell, data: DataSpec, resolved: Resolved) -> str:
    """The cell's identity: 16 hex digits over everything that changes its number."""
    return digest(
        {
            "version": IDENTITY_VERSION,
            "model": resolved.model,
            "dtype": resolved.dtype,
            "data": _data_identity(data, resolved),
            **cell.model_dump(),
        }
    )


@dataclass(frozen=True)
class Plan:
    """What running a study would take, from the spec alone; passes are of one window each."""

    cells: int
    rankings: int
    baselines: int
    forward_passes: int
    backward_passes: int
    double_backward_passes: int
    single_edits: int

    def lines(self, spec: StudySpec) -> list[str]:
        """The plan as text, one fact a line."""
        shared = len(spec.seeds) * len(spec.scores)
        per_ranking = self.cells // shared if shared else 0
        facts = [
            f"cells             {self.cells}",
            f"rankings          {self.rankings} (each shared by {per_ranking} cells, scored at k={max(spec.topk)})",
            f"baseline          {self.baselines} (shared by all cells)",
            f"forward passes    {self.forward_passes} windows of {spec.data.window} tokens",
            f"backward passes   {self.backward_passes}",
        ]
        if self.double_backward_passes:
            facts.append(f"double backward   at most {self.double_backward_passes}")
        if self.single_edits:
            facts.append(f"single edits      about {self.single_edits} (resumed from the edited layer)")
        return facts


def plan(spec: StudySpec) -> Plan:
    """Count cells, shared work and window passes; all scores of one seed share their passes."""
    n = len(cells(spec))
    metrics = {m for s in spec.scores for m in members(s.metric)}
    windows = len(spec.seeds) * spec.data.calibration_windows
    backward = windows * any(m.startswith("grad") for m in metrics)
    forward = windows * bool(metrics - DATA_FREE - PROBED)
    probes = max((s.probes or 0 for s in spec.scores), default=0)
    baselines = 1
    return Plan(
        cells=n,
        rankings=len(spec.scores) * len(spec.seeds),
        baselines=baselines,
        forward_passes=forward + (n + baselines) * spec.data.evaluation_windows,
        backward_passes=backward,
        double_backward_passes=windows * probes,
        single_edits=math.ceil(spec.fidelity * EDITS_PER_WEIGHT),
    )


def chunks(items: list, size: int) -> list[list]:
    """Consecutive pieces of at most ``size`` items."""
    return [items[i * size : (i + 1) * size] for i in range(math.ceil(len(items) / size))]
