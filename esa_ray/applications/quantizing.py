"""Quantizing a model: round to nearest in small groups, with the weights that matter most left in 16 bits.

The kept share is one of all compressed weights together, as TaCQ has it (arXiv:2504.07389): a block may keep many and
another none. Kept weights are held out before any scale is computed.

Legend: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from esa_ray.applications import masks as counted
from esa_ray.applications.kept import Kept
from esa_ray.applications.layers import Matrix, by_block, tensors_of
from esa_ray.applications.pruning import Blocks, write
from esa_ray.applications.rounding import bits_per_weight, keep_scores, rounded
from esa_ray.applications.seen import Seen, look
from esa_ray.randomness import stream_key
from esa_ray.spec.compression import KEEPING

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.applications.calibrated import Calibrated
    from esa_ray.spec.compression import QuantizeSpec


def quantize(spec: QuantizeSpec, calibrated: Calibrated, kept: Kept, seed: int) -> tuple[Blocks, float]:
    """Quantize the model in hand through ``kept``, which can take it back; gives the true bits per weight, too.

    Block errors are measured on the inputs of the intact model.
    """
    of = calibrated.matrices(spec.components)
    held_out = dict(zip(of, _held_out(spec, calibrated, of, seed), strict=True))
    done, walk, blocks = Blocks(), calibrated.walk(), by_block(of)
    last = max(blocks)
    # Without steps every look is a pass of the whole model, which must be intact before the block.
    order = range(last + 1) if walk.stepwise else sorted(blocks, reverse=True)
    for layer in order:
        if layer in blocks:
            mine = blocks[layer]
            seen = look(walk, layer, tensors_of(mine))
            _round(spec, kept, done, layer, mine, seen, [held_out[matrix] for matrix in mine])
        if layer < last:
            walk.step(layer)
    groups = sum(matrix.shape[0] * -(-matrix.shape[1] // spec.group_size) for matrix in of)
    n, n_kept = sum(done.sizes.values()), sum(done.gone.values())
    return done, bits_per_weight(n, spec.bits, spec.group_size, groups, n_kept)


def _round(
    spec: QuantizeSpec,
    kept: Kept,
    done: Blocks,
    layer: int,
    of: Sequence[Matrix],
    seen: Seen,
    held_out: Sequence[Tensor | None],
) -> None:
    made = []
    for matrix, held_OI in zip(of, held_out, strict=True):
        weights_OI = matrix.of(matrix.tensor.flat_weights())
        new_OI = rounded(weights_OI, spec.bits, spec.group_size, held_OI).weights
        made.append((new_OI, torch.zeros(matrix.shape, dtype=torch.bool) if held_OI is None else held_OI))
    write(kept, done, layer, of, seen, made)


def _held_out(spec: QuantizeSpec, calibrated: Calibrated, of: Sequence[Matrix], seed: int) -> Sequence[Tensor | None]:
    """Masks (O, I) of the ⌊f·n⌋ weights that stay in 16 bits."""
    if not spec.kept or spec.keep_by is None:
        return [None] * len(of)
    if statistic := KEEPING[spec.keep_by]:
        calibrated.intact((statistic,), of)
    return counted.largest([_deserves(spec, calibrated, matrix, seed) for matrix in of], spec.kept)


def _deserves(spec: QuantizeSpec, calibrated: Calibrated, matrix: Matrix, seed: int) -> Tensor:
    """How much each weight of a matrix deserves to be kept, (O, I)."""
    assert spec.keep_by
    weights_OI = matrix.of(matrix.tensor.flat_weights()).float()
    name = KEEPING[spec.keep_by]
    statistic_OI = None if name is None else matrix.of(calibrated.statistic(name, matrix.tensor)).to(weights_OI.device)
    if spec.keep_by == "grad_x_weight_abs" and statistic_OI is not None:
        statistic_OI = statistic_OI * weights_OI.abs()  # Σ_n |g_n| is what was gathered
    rounds = spec.keep_by in ("tacq", "fisher")
    rounded_OI = rounded(weights_OI, spec.bits, spec.group_size).weights if rounds else None
    key = stream_key("keep", seed, matrix.name)
    return keep_scores(spec.keep_by, weights_OI, rounded_OI, statistic_OI, key).float()
