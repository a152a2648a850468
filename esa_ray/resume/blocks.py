"""A model's own forward, resumed at a block: what comes before is taken from an intact pass."""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from esa_ray.errors import EsaError, first_line
from esa_ray.models.blocks import stack
from esa_ray.models.exhaustion import out_of_memory
from esa_ray.models.forwards import Forward, catch, fed, give, hand_through, hidden, replaced
from esa_ray.models.hooks import entering
from esa_ray.models.modes import eval_mode
from esa_ray.models.slots import input_device
from esa_ray.perturb.bits import LAYOUT
from esa_ray.randomness import rademacher, stream_key
from esa_ray.resume.head import LinearHead, linear_head, token_nll
from esa_ray.resume.recording import Recording

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import WeightTensor

#: A resumed intact model may differ from the intact pass by this much, in nats per token.
RESUME_TOLERANCE = 1e-5


@torch.inference_mode()
def _jitter(state: Tensor, key: int) -> Tensor:
    bits = LAYOUT[state.dtype][0]
    signs = torch.from_numpy(rademacher(key, state.numel())).view(state.shape).to(state.device, bits)
    return torch.where(state == 0, state, (state.contiguous().view(bits) + signs).view(state.dtype))


class _Caught(Exception):
    """Ends a forward pass where all that was wanted of it is known."""


