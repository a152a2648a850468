"""Corrupted runs with states of the clean run put back, many at once.

Legend: K corrupted runs, R rows of a batch, T tokens, H channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from esa_ray.errors import EsaError
from esa_ray.interpret.facts.runs import Runs
from esa_ray.models.blocks import stack
from esa_ray.models.observe import Site, observing
from esa_ray.models.slots import input_device

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Sublayer = Literal["residual", "attention", "ffn"]
SUBLAYERS: tuple[Sublayer, ...] = ("residual", "attention", "ffn")
#: Tokens of a batch.
TOKENS = 1024


@dataclass(frozen=True)
class Place:
    """What is put back at a position: the output of a sub-layer in ``restored`` blocks around one."""

    block: int
    sublayer: Sublayer
    restored: int

    @property
    def first(self) -> int:
        """The first block that it is put back in."""
        return max(0, self.block - self.restored // 2)

    @property
    def sites(self) -> list[Site]:
        """All that is put back, as if there were no end of blocks."""
        return [Site(self.sublayer, b) for b in range(self.first, self.block + self.restored // 2 + 1)]


class Restoring:
    """A clean run of a prompt, corrupted runs of as many tokens, and what restoring states of the clean one does.

    Parameters
    ----------
    clean
        Tokens (T,).
    corrupted, noise
        Tokens (K, T) of the corrupted runs, and what is added to their embeddings, (K, T, H).
    pair
        The tokens of answer and alternative, whose logits at the end are compared.
    """

    def __init__(
        self, model: PreTrainedModel, clean: Sequence[int], corrupted: np.ndarray, noise: np.ndarray,
        pair: tuple[int, int],
    ):  # fmt: skip
        every = (Site(sublayer, block) for block in range(len(stack(model)[1])) for sublayer in SUBLAYERS)
        #: The sites that there are, block by block.
        self.sites = [site for site in every if _there(model, site)]
        device = input_device(model)
        tokens = torch.as_tensor(np.vstack([np.array([clean]), corrupted]), dtype=torch.long, device=device)
        noises = torch.as_tensor(np.concatenate([np.zeros_like(noise[:1]), noise]), device=device)
        self._runs = Runs(model, tokens, noises, pair, self.sites)
        d = self._runs.differences.cpu().numpy()
        #: z(answer) − z(alternative) of the clean run, and of the corrupted ones (K,).
        self.clean, self.corrupted = float(d[0]), d[1:]

    def effects(self, places: Sequence[Place], positions: Sequence[int]) -> np.ndarray:
        """What restoring a place at a position gives back of z(answer) − z(alternative): (places, positions, K)."""
        found = np.empty((len(places), len(positions), len(self.corrupted)))
        for first, (p, position) in product(sorted({place.first for place in places}), enumerate(positions)):
            mine = [i for i, place in enumerate(places) if place.first == first]
            rows = list(product(mine, range(len(self.corrupted))))
            size = max(1, TOKENS // self._runs.tokens.shape[1])
            for start in range(0, len(rows), size):
                some = rows[start : start + size]
                d = self._restored(first, position, [(places[i], k) for i, k in some])
                for (i, k), value in zip(some, d.tolist(), strict=True):
                    found[i, p, k] = value - self.corrupted[k]
        return found

    def _restored(self, first: int, position: int, rows: Sequence[tuple[Place, int]]) -> Tensor:
        """z(answer) − z(alternative) of some corrupted runs with a place restored in each, (R,)."""
        masks: dict[Site, Tensor] = {}
        there = frozenset(self.sites)
        nowhere = torch.zeros(len(rows), self._runs.tokens.shape[1], dtype=torch.bool)
        for row, (place, _) in enumerate(rows):
            for site in place.sites:
                if site in there:
                    masks.setdefault(site, nowhere.clone())[row, position] = True
        runs = torch.tensor([1 + k for _, k in rows], device=self._runs.tokens.device)
        return self._runs.again(first, position, runs, masks)


def _there(model: PreTrainedModel, site: Site) -> bool:
    try:
        with observing(model, [site]):
            return True
    except EsaError:
        if site.kind == "residual":
            raise
        return False
