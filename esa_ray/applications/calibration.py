"""Calibration windows on their way through a model, block by block: each block sees what the blocks before it give.

A block that was compressed is run again, so that the next one sees what it really gets (sequential, as Wanda and
SparseGPT do it); or it isn't, and every block sees what the intact ones give. The model's own forward runs, with the
blocks before handing through, so masks and positions are its own (:mod:`esa_ray.resume.blocks`). Models whose blocks
read more of earlier ones than the hidden state run as a whole instead: slower, the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from esa_ray.errors import EsaError
from esa_ray.models.blocks import stack
from esa_ray.models.forwards import Forward, fed, hand_through, hidden, replaced
from esa_ray.models.modes import eval_mode
from esa_ray.models.offload import reloading
from esa_ray.models.slots import input_device
from esa_ray.resume import Resumable
from esa_ray.scoring.precision import reproducible_attention
from esa_ray.scoring.products import experts_one_by_one

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

#: Tokens of the window that tells whether a model can be resumed from a block.
TRIAL = 32
#: A context to run one batch's forward in, made for the tokens (B, T) of the batch.
Around = Callable[["Tensor"], AbstractContextManager[Any]]
#: Hears of the hidden states (B, T, H) that a block gave, batch by batch.
Heard = Callable[["Tensor"], None]


class _Enough(Exception):
    """Ends a forward pass where all that was wanted of it is known."""


def resumes(model: PreTrainedModel, windows: np.ndarray) -> bool:
    """Whether a model's blocks read nothing of earlier ones but the hidden state, tried on a short window."""
    try:
        Resumable(model, np.asarray(windows)[:1, :TRIAL], 1, head_shortcut=False)
    except EsaError:
        return False
    return True


class Walk:
    """Calibration windows on their way through the blocks.

    Parameters
    ----------
    windows
        Token windows, integers of shape (N, T).
    stepwise
        Whether a block's recorded inputs are what it needs (:func:`resumes`); else every step runs the whole model.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=16, n_positions=8)).eval()
    >>> walk = Walk(model, np.zeros((3, 8), dtype=np.int64), batch_size=2)
    >>> made = []
    >>> walk.run(0, made.append)
    >>> walk.step(0), [tuple(state.shape) for state in made]
    (None, [(2, 8, 8), (1, 8, 8)])
    """

    def __init__(self, model: PreTrainedModel, windows: np.ndarray, batch_size: int = 8, *, stepwise: bool = True):
        self.model, self.stepwise = model, stepwise
        self.batches = torch.as_tensor(np.asarray(windows), device=input_device(model)).split(batch_size)
        self._stack = blocks_in_list(model)
        self._lengths: dict[int, int | None] = {}
        self._states: list[Tensor] = []
        #: The block that was run last, and what it gave.
        self._made: tuple[int, list[Tensor]] | None = None

    def by_window(self) -> Walk:
        """The same walk at the same block, a window at a time."""
        single = copy(self)
        single.batches = tuple(one for batch_BT in self.batches for one in batch_BT.split(1))
        single._states = [one for state in self._states for one in state.split(1)]
        single._made = None
        return single

    @property
    def positions(self) -> int:
        """How many positions all windows have."""
        return sum(batch_BT.numel() for batch_BT in self.batches)

    def run(
        self, layer: int, heard: Heard | None = None, *, around: Around | None = None, gradients: bool = False
    ) -> None:
        """Run a block, as it is now, on what enters it, or where that can't be, the whole model.

        Every batch's forward runs in the context that ``around`` makes for it; ``heard`` is called after it, outside of
        that, with what the block gave.

        Raises
        ------
        EsaError
            If what a block gives is asked for, and the model's blocks stand in no one list.
        """
        made: list[Tensor] = []
        with _calm(self.model, gradients), torch.enable_grad() if gradients else torch.no_grad():
            for number, batch_BT in enumerate(self.batches):
                with around(batch_BT) if around else nullcontext():
                    state = self._one(layer, number, batch_BT)
                if state is None:
                    if heard:
                        stack(self.model)  # says why there is none
                    continue
                if heard:
                    heard(state)
                if self.stepwise:
                    made.append(state.detach())
        self._made = (layer, made) if self.stepwise else None

    def step(self, layer: int, *, again: bool = False) -> None:
        """Go on to the next block: what the last :meth:`run` of this one gave is what enters it.

        ``again``: run the block once more before, since it was changed.
        """
        if not self.stepwise:
            return
        if again or self._made is None or self._made[0] != layer:
            self.run(layer)
        assert self._made
        self._states, self._made = self._made[1], None

    def _one(self, layer: int, number: int, batch_BT: Tensor) -> Tensor | None:
        """What a block gives for one batch; None if the model's blocks stand in no one list."""
        if not self._stack:
            self.model(batch_BT, use_cache=False)
            return None
        found: list[Tensor] = []
        block = self._stack[layer]
        state = self._states[number] if self.stepwise and layer else None
        before = (
            {m: partial(hand_through, self._lengths[n]) for n, m in enumerate(self._stack[:layer])}
            if (self.stepwise)
            else {}
        )
        forwards: dict[nn.Module, Forward] = {**before, block: partial(self._last, layer, block.forward, state, found)}
        try:
            with replaced(forwards):
                self.model(batch_BT, use_cache=False)
        except _Enough:
            pass
        return found[0] if found else None  # of a block that text doesn't come to

    def _last(
        self, layer: int, forward: Forward, state: Tensor | None, found: list[Tensor], /, *args: Any, **kwargs: Any
    ) -> Any:
        made = fed(forward, hidden(args, kwargs) if state is None else state, *args, **kwargs)
        self._lengths[layer] = len(made) if isinstance(made, tuple) else None
        found.append(made[0] if isinstance(made, tuple) else made)
        if self.stepwise:
            raise _Enough
        return made


def blocks_in_list(model: PreTrainedModel) -> list[nn.Module]:
    """A model's blocks; none where they stand in no list, or in several."""
    try:
        return stack(model)[1]
    except EsaError:
        return []


@contextmanager
def _calm(model: PreTrainedModel, gradients: bool) -> Iterator[None]:
    """Everything that a forward pass with gatherers needs around it."""
    attention = reproducible_attention(model) if gradients else nullcontext()
    with eval_mode(model), experts_one_by_one(model), reloading(model), attention:
        yield
