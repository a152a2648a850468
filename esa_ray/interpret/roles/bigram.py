"""Bigrams: weights that know what mostly follows a token, whatever stood before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from esa_ray.interpret.roles.base import Batch, Change, Empty, Role, Shown, Target
from esa_ray.interpret.roles.tables import Bigrams
from esa_ray.models.observe import Site

#: Bins of the intact model's loss in which tokens are compared.
BINS = 5


class Bigram(Role):
    """R = mean loss of tokens that the bigram table foretells less that of the rest; its change is the ΔNLL's.

    A token is foretold if it is the one that followed the token before it most often in the calibration text, at least
    twice. What is well foretold has more to lose by any damage, up to ln V; so the rest counts as its intact losses lie
    in five bins as those of foretold tokens do, window by window, and collapse alone moves nothing.

    Beside it, as the condition, the change of KL(table ‖ model), nats: positive where damage leads away from the table.
    Held: what leaves block 0.
    """

    name = "bigram"
    measured = "loss of tokens that the bigram table foretells less that of others as sure before, nats per token"
    mediator = "the residual stream after block 0"

    def prepare(self) -> None:
        """Count pairs, and weigh tokens."""
        self.followed = Bigrams(self.bench.calibration).of(self.bench.windows)
        losses, _ = self.bench.of("evaluation").text.intact(None)
        self._weights = contrast(self.followed.predicted, losses)
        if not self.valid.any():
            raise Empty("no evaluation window has tokens that the calibration's bigrams foretell, and others as sure")

    @property
    def valid(self) -> np.ndarray:
        """Windows with tokens of both sorts."""
        return np.asarray(self._weights.any(-1))

    def values(self, batch: Batch) -> Tensor:
        """R, and KL(table ‖ model)."""
        weights_BT = torch.from_numpy(self._weights[batch.windows]).to(batch.nll_BT.device)
        return torch.stack([(batch.nll_BT * weights_BT).sum(-1), self._divergence(batch)], -1)

    def _divergence(self, batch: Batch) -> Tensor:
        """Mean over tokens whose successors are told of Σ_v p_v (ln p_v − ln q_v), (B,)."""
        window, position, token = self.followed.at.T
        mine = (window >= batch.windows.start) & (window < batch.windows.stop)
        device, places = batch.nll_BT.device, (window - batch.windows.start, position, token)
        at = [torch.from_numpy(place[mine]).to(device) for place in places]
        p = torch.from_numpy(self.followed.p[mine]).to(device)
        next_BT = batch.tokens_BT[:, 1:, None].to(batch.logits_BTV.device)
        partition_BT = batch.nll_BT + batch.logits_BTV[:, :-1].gather(-1, next_BT)[..., 0].double()
        log_q = batch.logits_BTV[at[0], at[1], at[2]].double() - partition_BT[at[0], at[1]]
        total_B = torch.zeros(len(batch.tokens_BT), dtype=torch.float64, device=device)
        total_B = total_B.index_add(0, at[0], p * (p.log() - log_q))
        told_B = torch.from_numpy(self.followed.told[batch.windows].sum(-1)).to(device)
        return total_B / told_B.clamp(min=1)

    def change(self, intact: Shown, damaged: Shown) -> Change:
        """Of both."""
        further = (damaged.values[:, 1] - intact.values[:, 1]).cpu().numpy()
        return Change(super().change(intact, damaged).windows, float(further.mean()))

    def held(self, target: Target) -> Sequence[Site]:
        """The residual stream after block 0, if that is where the damage is, or before."""
        return [Site("residual", 0)] if target.before(0) else []


def contrast(foretold: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Weights of the mean over foretold tokens less that over others of like loss, (N, T − 1): 1 less 1 in each window.

    Losses are binned by their quintiles over all windows. A bin of a window without tokens of both sorts is left out; a
    window without a bin has zeros.

    >>> contrast(np.array([[True, False, False]]), np.array([[1.0, 1.0, 9.0]])).tolist()
    [[1.0, -1.0, 0.0]]
    """
    edges = np.quantile(losses, np.arange(1, BINS) / BINS)
    bins = np.searchsorted(edges, losses, side="left")
    found = np.zeros(losses.shape)
    for window, mine, of in zip(found, foretold, bins, strict=True):
        both = [b for b in range(BINS) if (mine & (of == b)).any() and (~mine & (of == b)).any()]
        count = sum((mine & (of == b)).sum() for b in both)
        for b in both:
            share = (mine & (of == b)).sum() / count
            window[mine & (of == b)] = 1 / count
            window[~mine & (of == b)] = -share / (~mine & (of == b)).sum()
    return found