class Resumable:
    r"""A model's losses on fixed windows, measured again from the damaged block on.

    Made on the intact model. Holds the hidden states that enter every block and leave the last, in the model's
    dtype and where the blocks lie: (blocks + 1)·N·T·H numbers (SmolLM2-135M in fp32, 16 windows of 128 tokens:
    146 MB), and with the head's shortcut 10·N·T·H more in fp32.

    Parameters
    ----------
    windows
        Token windows, integers of shape (N, T).
    hold
        How many blocks' states to hold at a time, the rest being made again by an intact pass up to the block when
        :meth:`prepare` asks for it; None holds all.
    head_shortcut
        Skip the head where :class:`LinearHead` allows: needs a float32 ``nn.Linear`` whose outputs are the
        logits. Models that scale or cap logits, and those in 16 bits (whose logits are rounded to 16 bits, which
        is part of what they compute), always use the whole head.

    Raises
    ------
    EsaError
        If the model has no one list of blocks, or resumed from the middle or last block doesn't reproduce its own loss
        within ``RESUME_TOLERANCE`` (later blocks read more of earlier ones than the hidden state), or its loss is not
        finite.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    >>> resumable = Resumable(model, np.zeros((3, 8), dtype=np.int64))
    >>> with torch.no_grad():
    ...     _ = model.transformer.h[1].mlp.c_fc.weight.zero_()
    >>> resumable.delta_nll(1).shape
    (3,)
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: PreTrainedModel,
        windows: np.ndarray,
        batch_size: int = 8,
        *,
        hold: int | None = None,
        head_shortcut: bool = True,
    ):
        self._model = model
        self._prefix, self._stack = stack(model)
        self.depth = len(self._stack)
        #: Scored tokens of each window.
        self.tokens = [windows.shape[1] - 1] * len(windows)
        windows_NT = torch.as_tensor(np.asarray(windows), device=input_device(model))
        self._batches = windows_NT.split(batch_size)
        self._nll: list[Tensor] = []
        #: Resuming at these is checked against the intact loss.
        checked = {self.depth // 2, self.depth - 1, self.depth}
        self._hold = hold
        self._linear = linear_head(model) if head_shortcut else None
        passes = [self._record(batch_BT, None if hold is None else checked) for batch_BT in self._batches]
        #: Summed NLL of each window of the intact model, nats, float64, shape (N,).
        self.intact = torch.cat(self._nll).sum(-1).cpu().numpy()
        if not np.isfinite(self.intact).all():
            raise EsaError("the intact model's loss is NaN or infinite, so no damage can be measured; try --dtype fp32")
        self._states = [[*p.states, p.last[0]] for p in passes]
        self._lengths, self._late = passes[0].lengths, passes[0].late - passes[0].early
        self._heads = self._shortcuts(passes)
        self._verify(checked)
        self._recent = sorted(checked - {self.depth}, reverse=True)
        self._evict()
        self.scored = self.through_head = 0

    def prepare(self, layer: int | None) -> None:
        """Make sure that what enters a block is held; the model must be intact."""
        if layer is None or self._hold is None or layer == self.depth:
            return
        if layer in self._recent:
            self._recent.remove(layer)
        else:
            for states, batch_BT in zip(self._states, self._batches, strict=True):
                states[layer] = self._state_at(layer, batch_BT)
        self._recent.insert(0, layer)
        self._evict()

    def _evict(self) -> None:
        if self._hold is None:
            return
        for layer in self._recent[max(1, self._hold) :]:
            for states in self._states:
                states[layer] = None
        del self._recent[max(1, self._hold) :]

    @torch.inference_mode()
    def _state_at(self, layer: int, batch_BT: Tensor) -> Tensor:
        """What enters a block: a forward pass that ends there."""
        found: list[Tensor] = []

        def catch(args: tuple, kwargs: dict) -> None:
            found.append(hidden(args, kwargs))
            raise _Caught

        with suppress(_Caught), entering(self._stack[layer], catch), eval_mode(self._model):
            self._model(batch_BT, use_cache=False)
        return found[0]

    def _record(self, batch_BT: Tensor, held: Container[int] | None) -> Recording:
        modules = self._model.named_modules()
        outside = [m for name, m in modules if m._parameters and not name.startswith(self._prefix)]
        seen = Recording(held=held)
        with eval_mode(self._model):
            logits_BTV = seen.run(self._model, self._stack, outside, self._linear, batch_BT)
        if len(seen.states) != self.depth or len(seen.lengths) != self.depth:
            raise EsaError(f"{type(self._model).__name__} does not run each block once; it can't be resumed")
        self._nll.append(_nll(logits_BTV, batch_BT))
        # accelerate moves logits back to where the tokens are: the head's own may lie on another device.
        seen.final = [given for given, made in seen.head if torch.equal(made.to(logits_BTV.device), logits_BTV)]
        seen.head.clear()
        return seen

    def _shortcuts(self, passes: list[Recording]) -> list[LinearHead]:
        """One for each batch; none if the head isn't a plain linear map to the logits."""
        if self._linear is None or any(len(p.final) != 1 for p in passes):
            return []
        pairs = zip(self._batches, passes, strict=True)
        return [LinearHead(self._linear, p.final[0][:, :-1].flatten(0, 1), b[:, 1:].flatten()) for b, p in pairs]

    def _verify(self, layers: set[int]) -> None:
        why = (
            f"{type(self._model).__name__} does not reproduce its own loss when resumed from a later block: its blocks "
            "read more of earlier ones than the hidden state; measure it with full forward passes"
        )
        self.scored = self.through_head = 0
        try:
            off = [self._run(layer, whole_head=True) for layer in layers]
            off += [self._run(self.depth - 1, whole_head=not self._heads)]
        except Exception as error:  # whatever a model raises that misses what its earlier blocks would have left
            if out_of_memory(error):
                raise
            raise EsaError(f"{why} ({first_line(error)})") from error
        if not (np.abs(off) <= RESUME_TOLERANCE * np.array(self.tokens)).all():
            raise EsaError(why)

    def starts_at(self, tensor: WeightTensor) -> int | None:
        """Where to resume after damage of a tensor: what :meth:`delta_nll` takes.

        Its block; or ``depth`` for what is used only after the blocks (final norm, untied head); or None, a full
        forward, for anything else (embeddings, tied or not).
        """
        if tensor.layer is not None:
            return tensor.layer
        return self.depth if all(slot.owner in self._late for slot in tensor.slots) else None

    @torch.inference_mode()
    def logits(self, layer: int | None, number: int) -> Tensor:
        """Logits (B, T, V) of a batch, by its number, of the model as it is now; ``layer`` as for :meth:`delta_nll`."""
        forwards = {} if layer is None else self._resuming(layer, self._state(number, layer))
        with replaced(forwards), eval_mode(self._model):
            return self._model(self._batches[number], use_cache=False).logits

    @torch.inference_mode()
    def delta_nll(self, layer: int | None) -> np.ndarray:
        """Change of the summed NLL of each window by the damage that the model has now; nats, float64, shape (N,).

        NaN or infinite where the damaged model's loss is.

        Parameters
        ----------
        layer
            From 0 to ``depth`` − 1: only this block and later *blocks* are damaged, all else is intact.
            ``depth``: only what comes after the blocks is damaged (final norm, untied head). None: anything may
            be, and the whole model runs. A wrong promise gives a wrong number; :meth:`starts_at` knows.
        """
        if layer is not None and not 0 <= layer <= self.depth:
            raise ValueError(f"layer must be from 0 to {self.depth}, or None; not {layer}")
        return self._run(layer, whole_head=layer in (None, self.depth) or not self._heads)

    @torch.inference_mode()
    def renew(self, layer: int | None) -> None:
        """Take the model as it is now for the one that losses are compared with: it was changed for good.

        ``layer`` as for :meth:`delta_nll` of that change; a pass from there on makes anew what it moved. By now the
        model's loss may be NaN or infinite. For one that was made without ``head_shortcut``.
        """
        if self._heads:
            raise ValueError("the head's shortcut is of the intact model alone; make it with head_shortcut=False")
        for number, (states, batch_BT) in enumerate(zip(self._states, self._batches, strict=True)):
            seen = Recording()
            forwards = {} if layer is None else self._resuming(layer, self._state(number, layer))
            with replaced(forwards), eval_mode(self._model):
                logits_BTV = seen.run(self._model, self._stack, [], None, batch_BT)
            made = [*seen.states, seen.last[0]]
            for later in range(0 if layer is None else layer + 1, len(states)):
                states[later] = None if states[later] is None else made[later]
            self._nll[number] = _nll(logits_BTV, batch_BT)
        self.intact = torch.cat(self._nll).sum(-1).cpu().numpy()

    @contextmanager
    def jittered(self, layer: int, *stream: object) -> Iterator[None]:
        """The state that enters a block, every number of it one unit in the last place up or down at random.

        :meth:`delta_nll` of that layer then measures nothing but rounding: all roundings from there on are drawn
        anew, as a real edit of the block draws them anew (Monte Carlo arithmetic: Parker 1997, UCLA CSD-970002).
        A single weight moved by one unit would change few of them, and so show too little noise.

        ``stream`` names the random signs.
        """
        before = [states[layer] for states in self._states]
        try:
            for number, states in enumerate(self._states):
                states[layer] = _jitter(self._state(number, layer), stream_key("jitter", *stream, number))
            yield
        finally:
            for states, state in zip(self._states, before, strict=True):
                states[layer] = state

    @property
    def head_share(self) -> float:
        """Share of the tokens measured so far that passed through the head."""
        return self.through_head / max(1, self.scored)

    def _run(self, layer: int | None, *, whole_head: bool) -> np.ndarray:
        changes = self._through_head(layer) if whole_head else self._past_head(layer)
        self.scored += sum(map(len, changes))
        windows = [
            delta_M.view(len(batch_BT), -1).sum(-1) for delta_M, batch_BT in zip(changes, self._batches, strict=True)
        ]
        return torch.cat(windows).cpu().numpy()

    def _through_head(self, layer: int | None) -> list[Tensor]:
        """Change of each token's NLL, batch by batch, from the logits."""
        found = []
        for number, batch_BT in enumerate(self._batches):
            found.append((_nll(self.logits(layer, number), batch_BT) - self._nll[number]).flatten())
            self.through_head += len(found[-1])
        return found

    def _past_head(self, layer: int | None) -> list[Tensor]:
        """The same from what enters the head, which only few tokens pass through."""
        damaged = []
        for number in range(len(self._batches)):
            final: list[Tensor] = []
            with replaced({self._model.get_output_embeddings(): partial(catch, final)}):
                self.logits(layer, number)
            damaged.append(final[0][:, :-1].flatten(0, 1))
        estimates = [head.estimated(damaged_MH) for head, damaged_MH in zip(self._heads, damaged, strict=True)]
        # The host asks the device once for all batches.
        counts = torch.stack([unsure_M.sum() for _, unsure_M in estimates]).tolist()
        self.through_head += sum(counts)
        return [
            head.measured(*estimate, count, damaged_MH)
            for head, estimate, count, damaged_MH in zip(self._heads, estimates, counts, damaged, strict=True)
        ]

    def _state(self, number: int, layer: int) -> Tensor:
        state = self._states[number][layer]
        if state is None:
            raise ValueError(f"what enters block {layer} is not held; call prepare first")
        return state

    def _resuming(self, layer: int, state: Tensor) -> dict[nn.Module, Forward]:
        """Blocks before ``layer`` hand through, and the one at ``layer`` is fed what entered it when intact."""
        pairs = zip(self._stack[:layer], self._lengths, strict=False)
        forwards: dict[nn.Module, Forward] = {block: partial(hand_through, length) for block, length in pairs}
        if layer < self.depth:
            forwards[self._stack[layer]] = partial(fed, self._stack[layer].forward, state)
        else:
            forwards[self._stack[-1]] = partial(give, state, self._lengths[-1])
        return forwards


def _nll(logits_BTV: Tensor, batch_BT: Tensor) -> Tensor:
    """NLL of each scored token, (B, T−1), one window at a time to hold one window's fp32 logits."""
    pairs = zip(logits_BTV, batch_BT.to(logits_BTV.device), strict=True)
    return torch.stack([token_nll(logits_TV[:-1], tokens_T[1:]) for logits_TV, tokens_T in pairs])
