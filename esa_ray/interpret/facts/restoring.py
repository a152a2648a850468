"""A corrupted run with states of the clean run put back, many at once.

Legend: K corrupted runs, R rows of a batch, T tokens, H channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from esa_ray.errors import EsaError
from esa_ray.interpret.facts.known import logits_behind
from esa_ray.models.blocks import stack
from esa_ray.models.exhaustion import out_of_memory
from esa_ray.models.forwards import Forward, fed, hand_through, replaced
from esa_ray.models.hooks import leaving
from esa_ray.models.observe import Hold, Site, holding, observing
from esa_ray.models.slots import input_device

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

Sublayer = Literal["residual", "attention", "ffn"]
SUBLAYERS: tuple[Sublayer, ...] = ("residual", "attention", "ffn")
#: Tokens of a batch.
TOKENS = 1024
#: A run that is resumed from a block may differ by this share of the logits from the whole run.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Place:
    """What is put back at a position: the output of a sub-layer in ``restored`` blocks around one."""

    block: int
    sublayer: Sublayer
    restored: int

    @property
    def blocks(self) -> range:
        """The blocks that it is put back in, as far as there are so many."""
        return range(max(0, self.block - self.restored // 2), self.block + self.restored // 2 + 1)


class Restoring:
    """A clean run of a prompt, corrupted runs of as many tokens, and what restoring states of the clean one does.

    Runs are resumed from the first block that a state is restored in, on models that allow it; else they are run whole.

    Parameters
    ----------
    clean
        Tokens (T,).
    corrupted, noise
        Tokens (K, T) of the corrupted runs, and what is added to their embeddings, (K, T, H).
    pair
        The tokens of answer and alternative, whose logits at the end are compared.
    """

    @torch.inference_mode()
    def __init__(
        self, model: PreTrainedModel, clean: Sequence[int], corrupted: np.ndarray, noise: np.ndarray,
        pair: tuple[int, int],
    ):  # fmt: skip
        self.model, self.pair = model, pair
        self._stack = stack(model)[1]
        device = input_device(model)
        self._noise = torch.as_tensor(noise, device=device)
        self._tokens = torch.as_tensor(corrupted, dtype=torch.long, device=device)
        #: The sites that there are, block by block.
        self.sites = [
            site for block in range(len(self._stack)) for s in SUBLAYERS if _there(model, site := Site(s, block))
        ]
        tokens = torch.cat([torch.tensor([list(clean)], device=device), self._tokens])
        noises = torch.cat([torch.zeros_like(self._noise[:1]), self._noise])
        self._lengths: list[int | None] = []
        entrance = Site("residual", -1)
        with observing(model, [entrance, *self.sites]) as seen, self._watched(), self._noised(noises):
            d = self._differences(tokens)
        #: z(answer) − z(alternative) of the clean run, and of the corrupted ones (K,).
        self.clean, self.corrupted = float(d[0]), d[1:].cpu().numpy()
        self._intact = {site: seen[site][:1] for site in self.sites}
        self._entering = [seen[entrance], *(seen[Site("residual", b)] for b in range(len(self._stack) - 1))]
        self._resumes = self._checked(tokens, d)

    def effects(self, places: Sequence[Place], positions: Sequence[int]) -> np.ndarray:
        """What restoring a place at a position gives back of z(answer) − z(alternative): (places, positions, K)."""
        found = np.empty((len(places), len(positions), len(self.corrupted)))
        order = sorted(range(len(places)), key=lambda i: places[i].blocks[0])
        for first, group in groupby(order, key=lambda i: places[i].blocks[0]):
            rows = [(i, p, k) for i in group for p in range(len(positions)) for k in range(len(self.corrupted))]
            size = max(1, TOKENS // self._tokens.shape[1])
            for start in range(0, len(rows), size):
                some = rows[start : start + size]
                d = self._restored(first, [(places[i], positions[p], k) for i, p, k in some])
                for (i, p, k), value in zip(some, d, strict=True):
                    found[i, p, k] = value - self.corrupted[k]
        return found

    @torch.inference_mode()
    def _restored(self, first: int, rows: Sequence[tuple[Place, int, int]]) -> np.ndarray:
        """z(answer) − z(alternative) of some corrupted runs with a place restored in each, (R,)."""
        runs = torch.tensor([k for *_, k in rows], device=self._tokens.device)
        masks: dict[Site, Tensor] = {}
        for row, (place, position, _) in enumerate(rows):
            for site in self._covered(place):
                mask = masks.setdefault(site, torch.zeros(len(rows), self._tokens.shape[1], dtype=torch.bool))
                mask[row, position] = True
        holds = [Hold(site, self._intact[site], mask) for site, mask in masks.items()]
        tokens = self._tokens[runs]
        with holding(self.model, holds):
            if not self._resumes:
                with self._noised(self._noise[runs]):
                    return self._differences(tokens).cpu().numpy()
            state = self._entering[first]
            with replaced(self._resumed(first, state[1 + runs.to(state.device)])):
                return self._differences(tokens).cpu().numpy()

    def _covered(self, place: Place) -> list[Site]:
        return [site for block in place.blocks if (site := Site(place.sublayer, block)) in self._intact]

    def _differences(self, tokens_RT: Tensor) -> Tensor:
        logits_RV = logits_behind(self.model, tokens_RT, 1)[:, 0].double()
        return logits_RV[:, self.pair[0]] - logits_RV[:, self.pair[1]]

    def _resumed(self, first: int, state: Tensor) -> dict[nn.Module, Forward]:
        pairs = zip(self._stack[:first], self._lengths, strict=False)
        forwards: dict[nn.Module, Forward] = {block: partial(hand_through, length) for block, length in pairs}
        return forwards | {self._stack[first]: partial(fed, self._stack[first].forward, state)}

    def _checked(self, tokens: Tensor, d: Tensor) -> bool:
        """Whether resumed runs are whole runs: not where blocks read more of earlier ones than the hidden state."""
        for first in {len(self._stack) // 2, len(self._stack) - 1}:
            try:
                with replaced(self._resumed(first, self._entering[first])):
                    off = (self._differences(tokens) - d).abs()
            except Exception as error:  # whatever a model raises that misses what its earlier blocks would have left
                if out_of_memory(error):
                    raise
                return False
            if not bool((off <= TOLERANCE * (1 + d.abs())).all()):
                return False
        return True

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Notes how each block returns its state: as a tensor (None), or in a tuple of some length."""

        def leave(_: tuple, __: dict, output: Any) -> None:
            self._lengths.append(len(output) if isinstance(output, tuple) else None)

        with ExitStack() as hooks:
            for block in self._stack:
                hooks.enter_context(leaving(block, leave))
            yield

    @contextmanager
    def _noised(self, noise_RTH: Tensor) -> Iterator[None]:
        """Noise on the embeddings of each row."""
        embedding: Any = self.model.get_input_embeddings()
        with leaving(embedding, lambda _, __, output: output + noise_RTH.to(output)):
            yield


def _there(model: PreTrainedModel, site: Site) -> bool:
    try:
        with observing(model, [site]):
            return True
    except EsaError:
        if site.kind == "residual":
            raise
        return False
