"""What attention does in the intact model, and what under damage, block by block.

Legend: N windows, B of them in a batch, T positions, V vocabulary, H heads of a block.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from esa_ray.errors import EsaError
from esa_ray.evaluation.tokens import Divergence, scored
from esa_ray.host.mapped import in_file
from esa_ray.interpret.attention.sinks import Looks, Sink, looks, sinks
from esa_ray.interpret.attention.spikes import Spike, spikes, tallest
from esa_ray.models.addressing import catalogue
from esa_ray.models.blocks import text_config
from esa_ray.models.modes import eval_mode
from esa_ray.models.observe import Site, observing
from esa_ray.models.slots import input_device
from esa_ray.resume import Resumable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedModel

#: Patterns of all blocks that are looked at together take at most this many bytes.
PATTERN_BYTES = 1 << 28
#: Intact logits beyond this many bytes lie in files.
LOGIT_BYTES = 1 << 30


class Block(NamedTuple):
    """What one block shows, in each window: its heads' looks (N, H), and its tallest activation (N,)."""

    looks: Looks
    spike: Tensor


class Seen(NamedTuple):
    """What a pass over all windows shows: blocks, and in each window the loss, nats, and the mean square Δlogit."""

    blocks: dict[int, Block]
    nll: np.ndarray
    square: np.ndarray


class Attending:
    """A model's attention, hidden states and loss on fixed windows while it is intact; made while it is.

    Holds what enters every block (blocks·N·T·C numbers, to resume passes), and the intact logits: N·T·V numbers of the
    model's dtype, in files beyond 1 GiB.

    Parameters
    ----------
    windows
        Token windows, integers of shape (N, T).
    batch_size
        Windows of one forward pass at most; fewer where patterns would take more than 256 MiB.

    Raises
    ------
    EsaError
        If the model has no attention that can be seen.
    """

    def __init__(self, model: PreTrainedModel, windows: np.ndarray, batch_size: int = 8):
        self.model = model
        #: Token windows (N, T), where the model reads them.
        self.tokens = torch.as_tensor(np.asarray(windows), device=input_device(model))
        #: The blocks that have attention.
        self.blocks = _attending(model)
        self._batches = self.tokens.split(_fitting(model, len(self.blocks), self.tokens.shape[1], batch_size))
        self._logits: list[Tensor] = []
        self._resumable = self._resumed()
        #: What the intact model shows.
        self.intact = self.run()

    def _resumed(self) -> Resumable | None:
        try:
            # Under the attention that shows its patterns, so that what is resumed is the same to the bit.
            with observing(self.model, [Site("patterns", block) for block in self.blocks]):
                return Resumable(
                    self.model, self.tokens.cpu().numpy(), len(self._batches[0]), head_shortcut=False
                )  # fmt: skip
        except EsaError:
            return None  # blocks read more of earlier ones than the hidden state

    @torch.inference_mode()
    def run(self, first: int | None = None) -> Seen:
        """What the model as it is now shows from block ``first`` on; None: all of it."""
        start = None if self._resumable is None else first
        shown = [block for block in self.blocks if start is None or block >= start]
        sites = [Site(kind, block) for block in shown for kind in ("patterns", "residual")]
        found: defaultdict[int, list[tuple[Looks, Tensor]]] = defaultdict(list)
        told = []
        for number, batch_BT in enumerate(self._batches):
            with observing(self.model, sites) as seen:
                logits_BTV = self._forward(start, number)
            told.append(self._scored(number, logits_BTV, batch_BT))
            for block in shown:
                spike = tallest(seen[Site("residual", block)])
                found[block].append((looks(seen[Site("patterns", block)]), spike))
        nll, _, square = torch.cat(told).T.cpu().numpy()
        positions = self.tokens.shape[1] - 1
        return Seen({block: _joined(parts) for block, parts in found.items()}, nll, square / positions)

    def _forward(self, start: int | None, number: int) -> Tensor:
        if self._resumable is not None:
            return self._resumable.logits(start, number)
        with eval_mode(self.model):
            return self.model(self._batches[number], use_cache=False).logits

    def _scored(self, number: int, logits_BTV: Tensor, batch_BT: Tensor) -> Tensor:
        """Loss, hits and summed mean square of Δlogits of each window of a batch; the first logits are kept."""
        if len(self._logits) == number:
            large = self.tokens.numel() * logits_BTV.shape[-1] * logits_BTV.element_size() > LOGIT_BYTES
            self._logits.append(in_file(logits_BTV) if large else logits_BTV)
        here = logits_BTV.device
        return scored(logits_BTV, batch_BT.to(here), _shift(self._logits[number].to(here)))

    @torch.inference_mode()
    def located(self) -> tuple[list[Spike], list[Sink]]:
        """Where the model as it is now has spikes and sinks, over all windows."""
        patterns: defaultdict[int, list[Tensor]] = defaultdict(list)
        residuals: defaultdict[int, list[Tensor]] = defaultdict(list)
        sites = [Site(kind, block) for block in self.blocks for kind in ("patterns", "residual")]
        for number in range(len(self._batches)):
            with observing(self.model, sites) as seen:
                self._forward(None, number)
            for block in self.blocks:
                patterns[block].append(seen[Site("patterns", block)].cpu())
                residuals[block].append(seen[Site("residual", block)].cpu())
        tokens = self.tokens.cpu()
        return spikes(_cat(residuals), tokens), sinks(_cat(patterns), tokens)


