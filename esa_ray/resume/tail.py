"""What a model does after its last block, done again on states that left it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from esa_ray.models.blocks import stack
from esa_ray.models.forwards import Forward, give, hand_through, replaced
from esa_ray.models.hooks import leaving, state_of
from esa_ray.models.modes import eval_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Tail:
    """A model's own forward after its last block: final norm, head, and what scales or caps logits.

    Raises
    ------
    EsaError
        If the model has no one list of blocks.

    Example
    -------
    >>> import torch
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=16, n_positions=8)).eval()
    >>> tail, batch = Tail(model), torch.zeros(1, 8, dtype=torch.long)
    >>> with torch.no_grad(), tail.watching() as left:
    ...     logits = model(batch).logits
    >>> bool((tail.logits(left[0], batch) == logits).all())
    True
    """

    def __init__(self, model: PreTrainedModel):
        self._model = model
        self._stack = stack(model)[1]
        self._lengths: dict[nn.Module, int | None] = {}

    @contextmanager
    def watching(self) -> Iterator[list[Tensor]]:
        """Collects what leaves the last block, for the length of a ``with`` block: once a forward pass."""
        left: list[Tensor] = []

        def leave(block: nn.Module, _: tuple, __: dict, output: Any) -> None:
            self._lengths[block] = len(output) if isinstance(output, tuple) else None
            if block is self._stack[-1]:
                left.append(state_of(output))

        with ExitStack() as hooks:
            for block in self._stack:
                hooks.enter_context(leaving(block, partial(leave, block)))
            yield left

    def logits(self, state_BTH: Tensor, batch_BT: Tensor) -> Tensor:
        """Logits (B, T, V) that the model as it is now makes of what left its last block on these tokens."""
        *others, last = self._stack
        forwards: dict[nn.Module, Forward] = {b: partial(hand_through, self._lengths[b]) for b in others}
        forwards[last] = partial(give, state_BTH, self._lengths[last])
        with replaced(forwards), eval_mode(self._model):
            return self._model(batch_BT, use_cache=False).logits
