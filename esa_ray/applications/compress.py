"""A model compressed for the length of a ``with`` block: pruned or quantized, then restored bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from esa_ray.applications.calibrated import Calibrated
from esa_ray.applications.kept import Bitmap, Kept, digest_of, replacing
from esa_ray.applications.pruning import Blocks, prune
from esa_ray.applications.quantizing import quantize
from esa_ray.applications.storing import pruned_bits
from esa_ray.spec.compression import PruneSpec, QuantizeSpec

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import Catalogue


@dataclass(frozen=True)
class Compressed:
    """What a compression did; lists have one entry a block, None where nothing of it was compressed.

    ``n_pruned`` weights are zero by the masks, ``n_kept`` were held out in 16 bits, ``n_changed`` have another value.
    ``block_error`` is ΣΔHΔᵀ / ΣwHwᵀ over a block's matrices, H = Σ xxᵀ of the inputs that they saw. ``blind`` matrices
    saw no input, and were scored by magnitude. ``masks`` mark what was pruned, or kept in 16 bits, by tensor.
    """

    n_weights: int
    n_pruned: int
    n_kept: int
    n_changed: int
    delta_norm: float
    bits_per_weight: float
    block_sparsity: list[float | None]
    block_error: list[float | None]
    blind: int
    masks: dict[str, Bitmap]

    @property
    def digest(self) -> str:
        """SHA-256 of the masks."""
        return digest_of(self.masks.items())


def compress(calibrated: Calibrated, spec: PruneSpec | QuantizeSpec, seed: int, kept: Kept) -> Compressed:
    """Compress the model in hand through ``kept``, which can take it back; the model must be intact.

    ``seed`` is that of the calibration windows; weights that are kept at random are drawn by it.
    """
    if isinstance(spec, PruneSpec):
        done = prune(spec, calibrated, kept)
        return _summed(done, kept, calibrated.catalogue.layers, bits=pruned_bits(spec, done), pruned=True)
    done, bits = quantize(spec, calibrated, kept, seed)
    return _summed(done, kept, calibrated.catalogue.layers, bits=bits, pruned=False)


def _summed(done: Blocks, kept: Kept, depth: int, *, bits: float, pruned: bool) -> Compressed:
    marked = sum(done.gone.values())
    shares = {layer: done.gone[layer] / size if pruned else 0.0 for layer, size in done.sizes.items()}
    return Compressed(
        n_weights=sum(done.sizes.values()),
        n_pruned=marked if pruned else 0,
        n_kept=0 if pruned else marked,
        n_changed=kept.n_changed,
        delta_norm=kept.delta_norm,
        bits_per_weight=bits,
        block_sparsity=[shares.get(layer) for layer in range(depth)],
        block_error=[done.errors.get(layer) for layer in range(depth)],
        blind=done.blind,
        masks=done.masks,
    )


@contextmanager
def compressed(
    model: PreTrainedModel,
    catalogue: Catalogue,
    windows: np.ndarray,
    spec: PruneSpec | QuantizeSpec,
    seed: int = 0,
    *,
    batch_size: int = 8,
    memory_budget: int | None = None,
    calibrated: Calibrated | None = None,
) -> Iterator[Compressed]:
    """Compress a model for the length of a ``with`` block; afterwards it is bit for bit what it was.

    Parameters
    ----------
    windows
        Calibration windows, integers of shape (N, T); never evaluation windows.
    seed
        That of the windows; weights that are kept at random are drawn by it.
    memory_budget
        Bytes above the weights that gathering may take on any one device; None is no limit.
    calibrated
        The same model and windows with what earlier compressions gathered, which isn't gathered again.

    Raises
    ------
    EsaError
        If the model has no such components or structures, or the budget is too small.
    NotRestoredError
        If the weights are not what they were at the end.

    Example
    -------
    >>> import numpy as np
    >>> from esa_ray.models.addressing import catalogue
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=16, n_positions=8)).eval()
    >>> windows = np.arange(32).reshape(4, 8) % 16
    >>> with compressed(model, catalogue(model), windows, PruneSpec(score="act_mag", sparsity=0.5)) as found:
    ...     found.n_pruned / found.n_weights, found.block_sparsity
    (0.5, [0.5, 0.5])
    """
    calibrated = calibrated or Calibrated(model, catalogue, windows, batch_size=batch_size, memory_budget=memory_budget)
    with replacing() as kept:
        yield compress(calibrated, spec, seed, kept)
