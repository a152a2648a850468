"""Frequency: weights that move all logits towards or away from how often tokens are (arXiv:2406.16254)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from esa_ray.host.mapped import in_file
from esa_ray.interpret.roles.base import Batch, Change, Role, Shown, Target, rounding
from esa_ray.interpret.roles.tables import log_unigram
from esa_ray.models.observe import Direction, Site

#: Intact logits beyond this many bytes a batch lie in a file.
LOGIT_BYTES = 1 << 30


class Frequency(Role):
    """Share of the logits' change along u: Σ_t ⟨Δz_t, u⟩² / Σ_t ‖Δz_t − mean‖², between 0 and 1.

    A window's change is its sum along u over the whole sum of a mean window, so that the mean is the share of sums.

    u is the log-unigram of the calibration text, centred and of length 1. Held: the logits' projection on u.
    """

    name = "frequency"
    measured = "share of the logits' change along the centred log-unigram"
    mediator = "the logits' projection on the centred log-unigram"
    differentiable = False

    def prepare(self) -> None:
        """Count tokens."""
        log_p_V = log_unigram(self.bench.calibration, self.bench.vocabulary)
        self.direction = Direction.of(torch.from_numpy(log_p_V - log_p_V.mean()).float())
        self._intact: dict[int, Tensor] = {}

    def keep(self, batch: Batch) -> None:
        """The logits."""
        z_BTV = batch.logits_BTV
        self._intact[batch.windows.start] = in_file(z_BTV) if z_BTV.nbytes > LOGIT_BYTES else z_BTV.clone()

    def values(self, batch: Batch) -> Tensor:
        """Sums of squares: along u, of all, and of what rounding could make."""
        pairs = zip(batch.logits_BTV, self._intact[batch.windows.start], strict=True)
        return torch.stack([self._sums(now_TV[:-1], before_TV[:-1]) for now_TV, before_TV in pairs])

    def _sums(self, now_TV: Tensor, before_TV: Tensor) -> Tensor:
        moved_TV = now_TV.float() - before_TV.to(now_TV.device).float()
        moved_TV = moved_TV - moved_TV.mean(-1, keepdim=True)
        along = (moved_TV @ self.direction.unit.to(moved_TV.device)).double().square().sum()
        error = rounding(now_TV.dtype) ** 2 * before_TV.float().square().sum(-1).double().sum()
        return torch.stack([along, moved_TV.square().sum(-1).double().sum(), error.to(along.device)])

    def change(self, intact: Shown, damaged: Shown) -> Change:
        """The share; damage that changes logits by no more than rounding has none."""
        along, every, error = damaged.values.double().cpu().numpy().T
        none = every.sum() <= error.sum()
        return Change(np.full(len(every), np.nan) if none else along * len(along) / every.sum())

    def held(self, target: Target) -> Sequence[Site]:
        """The projection."""
        return [Site("projection", direction=self.direction)]
