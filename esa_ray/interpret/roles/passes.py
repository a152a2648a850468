"""Forward passes over the windows of one text: of the intact model, under damage, with a place in the pass held.

Legend: N windows, B of them in a batch, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from esa_ray.errors import EsaError
from esa_ray.models.modes import eval_mode
from esa_ray.models.observe import Hold, Site, holding, observing
from esa_ray.models.slots import input_device
from esa_ray.resume import Resumable
from esa_ray.resume.head import token_nll

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import WeightTensor

Shown = TypeVar("Shown")
#: So many answers of the intact model are remembered: subjects of a tensor share them.
KNOWN = 4


@dataclass(frozen=True)
class Batch:
    """What a pass shows of some windows of a text.

    ``seen`` lacks the places before the block that the pass began with: what stands there is the intact model's.
    ``nll`` is the loss of each token after the first, nats, float64.
    """

    windows: slice
    tokens_BT: Tensor
    logits_BTV: Tensor
    nll_BT: Tensor
    seen: Mapping[Site, Tensor]


@dataclass(frozen=True)
class Kept:
    """What stood at a place in all windows of a text, and where that matters: ``positions`` as :class:`Hold` has it."""

    site: Site
    value: Tensor
    positions: Tensor | None = None

    def of(self, windows: slice) -> Hold:
        """It is held in some windows."""
        positions = None if self.positions is None else self.positions[windows]
        return Hold(self.site, self.value[windows], positions)


class Text:
    """Token windows that a model is run over again and again, from the damaged block on where its forward allows that.

    Made of the intact model.

    Parameters
    ----------
    windows
        Token windows, integers of shape (N, T).
    scored
        Which tokens' losses count, bool (N, T − 1); None: all after the first.
    hold
        As :class:`esa_ray.resume.Resumable` has it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        windows: np.ndarray,
        batch_size: int = 8,
        *,
        scored: np.ndarray | None = None,
        hold: int | None = None,
    ):
        self.model = model
        #: The windows where the model reads them.
        self.tokens_NT = torch.as_tensor(np.asarray(windows), device=input_device(model))
        every = np.ones((len(windows), windows.shape[1] - 1), bool) if scored is None else scored
        #: Whether a token's loss counts, 1 or 0.
        self.scored_NT = torch.as_tensor(every, dtype=torch.float64)
        self._size = batch_size
        self._known: dict[tuple[int | None, tuple[Site, ...]], tuple[np.ndarray, list[Tensor]]] = {}
        try:
            self._resumable: Resumable | None = Resumable(model, windows, batch_size, hold=hold, head_shortcut=False)
        except EsaError:
            self._resumable = None  # its blocks read more of earlier ones than the hidden state

    def __len__(self) -> int:
        return len(self.tokens_NT)

    def start(self, tensor: WeightTensor) -> int | None:
        """From which block on to run the model once this is damaged; None: all of it. Called while it is intact."""
        if self._resumable is None or tensor.layer == 0:
            return None
        start = self._resumable.starts_at(tensor)
        self._resumable.prepare(start)
        return start

    def run(
        self,
        look: Callable[[Batch], Shown],
        start: int | None = None,
        sites: Sequence[Site] = (),
        held: Sequence[Kept] = (),
        *,
        gradients: bool = False,
    ) -> list[Shown]:
        """A pass of the model as it is now from block ``start`` on, with some places held: what ``look`` makes of each
        batch, which shows the places ``sites``.

        With ``gradients`` all of it is run, and what is seen can be differentiated.
        """
        sites = [site for site in sites if runs(site, start)]
        held = [kept for kept in held if runs(kept.site, start)]
        found = []
        with torch.inference_mode(not gradients), torch.set_grad_enabled(gradients):
            for number, batch_BT in enumerate(self.tokens_NT.split(self._size)):
                windows = slice(number * self._size, number * self._size + len(batch_BT))
                holds = [kept.of(windows) for kept in held]
                with holding(self.model, holds), observing(self.model, sites, gradients=gradients) as seen:
                    logits_BTV = self._logits(number, batch_BT, start, gradients)
                nll_BT = _nll(logits_BTV, batch_BT.to(logits_BTV.device))
                found.append(look(Batch(windows, batch_BT, logits_BTV, nll_BT, seen)))
        return found

    def _logits(self, number: int, batch_BT: Tensor, start: int | None, gradients: bool) -> Tensor:
        if self._resumable is not None and not gradients:
            return self._resumable.logits(start, number)
        with eval_mode(self.model):
            return self.model(batch_BT, use_cache=False).logits

    def losses(
        self, start: int | None, sites: Sequence[Site] = (), held: Sequence[Kept] = ()
    ) -> tuple[np.ndarray, list[Tensor]]:
        """Loss of each scored token (N, T − 1), nats, 0 elsewhere; and what stood at each place, over all windows.

        The pass must come by all of these (:func:`runs`).
        """
        shown = self.run(lambda batch: (batch.nll_BT.cpu(), [batch.seen[site] for site in sites]), start, sites, held)
        losses = torch.cat([nll_BT for nll_BT, _ in shown]) * self.scored_NT
        every = zip(*(values for _, values in shown), strict=True)
        return losses.numpy(), [torch.cat(same) for same in every]

    def intact(self, start: int | None, sites: Sequence[Site] = ()) -> tuple[np.ndarray, list[Tensor]]:
        """:meth:`losses` of the intact model; what was asked last is known."""
        key = start, tuple(sites)
        if key not in self._known:
            while len(self._known) >= KNOWN:
                self._known.pop(next(iter(self._known)))
            self._known[key] = self.losses(start, sites)
        return self._known[key]

    def per_token(self, losses_NT: np.ndarray) -> np.ndarray:
        """Mean loss of each window's scored tokens; of windows that have some."""
        count = self.scored_NT.sum(-1).numpy()
        return losses_NT.sum(-1)[count > 0] / count[count > 0]


def runs(site: Site, start: int | None) -> bool:
    """Whether a pass from this block on comes by a place."""
    return start is None or site.layer is None or site.layer >= start


def _nll(logits_BTV: Tensor, tokens_BT: Tensor) -> Tensor:
    """Loss of each token after the first, (B, T − 1): a window at a time, to hold one window's fp32 logits."""
    pairs = zip(logits_BTV, tokens_BT, strict=True)
    return torch.stack([token_nll(logits_TV[:-1], tokens_T[1:]) for logits_TV, tokens_T in pairs])