def attended(intact: Attending, first: int | None = None) -> list[dict[str, Any]]:
    """The columns of ``attention/`` from ``block`` to ``delta_nll``, and ``status``: a row a block that has attention.

    Called while the damage stands.

    Parameters
    ----------
    first
        The block of the damaged weights, from which on the model is run; None (what lies in no block, or in several)
        runs all of it.
    """
    before, now = intact.intact, intact.run(first)
    delta = (now.nll - before.nll) / (intact.tokens.shape[1] - 1)
    shift = math.sqrt(float(now.square.mean()))
    status = "ok" if np.isfinite(delta).all() else "diverged"
    return [
        {"block": block, **_row(now.blocks.get(block, mine)), **_row(mine, "_intact"), "delta_z": shift,
         "delta_nll": delta.tolist(), "status": status}
        for block, mine in before.blocks.items()
    ]  # fmt: skip


def _row(block: Block, ending: str = "") -> dict[str, Any]:
    heads = {f"{name}{ending}": values.mean(0).tolist() for name, values in block.looks._asdict().items()}
    return heads | {f"spike{ending}": float(block.spike.mean())}


def _shift(intact_BTV: Tensor) -> Divergence:
    """Mean square over the vocabulary of how far each token's logits moved, their mean apart."""

    def square(b: slice, t: slice, scores: Tensor, _: Tensor) -> Tensor:
        return (scores - intact_BTV[b, t].float()).var(-1, correction=0).double()

    return square


def _joined(parts: list[tuple[Looks, Tensor]]) -> Block:
    every, tall = zip(*parts, strict=True)
    return Block(Looks(*(torch.cat(same).double().cpu() for same in zip(*every, strict=True))), torch.cat(tall).cpu())


def _cat(parts: dict[int, list[Tensor]]) -> Iterable[tuple[int, Tensor]]:
    return ((block, torch.cat(mine)) for block, mine in parts.items())


def _attending(model: PreTrainedModel) -> list[int]:
    """The blocks whose attention has weights of its own."""
    there = {t.layer for t in catalogue(model).tensors if any(p.component in ("q", "k", "v", "o") for p in t.parts)}
    found = sorted(layer for layer in there if layer is not None)
    if not found:
        raise EsaError(f"{type(model).__name__} has no attention whose patterns could be seen; leave attention out")
    return found


def _fitting(model: PreTrainedModel, blocks: int, positions: int, batch_size: int) -> int:
    """How many windows' patterns fit."""
    heads = int(getattr(text_config(model.config), "num_attention_heads", 1))
    return max(1, min(batch_size, PATTERN_BYTES // (4 * blocks * heads * positions**2)))
