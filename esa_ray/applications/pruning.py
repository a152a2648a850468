"""Pruning a model: score × group × pattern × allocation × update, block by block.

Each block is scored on what its matrices see of the calibration windows, loses its weights, is updated, and is run
again, so that the next one sees what it really gets.

Legend: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from esa_ray.applications import masks as counted
from esa_ray.applications.choosing import Choosing, dense_counts, pruned_matrices, watching
from esa_ray.applications.kept import Bitmap, Kept
from esa_ray.applications.layers import Matrix, tensors_of
from esa_ray.applications.refit import refit
from esa_ray.applications.sharing import sparsities
from esa_ray.applications.sparsegpt import sparsegpt
from esa_ray.errors import EsaError
from esa_ray.spec.compression import gradients_of, n_of_m

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.applications.calibrated import Calibrated
    from esa_ray.applications.calibration import Walk
    from esa_ray.applications.seen import Seen
    from esa_ray.spec.compression import PruneSpec


@dataclass
class Blocks:
    """What a compression did, block by block."""

    #: Layer → weights of its matrices, and how many of them are zero by the masks.
    sizes: dict[int, int] = field(default_factory=dict)
    gone: dict[int, int] = field(default_factory=dict)
    #: Layer → ΣΔHΔᵀ / ΣwHwᵀ over its matrices, H = Σ xxᵀ of the inputs that they saw.
    errors: dict[int, float | None] = field(default_factory=dict)
    #: Tensor's name → mask in the order of its storage.
    masks: dict[str, Bitmap] = field(default_factory=dict)
    #: Matrices that saw no input, and so were scored by magnitude.
    blind: int = 0


def prune(spec: PruneSpec, calibrated: Calibrated, kept: Kept) -> Blocks:
    """Prune the model in hand through ``kept``, which can take it back; the model must be intact."""
    blocks = pruned_matrices(spec, calibrated)
    if needs := gradients_of(spec.score):
        calibrated.intact(needs, [m for mine in blocks.values() for m in mine])
    shares = sparsities(spec, calibrated, blocks)
    counts = dense_counts(spec, calibrated, blocks) if spec.group == "model" else {}
    work = _Pruning(spec, calibrated, kept, shares, counts)
    work.through(blocks)
    if not any(work.done.gone.values()):
        raise EsaError(
            f"--sparsity {spec.sparsity:g} takes nothing with --pattern {spec.pattern}: no {spec.group} is so large; "
            "raise it, or choose another --pattern or --group"
        )
    return work.done


@dataclass
class _Pruning:
    """One pruning on its way through the blocks."""

    spec: PruneSpec
    calibrated: Calibrated
    kept: Kept
    shares: Mapping[int, float]
    counts: Mapping[int, int]
    done: Blocks = field(default_factory=Blocks)

    def through(self, blocks: Mapping[int, list[Matrix]]) -> None:
        """Prune every block."""
        walk, last = self.calibrated.walk(), max(blocks)
        if not self.spec.sequential and not walk.stepwise:
            for layer in sorted(blocks, reverse=True):  # what a block sees depends on none that comes after it
                self.block(layer, blocks[layer], walk)
            return
        for layer in range(last + 1):
            if layer in blocks:
                self.block(layer, blocks[layer], walk)
            if layer < last:
                walk.step(layer, again=self.spec.sequential and layer in blocks)

    @property
    def _chosen_on_the_way(self) -> bool:
        """Whether SparseGPT itself chooses, block of columns by block of columns, each after those before it."""
        by_column = self.spec.group == "tensor" or n_of_m(self.spec.pattern) is not None
        updated = self.spec.update in ("sparsegpt", "refit")
        return updated and self.spec.score == "obs" and by_column and not self.calibrated.spared

    def block(self, layer: int, of: Sequence[Matrix], walk: Walk) -> None:
        """See what a block sees; then choose, remove, update and write."""
        seen = watching(self.spec, self.calibrated, layer, walk, tensors_of(of))
        self.done.blind += sum(seen.blind(matrix) for matrix in of)
        if self._chosen_on_the_way:
            made = [self._chosen(matrix, seen, self.shares[layer]) for matrix in of]
        else:
            choosing = Choosing(self.spec, self.calibrated)
            scores = choosing.scores(of, seen)
            masks = choosing.masks(of, scores, self.shares[layer], self.counts.get(layer))
            made = [(self._updated(m, mask, seen), mask) for m, mask in zip(of, masks, strict=True)]
        write(self.kept, self.done, layer, of, seen, made)

    def _chosen(self, matrix: Matrix, seen: Seen, sparsity: float) -> tuple[Tensor, Tensor]:
        weights_OI = matrix.of(matrix.tensor.flat_weights())
        pattern = self.spec.pattern
        asked = None if n_of_m(pattern) else sparsity
        if seen.blind(matrix):
            (mask,) = counted.pruned([weights_OI.abs().float()], asked, "tensor", pattern)
            return weights_OI.masked_fill(mask, 0.0), mask
        hessian_II = seen.moments(matrix).hessian
        new_OI, mask_OI = sparsegpt(weights_OI, hessian_II, asked, pattern, damping=self.spec.damping)
        if self.spec.update == "refit":  # what one sweep only approaches
            new_OI = refit(weights_OI, mask_OI, hessian_II, self.spec.damping)
        return new_OI, mask_OI

    def _updated(self, matrix: Matrix, mask_OI: Tensor, seen: Seen) -> Tensor:
        weights_OI = matrix.of(matrix.tensor.flat_weights())
        mask_OI = mask_OI.to(weights_OI.device)
        if self.spec.update == "none" or seen.blind(matrix):
            return weights_OI.masked_fill(mask_OI, 0.0)
        hessian_II = seen.moments(matrix).hessian
        if self.spec.update == "refit":
            return refit(weights_OI, mask_OI, hessian_II, self.spec.damping)
        return sparsegpt(weights_OI, hessian_II, mask=mask_OI, damping=self.spec.damping)[0]


def write(
    kept: Kept, done: Blocks, layer: int, of: Sequence[Matrix], seen: Seen, made: Sequence[tuple[Tensor, Tensor]]
) -> None:
    """Let new weights (O, I) of a block's matrices stand, and note their masks and errors."""
    wrong = whole = 0.0
    for matrix, (new_OI, _) in zip(of, made, strict=True):
        if not seen.blind(matrix):
            old_OI = matrix.of(matrix.tensor.flat_weights()).float()
            sums_II = seen.moments(matrix).sums.to(old_OI.device, torch.float32)
            wrong += _energy(new_OI.to(matrix.tensor.dtype).float() - old_OI, sums_II)
            whole += _energy(old_OI, sums_II)
    done.errors[layer] = wrong / whole if whole > 0 else None
    done.sizes[layer] = sum(matrix.size for matrix in of)
    done.gone[layer] = sum(int(mask_OI.sum()) for _, mask_OI in made)
    for tensor in tensors_of(of):
        values, marked = tensor.flat_weights().clone(), torch.zeros(tensor.size, dtype=torch.bool)
        for matrix, (new_OI, mask_OI) in zip(of, made, strict=True):
            if matrix.tensor is tensor:
                matrix.put(values, new_OI)
                matrix.put(marked, mask_OI)
        kept.write(tensor, values)
        done.masks[tensor.name] = Bitmap.of(marked.view(tensor.shape))


def _energy(values_OI: Tensor, sums_II: Tensor) -> float:
    """tr(VSVᵀ)."""
    return float(((values_OI @ sums_II) * values_OI).sum(dtype=torch.float64))
