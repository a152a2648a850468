"""Runs over prompts of one length, done again from a block and a token on with states of the first run put back.

What stands in earlier blocks, and at earlier tokens, is the same as before.

Legend: N runs, R rows of a batch, T tokens, H channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from esa_ray.interpret.facts.known import answered
from esa_ray.models.blocks import stack
from esa_ray.models.exhaustion import out_of_memory
from esa_ray.models.forwards import Forward, fed, hand_through, replaced
from esa_ray.models.hooks import leaving
from esa_ray.models.observe import Hold, Site, holding, observing

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel
    from transformers.cache_utils import DynamicCache

#: A run that is done again in part may differ from the whole run by this share of the logits.
TOLERANCE = 1e-3


class Runs:
    """What N runs make of a pair of answers, z(answer) − z(alternative) at their ends: ``differences`` (N,), float64.

    A model that doesn't make the same of runs that are resumed at a block is run whole, and one that doesn't of runs
    that are resumed at a token, from the first on.

    Parameters
    ----------
    tokens, noise
        (N, T), and what is added to their embeddings, (N, T, H).
    pair
        The tokens of answer and alternative.
    sites
        Where states of the first run may be put back.
    """

    @torch.inference_mode()
    def __init__(
        self, model: PreTrainedModel, tokens: Tensor, noise: Tensor, pair: tuple[int, int], sites: Sequence[Site]
    ):  # fmt: skip
        self.model, self.tokens, self.noise, self.pair = model, tokens, noise, pair
        self._stack = stack(model)[1]
        self._lengths: list[int | None] = []
        entrances = [Site("residual", block - 1) for block in range(len(self._stack))]
        with observing(model, [*entrances, *sites]) as seen, self._watched(), self._noised(noise):
            self.differences, self._past = self._ends(tokens, cached=True)
        self._first = {site: seen[site][:1] for site in sites}
        self._entering = [seen[site] for site in entrances]
        self._resumes = self._agrees([(len(self._stack) // 2, 0), (len(self._stack) - 1, 0)])
        middle, end = tokens.shape[1] // 2, tokens.shape[1] - 1
        self._cuts = self._resumes and self._cached and self._agrees([(0, middle), (len(self._stack) // 2, end)])

    @torch.inference_mode()
    def again(self, block: int, token: int, rows: Tensor, masks: Mapping[Site, Tensor]) -> Tensor:
        """z(answer) − z(alternative) of some runs (R,) with states of the first run put back where masks (R, T) say so.

        Nothing is put back in blocks before ``block``, nor before ``token``.
        """
        token = token if self._cuts else 0
        holds = [Hold(site, self._first[site][:, token:], mask[:, token:]) for site, mask in masks.items()]
        with holding(self.model, holds):
            if self._resumes:
                return self._resumed(block, token, rows)
            with self._noised(self.noise[rows]):
                return self._ends(self.tokens[rows])[0]

    def _resumed(self, block: int, token: int, rows: Tensor) -> Tensor:
        state = self._entering[block]
        with replaced(self._forwards(block, state[rows.to(state.device), token:])):
            return self._ends(self.tokens[rows, token:], self._before(token, rows))[0]

    def _forwards(self, block: int, state: Tensor) -> dict[nn.Module, Forward]:
        pairs = zip(self._stack[:block], self._lengths, strict=False)
        forwards: dict[nn.Module, Forward] = {early: partial(hand_through, length) for early, length in pairs}
        return forwards | {self._stack[block]: partial(fed, self._stack[block].forward, state)}

    def _ends(self, tokens: Tensor, past: Any = None, *, cached: bool = False) -> tuple[Tensor, Any]:
        found, cache = answered(self.model, tokens, 1, past, cached=cached)
        return found[:, 0, self.pair[0]].double() - found[:, 0, self.pair[1]].double(), cache

    @property
    def _cached(self) -> bool:
        """Whether all that later tokens read of earlier ones is keys and values."""
        layers = getattr(self._past, "layers", [])
        whole = self.tokens.shape[1]
        return len(layers) == len(self._stack) and all(
            isinstance(getattr(layer, "keys", None), torch.Tensor) and layer.keys.shape[-2] == whole for layer in layers
        )

    def _before(self, token: int, rows: Tensor) -> DynamicCache | None:
        """Keys and values of what stands before a token."""
        if not token:
            return None
        from transformers.cache_utils import DynamicCache

        cache = DynamicCache()
        for number, layer in enumerate(self._past.layers):
            at = rows.to(layer.keys.device)
            cache.update(layer.keys[at, :, :token], layer.values[at, :, :token], number)
        return cache

    def _agrees(self, starts: Sequence[tuple[int, int]]) -> bool:
        """Whether runs that are resumed at some blocks and tokens end as the whole runs did."""
        every = torch.arange(len(self.tokens), device=self.tokens.device)
        try:
            off = [(self._resumed(*start, every) - self.differences).abs() for start in starts]
        except Exception as error:  # whatever a model raises that misses what it would have left on its way
            if out_of_memory(error):
                raise
            return False
        return all(bool((each <= TOLERANCE * (1 + self.differences.abs())).all()) for each in off)

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
