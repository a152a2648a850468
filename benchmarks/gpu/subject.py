"""A small study of a model in hand: its scores, its ranking and its cells, as one value that can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.gpu.models import BODY
from esa_ray.evaluation import Intact, evaluate
from esa_ray.models.addressing import catalogue
from esa_ray.perturb.edit import perturbed
from esa_ray.perturb.sites import Sites
from esa_ray.scoring.chosen import chosen_and_known
from esa_ray.scoring.gather import score_tensors
from esa_ray.scoring.ranking import rank, score_stats
from esa_ray.spec import PerturbSpec, ScoreSpec

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedModel

METRICS = ("grad_x_weight", "grad_x_weight_abs", "grad_squared", "act_mag", "magnitude")
GROUPS = ("super", "random_k", "matched_k", "bottom_k")
#: Every kind of damage that needs nothing but a ranking.
KINDS = tuple(
    PerturbSpec.model_validate(PerturbSpec.fields_of(label))
    for label in (
        "sign_flip-1.0", "zero", "dropout-0.5", "set_mean", "scale-0.5", "gauss_noise-0.1", "bit_flip-0.05",
        "gradient_aligned-0.1", "gradient_opposed-0.1", "correlated-0.1", "adaptive-0.1", "quantize-4",
        "progressive-zero-0.5",
    )
)  # fmt: skip
FLIP = PerturbSpec(kind="sign_flip")


@dataclass(frozen=True)
class Table:
    """What a study of a model comes to: a table of rankings, one of distributions, and the outcome of every cell."""

    rankings: pa.Table
    stats: pa.Table
    cells: dict[str, tuple[tuple[float, ...], tuple[int, ...], tuple[float, ...]]]

    def equals(self, other: Table) -> bool:
        """Whether both are the same to the last bit."""
        return (
            self.rankings.equals(other.rankings)
            and self.stats.equals(other.stats)
            and repr(self.cells) == repr(other.cells)  # where two NaN are the same
        )


def scores_of(model: PreTrainedModel, calibration: np.ndarray, metrics: Sequence[str] = METRICS):
    """The scores of all matrices in the blocks of a model."""
    tensors = catalogue(model).select(BODY)
    return score_tensors(model, tensors, calibration, metrics)


def cell(weights, ranking: pa.Table, group: str, k: int, spec: PerturbSpec, work):
    """Damage a set of a ranking, do some work, and take the damage back."""
    chosen, known = chosen_and_known(ranking, group, k)
    with perturbed(weights, Sites(weights, chosen, intact=True), spec, 0, known):
        return work()


def table(
    model: PreTrainedModel, calibration: np.ndarray, evaluation: np.ndarray, *, k: int = 5,
    kinds: Sequence[PerturbSpec] = (FLIP,), metric: str = "grad_x_weight",
) -> Table:  # fmt: skip
    """Score, rank, damage and measure: a whole study of one seed."""
    weights, scores = catalogue(model), scores_of(model, calibration)
    spec = ScoreSpec(metric=metric, components=BODY)
    ranking = rank(scores, spec, k, GROUPS, seed=0)
    intact = Intact(model, evaluation, tail_stays=True)
    cells = {}
    for kind in kinds:
        for group in GROUPS:
            found = cell(weights, ranking, group, k, kind, lambda: evaluate(model, evaluation, intact=intact))
            cells[f"{group} {kind.label}"] = tuple(found.nll), tuple(found.hits), tuple(found.kl)
    cells["intact"] = tuple(intact.outcome.nll), tuple(intact.outcome.hits), ()
    return Table(ranking, score_stats(scores, spec, seed=0), cells)


_WIDTHS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(model: PreTrainedModel) -> list[torch.Tensor]:
    """A copy of every parameter's bits."""
    return [p.detach().view(_WIDTHS[p.element_size()]).clone() for p in model.parameters()]


def intact_since(model: PreTrainedModel, before: list[torch.Tensor]) -> bool:
    """Whether every parameter has the bits that it had."""
    return all(map(torch.equal, bits(model), before))


@torch.no_grad()
def put_back(model: PreTrainedModel, before: list[torch.Tensor]) -> None:
    """Give every parameter the bits that it had."""
    for parameter, old in zip(model.parameters(), before, strict=True):
        parameter.data.view(old.dtype).copy_(old)
