"""Three ways to keep what an intact model predicts, the smallest first, and the divergence from each.

Legend: N windows, B of them in a batch, T positions, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from esa_ray.errors import EsaError
from esa_ray.evaluation.tokens import Divergence, partitions
from esa_ray.host.mapped import in_file
from esa_ray.models.hooks import entering
from esa_ray.resume.tail import Tail

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Predictions(Protocol):
    """What an intact model predicts on fixed windows, kept batch by batch."""

    def watching(self) -> AbstractContextManager[list[Tensor]]:
        """Collects what is needed of a damaged model's pass beside its logits, for the length of a ``with`` block."""

    def recording(self) -> AbstractContextManager[list[Tensor]]:
        """The same of the intact model's pass."""

    def keep(self, batch_BT: Tensor, logits_BTV: Tensor, seen: list[Tensor]) -> bool:
        """Keep the predictions of the next batch; False if this way doesn't do for the model."""

    def against(self, windows: slice, seen: list[Tensor], device: torch.device) -> Divergence:
        """What measures the divergence from the predictions on some windows; ``seen`` of the damaged model."""

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""


def _cut(batches: Sequence[Tensor], windows: slice) -> Tensor:
    """Some windows of what is kept batch by batch."""
    found, first = [], 0
    for batch in batches:
        if windows.start < first + len(batch) and first < windows.stop:
            found.append(batch[max(0, windows.start - first) : windows.stop - first])
        first += len(batch)
    return found[0] if len(found) == 1 else torch.cat(found)


class Expectations:
    """E_p[W], the hidden state h that enters the head, and the log-sum-exp of the logits, 2H + 1 numbers a token."""

    def __init__(self, model: PreTrainedModel):
        self._head = model.get_output_embeddings()
        self._expected: list[Tensor] = []
        self._hidden: list[Tensor] = []
        self._partition: list[Tensor] = []

    @contextmanager
    def watching(self) -> Iterator[list[Tensor]]:
        """Collects what enters the head."""
        seen: list[Tensor] = []
        with entering(self._head, lambda args, _: seen.append(args[0])):
            yield seen

    recording = watching

    def keep(self, _: Tensor, logits_BTV: Tensor, seen: list[Tensor]) -> bool:
        """False where the logits are not what the head makes."""
        here, weight_VH = logits_BTV.device, self._head.weight
        if len(seen) != 1 or not torch.equal(self._head(seen[0]).to(here), logits_BTV):
            return False
        expected = []
        for logits_TV in logits_BTV[:, :-1]:
            p_TV = logits_TV.softmax(-1).to(weight_VH.device)
            # In float32 the softmax of a large vocabulary sums to 1 + 10⁻⁵ or so.
            expected.append((p_TV @ weight_VH).double() / p_TV.sum(-1, keepdim=True, dtype=torch.float64))
        self._expected.append(torch.stack(expected).float().to(here))
        self._hidden.append(seen[0][:, :-1].to(here, copy=True))
        self._partition.append(partitions(logits_BTV))
        return True

    def against(self, windows: slice, seen: list[Tensor], device: torch.device) -> Divergence:
        """KL from what enters the damaged model's head, and its logits' log-sum-exp."""
        (damaged_BTH,) = seen
        damaged_BTH = damaged_BTH.to(device)  # inputs of a head on another device are seen before they are moved
        kept = (_cut(batches, windows).to(device) for batches in (self._expected, self._hidden, self._partition))
        expected_BTH, hidden_BTH, partition_BT = kept

        def kl(b: slice, t: slice, _: Tensor, partition: Tensor) -> Tensor:
            change = hidden_BTH[b, t].double() - damaged_BTH[b, t].double()
            return (expected_BTH[b, t].double() * change).sum(-1) + partition - partition_BT[b, t]

        return kl

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return sum(t.nbytes for kept in (self._expected, self._hidden, self._partition) for t in kept)


def _from_logits(intact_BTV: Tensor, partition_BT: Tensor) -> Divergence:
    """KL from the intact logits and their log-sum-exp."""

    def kl(b: slice, t: slice, damaged: Tensor, partition: Tensor) -> Tensor:
        before = intact_BTV[b, t].float()
        p = before.softmax(-1)
        shift = (before - damaged).mul_(p).sum(-1, dtype=torch.float64) / p.sum(-1, dtype=torch.float64)
        return shift + partition - partition_BT[b, t]

    return kl


class States:
    """What leaves the last block, H numbers a token in the model's dtype: its own tail makes the logits of it again."""

    def __init__(self, model: PreTrainedModel):
        self._tail = Tail(model)
        self._states: list[Tensor] = []
        self._tokens: list[Tensor] = []
        self._partition: list[Tensor] = []

    def watching(self) -> AbstractContextManager[list[Tensor]]:
        """Nothing."""
        return nullcontext([])

    def recording(self) -> AbstractContextManager[list[Tensor]]:
        """Collects what leaves the last block."""
        return self._tail.watching()

    def keep(self, batch_BT: Tensor, logits_BTV: Tensor, seen: list[Tensor]) -> bool:
        """False where the tail doesn't make the same logits to the bit."""
        try:
            if len(seen) != 1 or not torch.equal(self._tail.logits(seen[0], batch_BT), logits_BTV):
                return False
        except Exception:  # whatever a model raises that misses what its blocks would have left
            return False
        self._states.append(seen[0])
        self._tokens.append(batch_BT)
        self._partition.append(partitions(logits_BTV))
        return True

    def against(self, windows: slice, _: list[Tensor], device: torch.device) -> Divergence:
        """KL from logits that are made again, each batch at its own shape: other shapes may round otherwise."""
        made, mine, first = [], [], 0
        for state_BTH, batch_BT in zip(self._states, self._tokens, strict=True):
            if windows.start < first + len(batch_BT) and first < windows.stop:
                made.append(self._tail.logits(state_BTH, batch_BT)[:, :-1].to(device))
                mine.append(first)
            first += len(batch_BT)
        within = slice(windows.start - mine[0], windows.stop - mine[0])
        return _from_logits(_cut(made, within), _cut(self._partition, windows).to(device))

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return sum(t.nbytes for kept in (self._states, self._tokens, self._partition) for t in kept)


class Logits:
    """V logits a token, in the dtype that they come in, on the host: in memory, or where ``in_files`` in files."""

    def __init__(self, *, in_files: bool):
        self._in_files = in_files
        self._logits: list[Tensor] = []
        self._partition: list[Tensor] = []

    def watching(self) -> AbstractContextManager[list[Tensor]]:
        """Nothing."""
        return nullcontext([])

    recording = watching

    def keep(self, _: Tensor, logits_BTV: Tensor, __: list[Tensor]) -> bool:
        """Always does."""
        scored_BTV = logits_BTV[:, :-1]
        self._logits.append(in_file(scored_BTV) if self._in_files else scored_BTV.cpu().clone())
        self._partition.append(partitions(logits_BTV))
        return True

    def against(self, windows: slice, _: list[Tensor], device: torch.device) -> Divergence:
        """KL from these logits."""
        kept = (_cut(batches, windows).to(device) for batches in (self._logits, self._partition))
        return _from_logits(*kept)

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return sum(t.nbytes for kept in (self._logits, self._partition) for t in kept)


def ways(model: PreTrainedModel, *, compact: bool, remade: bool, in_files: bool) -> Iterator[Predictions]:
    """The ways that may do for a model, the smallest first."""
    if compact:
        yield Expectations(model)
    if remade:
        with suppress(EsaError):  # a model without a list of blocks
            yield States(model)
    yield Logits(in_files=in_files)
