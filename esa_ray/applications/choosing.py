"""Which weights of a block leave: scored, compared within their groups, and counted.

Legend: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from esa_ray.applications import masks as counted
from esa_ray.applications.criteria import combined, scored
from esa_ray.applications.layers import Matrix, by_block, tensors_of
from esa_ray.applications.seen import Seen, look
from esa_ray.applications.structures import structures
from esa_ray.errors import EsaError
from esa_ray.spec.compression import SPANS, STRUCTURED, PruneSpec, n_of_m

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.applications.calibrated import Calibrated
    from esa_ray.applications.calibration import Walk
    from esa_ray.models.addressing import WeightTensor

#: What of a group is compared where one block is chosen at a time.
_WITHIN = {"row": "row", "tensor": "tensor", "block": "joint", "model": "joint"}


class Choosing:
    """Chooses which weights of a block leave, at a sparsity or a number of them."""

    def __init__(self, spec: PruneSpec, calibrated: Calibrated):
        self.spec, self.calibrated = spec, calibrated

    def scores(self, of: Sequence[Matrix], seen: Seen) -> list[list[Tensor]]:
        """Scores of a block's matrices, by each member of the score; of structures one row of units each."""
        found = scored(self.spec.score, of, seen, self.calibrated, self.spec.damping)
        for each in found:
            counted.check(each)
        if self.spec.pattern not in STRUCTURED:
            return found
        units = structures(self.spec.pattern, of, self.calibrated.model)
        by_matrix = [dict(zip(of, each, strict=True)) for each in found]
        return [[unit.scores(mine) for unit in units] for mine in by_matrix]

    def masks(
        self, of: Sequence[Matrix], scores: Sequence[Sequence[Tensor]], sparsity: float, count: int | None = None
    ) -> list[Tensor]:
        """Masks (O, I) of a block's matrices; ``count``: so many weights or units, whatever the sparsity."""
        spec, within = self.spec, _WITHIN[self.spec.group]
        one = self.spare(of, combined(scores, "row" if n_of_m(spec.pattern) else within))
        if spec.pattern not in STRUCTURED:
            if count is not None:
                return counted.smallest(one, count)
            return counted.pruned(one, None if n_of_m(spec.pattern) else sparsity, within, spec.pattern)
        if within == "tensor" and count is None:
            return self._of_units(of, [counted.smallest([u], counted.count(sparsity, len(u)))[0] for u in one])
        number = counted.count(sparsity, sum(len(each) for each in one)) if count is None else count
        return self._of_units(of, counted.smallest(one, number))

    def spare(self, of: Sequence[Matrix], scores: Sequence[Tensor]) -> list[Tensor]:
        """Scores in which weights (or units) that are to leave last have the highest there is."""
        if not self.calibrated.spared:
            return list(scores)
        spared = [self.calibrated.spares(m) for m in of]
        if self.spec.pattern in STRUCTURED:
            marks = dict(
                zip(
                    of,
                    (torch.zeros(m.shape) if s is None else s.float() for m, s in zip(of, spared, strict=True)),
                    strict=True,
                )
            )
            spared = [unit.scores(marks) > 0 for unit in structures(self.spec.pattern, of, self.calibrated.model)]
        return [
            each if mask is None else each.masked_fill(mask.to(each.device), torch.inf)
            for each, mask in zip(scores, spared, strict=True)
        ]

    def _of_units(self, of: Sequence[Matrix], gone: Sequence[Tensor]) -> list[Tensor]:
        units = structures(self.spec.pattern, of, self.calibrated.model)
        found = {m: torch.zeros(m.shape, dtype=torch.bool, device=gone[0].device) for m in of} if units else {}
        for unit, pruned_U in zip(units, gone, strict=True):
            unit.mark(pruned_U, found)
        return [found[matrix] for matrix in of]


def pruned_matrices(spec: PruneSpec, calibrated: Calibrated) -> dict[int, list[Matrix]]:
    """The matrices that a pruning may take from, by block.

    Raises
    ------
    EsaError
        If M doesn't divide the inputs of a matrix.
    """
    components = spec.components
    if spec.pattern in SPANS:
        components = SPANS[spec.pattern]
    of = calibrated.matrices(components)
    if counted_in := n_of_m(spec.pattern):
        for matrix in of:
            if matrix.shape[1] % counted_in[1]:
                raise EsaError(
                    f"--pattern {spec.pattern} needs inputs in groups of {counted_in[1]}, and {matrix.name} has "
                    f"{matrix.shape[1]}; use another pattern"
                )
    return by_block(of)


def watching(spec: PruneSpec, calibrated: Calibrated, layer: int, walk: Walk, tensors: Sequence[WeightTensor]) -> Seen:
    """What a block's matrices see, with all that the score needs."""
    regional = calibrated.once(tensors) if spec.score == "regional" else None
    return look(walk, layer, tensors, regional=regional)


def dense_counts(spec: PruneSpec, calibrated: Calibrated, blocks: Mapping[int, list[Matrix]]) -> dict[int, int]:
    """How many weights (or units) of each block are among the model's smallest, scored as the model is intact."""
    choosing, walk = Choosing(spec, calibrated), calibrated.walk()
    by_layer: dict[int, list[list[Tensor]]] = {}
    for layer in range(max(blocks) + 1):
        if layer in blocks:
            seen = watching(spec, calibrated, layer, walk, tensors_of(blocks[layer]))
            by_layer[layer] = choosing.scores(blocks[layer], seen)
        walk.step(layer)
    members = [
        [each for mine in by_layer.values() for each in mine[m]] for m in range(len(next(iter(by_layer.values()))))
    ]
    one, at = combined(members, "joint"), 0
    for layer, mine in by_layer.items():
        one[at : at + len(mine[0])] = choosing.spare(blocks[layer], one[at : at + len(mine[0])])
        at += len(mine[0])
    gone = counted.smallest(one, counted.count(spec.sparsity, sum(each.numel() for each in one)))
    found, at = {}, 0
    for layer, mine in by_layer.items():
        found[layer] = sum(int(mask.sum()) for mask in gone[at : at + len(mine[0])])
        at += len(mine[0])
    return found
