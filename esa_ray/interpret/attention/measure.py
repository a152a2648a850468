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
from esa_ray.evaluation.tokens import pieces
from esa_ray.host.mapped import in_file
from esa_ray.interpret.attention.sinks import Looks, Sink, looked_at, looks, received
from esa_ray.interpret.attention.spikes import Spike, Tallest, spikes, tallest
from esa_ray.interpret.roles.passes import Batch, Text
from esa_ray.models.blocks import blocks, text_config
from esa_ray.models.observe import Site, observing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedModel

    from esa_ray.models.addressing import WeightTensor

#: Patterns of all blocks that are looked at together take at most this many bytes.
PATTERN_BYTES = 1 << 28
#: Intact logits beyond this many bytes lie in files.
LOGIT_BYTES = 1 << 30


class Block(NamedTuple):
    """What one block shows, in each window: its heads' looks (N, H), and its tallest activation (N,)."""

    looks: Looks
    spike: Tallest


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
    hold
        How many blocks' hidden states to keep for resumption; None: all.

    Raises
    ------
    EsaError
        If the model has no attention that can be seen.
    """

    def __init__(
        self, model: PreTrainedModel, windows: np.ndarray, batch_size: int = 8, *, hold: int | None = None
    ):  # fmt: skip
        #: The blocks whose attention can be seen.
        self.blocks = _attending(model)
        size = _fitting(model, len(self.blocks), windows.shape[1], batch_size)
        self.text = Text(model, windows, size, hold=hold)
        self._logits: list[Tensor] = []
        #: What the intact model shows.
        self.intact = self.run()

    def prepare(self, tensor: WeightTensor) -> int | None:
        """From which block on to run the model once this is damaged; None: all of it. Called while it is intact."""
        return self.text.start(tensor)

    def run(self, start: int | None = None) -> Seen:
        """What the model as it is now shows from block ``start`` on; None: all of it."""
        shown = [block for block in self.blocks if start is None or block >= start]

        def look(batch: Batch) -> tuple[dict[int, Block], Tensor, Tensor]:
            found = {block: _block(batch, block) for block in shown}
            return found, batch.nll_BT.sum(-1).cpu(), self._moved(batch).cpu()

        every, nll, square = zip(*self.text.run(look, start, self._sites(shown)), strict=True)
        joined = {block: _joined([found[block] for found in every]) for block in shown}
        return Seen(joined, torch.cat(nll).numpy(), torch.cat(square).numpy())

    def _sites(self, shown: Iterable[int]) -> list[Site]:
        return [Site(kind, block) for block in shown for kind in ("patterns", "residual")]

    def _moved(self, batch: Batch) -> Tensor:
        """Mean square of each window's change of logits, scored positions alone; the first logits are kept."""
        logits_BTV, first = batch.logits_BTV[:, :-1], batch.windows.start
        if first >= sum(map(len, self._logits)):
            large = self.text.tokens_NT.numel() * logits_BTV.shape[-1] * logits_BTV.element_size() > LOGIT_BYTES
            self._logits.append(in_file(logits_BTV) if large else logits_BTV.clone())
        number = first // len(self._logits[0])
        return _shift(logits_BTV, self._logits[number].to(logits_BTV.device))

    def located(self) -> tuple[list[Spike], list[Sink]]:
        """Where the model as it is now has spikes and sinks, over all windows."""
        keys: defaultdict[int, list[Tensor]] = defaultdict(list)
        residuals: defaultdict[int, list[Tensor]] = defaultdict(list)

        def look(batch: Batch) -> None:
            for block in self.blocks:
                keys[block].append(received(batch.seen[Site("patterns", block)]).cpu())
                residuals[block].append(batch.seen[Site("residual", block)].cpu())

        self.text.run(look, None, self._sites(self.blocks))
        tokens = self.text.tokens_NT.cpu()
        return spikes(_cat(residuals), tokens), looked_at(_cat(keys), tokens)


def attended(intact: Attending, start: int | None = None) -> list[dict[str, Any]]:
    """The columns of ``attention/`` from ``block`` to ``delta_nll``, and ``status``: a row a block that has attention.

    Called while the damage stands.

    Parameters
    ----------
    start
        From which block on to run the model, as :meth:`Attending.prepare` said of the damaged tensor; None: all of it.
    """
    before, now = intact.intact, intact.run(start)
    delta = (now.nll - before.nll) / (intact.text.tokens_NT.shape[1] - 1)
    shift = math.sqrt(float(now.square.mean()))
    status = "ok" if np.isfinite(delta).all() else "diverged"
    return [
        {"block": block, **_row(now.blocks.get(block, mine)), **_row(mine, "_intact"), "delta_z": shift,
         "delta_nll": delta.tolist(), "status": status}
        for block, mine in before.blocks.items()
    ]  # fmt: skip


def _row(block: Block, ending: str = "") -> dict[str, Any]:
    heads = {f"{name}{ending}": values.mean(0).tolist() for name, values in block.looks._asdict().items()}
    spike = {
        "spike": float(block.spike.ratio.mean()), "spike_channel": int(block.spike.channel.mode().values),
        "spike_first": float((block.spike.position == 0).double().mean()),
    }  # fmt: skip
    return heads | {f"{name}{ending}": value for name, value in spike.items()}


def _block(batch: Batch, block: int) -> Block:
    return Block(looks(batch.seen[Site("patterns", block)]), tallest(batch.seen[Site("residual", block)]))


def _shift(logits_BTV: Tensor, intact_BTV: Tensor) -> Tensor:
    """Mean square of how far logits lie from others, their mean over the vocabulary apart: (B,), float64."""
    windows, positions, vocabulary = logits_BTV.shape
    square_BT = torch.empty((windows, positions), dtype=torch.float64, device=logits_BTV.device)
    for b, t in pieces(windows, positions, vocabulary, logits_BTV.device):
        square_BT[b, t] = (logits_BTV[b, t].float() - intact_BTV[b, t].float()).var(-1, correction=0).double()
    return square_BT.mean(-1)


def _joined(parts: list[Block]) -> Block:
    every, tall = zip(*parts, strict=True)
    return Block(
        Looks(*(torch.cat(same).double().cpu() for same in zip(*every, strict=True))),
        Tallest(*(torch.cat(same).cpu() for same in zip(*tall, strict=True))),
    )


def _cat(parts: dict[int, list[Tensor]]) -> Iterable[tuple[int, Tensor]]:
    return ((block, torch.cat(mine)) for block, mine in parts.items())


def _attending(model: PreTrainedModel) -> list[int]:
    """The blocks whose attention can be seen.

    Raises
    ------
    EsaError
        If there are none.
    """
    found, why = [], f"{type(model).__name__} has no blocks, so no attention can be seen; leave attention out"
    for block in range(blocks(model).depth):
        try:
            with observing(model, [Site("patterns", block)]):
                found.append(block)
        except EsaError as error:
            why = str(error)
    if not found:
        raise EsaError(why)
    return found


def _fitting(model: PreTrainedModel, depth: int, positions: int, batch_size: int) -> int:
    """How many windows' patterns fit."""
    heads = int(getattr(text_config(model.config), "num_attention_heads", 1))
    return max(1, min(batch_size, PATTERN_BYTES // (4 * depth * heads * positions**2)))
