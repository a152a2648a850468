"""Token-specific weights: those that few types of token need, and the rest doesn't."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from esa_ray.interpret.roles.base import Batch, Change, Empty, Place, Role, Shown, Target, rounding
from esa_ray.models.observe import Site

#: How many types of token count as few.
TYPES = 10


class TokenSpecific(Role):
    """Share of the loss's rise that the ten types of token bear that are hit most, less their share of all tokens.

    The rise of a type is the sum of ΔNLL over the tokens of that type that were to be predicted; types whose sum is
    negative count as 0. Which ten are hit most, all windows tell. A window's change is what its tokens of these types
    bear over the rise of a mean window, so that the mean over windows is the share of sums. What rounding could change
    of a token's loss counts as none: it alone has no shares.

    Held, where one of the ten types is to be predicted: the neuron of a gate or up weight; of a down weight, which
    leaves its neuron as it is, what the feed-forward layer adds to the channel that the weight writes to.
    """

    name = "token-specific"
    measured = f"share of the loss's rise of the {TYPES} most hit types of token, less their share of tokens"
    mediator = f"the neuron (of down what it writes) where the {TYPES} most hit types of token follow"
    differentiable = False

    def values(self, batch: Batch) -> Tensor:
        """Nothing: losses tell all."""
        return torch.zeros(len(batch.tokens_BT), 0)

    def change(self, intact: Shown, damaged: Shown) -> Change:
        """The excess of the share; damage that raises no type's loss has none."""
        rise = damaged.losses - intact.losses
        rise = np.where(np.abs(rise) > rounding(self.bench.model.dtype), rise, 0.0)
        mine = np.isin(self._next, self.hit(self.bench.windows, rise)[0])
        total = _by_type(self._next.ravel(), rise.ravel())[1].sum()
        if not total:
            return Change(np.full(len(rise), np.nan))
        return Change((rise * mine).sum(-1) * len(rise) / total - mine.mean(-1))

    @property
    def _next(self) -> np.ndarray:
        return self.bench.windows[:, 1:]

    @staticmethod
    def hit(windows: np.ndarray, rise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The types hit most, first the worst, and their share of the rise; ``rise`` is ΔNLL (N, T − 1)."""
        types, sums = _by_type(windows[:, 1:].ravel(), rise.ravel())
        order = np.argsort(-sums, kind="stable")[:TYPES]
        order = order[sums[order] > 0]
        return types[order], sums[order] / sums.sum() if len(order) else sums[order]

    def held(self, target: Target) -> Sequence[Site]:
        """A place in the feed-forward layer of the damaged block."""
        if target.layer is None or target.component not in ("gate", "up", "down"):
            raise Empty(f"{target.component} is of no neuron")
        if target.unit == "neuron" or (target.component == "down" and target.unit == "col"):
            return [Site("ffn", target.layer)]  # its column is gone, so that the neuron no longer tells
        at = None if target.unit == "col" or target.row is None else (target.row,)
        return [Site("ffn" if target.component == "down" else "neurons", target.layer, index=at)]

    def places(self, target: Target, damaged: np.ndarray, intact: np.ndarray) -> Sequence[Place]:
        """Where the types follow that are hit most."""
        follows = np.isin(self._next, self.hit(self.bench.windows, damaged - intact)[0])
        positions = torch.from_numpy(np.pad(follows, ((0, 0), (0, 1))))
        return [Place(site, positions) for site in self.held(target)]


def _by_type(tokens: np.ndarray, rise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Types of token, and the rise of each, at least 0."""
    types, at = np.unique(tokens, return_inverse=True)
    return types, np.bincount(at.ravel(), np.nan_to_num(rise, nan=0.0, posinf=0.0), len(types)).clip(min=0)
