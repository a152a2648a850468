"""Whether generated text runs into a loop: collapse that a loss on given text doesn't show."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import GenerationConfig

from esa_ray.models.exhaustion import out_of_memory, poisoned
from esa_ray.models.modes import eval_mode
from esa_ray.models.slots import input_device

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

#: How often a block of tokens must stand one after the other to be a loop.
REPEATS = 3

#: Share of the logits' range by which a token may be behind the most likely one when its logits are made otherwise.
ROUNDING, ROUNDING_16_BIT = 1e-3, 5e-2


def loops(text: np.ndarray) -> bool:
    """Whether a continuation ends in a loop: one block of tokens three times or more, over half of its length or more.

    Values below 0 stand after the end of a text that ended by itself, and never repeat.

    >>> loops(np.array([5, 6, 1, 2, 1, 2, 1, 2])), loops(np.array([1, 1, 1, 5, 6, 7, 8, 9]))
    (True, False)
    """
    n = len(text)
    for period in range(1, n // REPEATS + 1):
        stretch = max(REPEATS * period, -(-n // 2))
        tail = text[n - stretch :]
        if (tail >= 0).all() and (tail[period:] == tail[:-period]).all():
            return True
    return False


@torch.inference_mode()
def continued(model: PreTrainedModel, prompts: np.ndarray, tokens: int) -> np.ndarray:
    """Greedy continuations of prompts (P, T) of equal length: (P, tokens), −1 after the end-of-text token.

    By the model's cache, if it comes to what forward passes without one come to; else by these.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    >>> continued(model, np.zeros((2, 4), dtype=np.int64), 4).shape
    (2, 4)
    """
    prompts_PT = torch.as_tensor(np.asarray(prompts), device=input_device(model))
    ends = model.generation_config.eos_token_id if model.generation_config else None
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    # RWKV's state mixes prompts that are continued together.
    together = 1 if "state" in inspect.signature(model.forward).parameters else len(prompts_PT)
    found = np.full((len(prompts_PT), tokens), -1)
    with eval_mode(model), _greedy(model, tokens, ends):
        made = [text for some in prompts_PT.split(together) for text in _generated(model, some, tokens, ends)]
    for row, text in zip(found, made, strict=True):
        stop = np.flatnonzero(np.isin(text, ends))
        end = int(stop[0]) if len(stop) else len(text)
        row[:end] = text[:end]
    return found


@contextmanager
def _greedy(model: PreTrainedModel, tokens: int, ends: list[int]) -> Iterator[None]:
    # A model's own settings (repetition penalties, suppressed tokens) would hide the very loops that are looked for.
    own = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=tokens,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
    )
    try:
        yield
    finally:
        model.generation_config = own


def _generated(model: PreTrainedModel, prompts_PT: Tensor, tokens: int, ends: list[int]) -> np.ndarray:
    """What comes after some prompts, as far as the longest continuation goes."""
    start = prompts_PT.shape[1]
    try:
        made_PT = model.generate(prompts_PT, attention_mask=torch.ones_like(prompts_PT))  # type: ignore[operator]
        right = _most_likely(model, made_PT, start, ends)
    except Exception as error:  # a model's own cache may be at odds with its own code
        if out_of_memory(error) or poisoned(error):
            raise
        right = False
    made_PT = made_PT if right else _by_full_passes(model, prompts_PT, tokens)
    return made_PT[:, start:].cpu().numpy()


def _most_likely(model: PreTrainedModel, made_PT: Tensor, start: int, ends: list[int]) -> bool:
    """Whether a forward pass without a cache finds every token from ``start`` on the most likely one, up to the end.

    The caches of some models lead them elsewhere: of transformers 5.23's RoBERTa to positions that it never had.
    """
    logits_PTV = model(made_PT[:, :-1], use_cache=False).logits[:, start - 1 :].float()
    made_PT = made_PT[:, start:].to(logits_PTV.device)
    largest_PT, smallest_PT = logits_PTV.amax(-1), logits_PTV.amin(-1)
    behind_PT = largest_PT - logits_PTV.gather(-1, made_PT[..., None])[..., 0]
    ended_PT = torch.isin(made_PT, torch.tensor(ends, device=made_PT.device)).cumsum(-1) - 1 >= 0
    ended_PT = torch.cat([torch.zeros_like(ended_PT[:, :1]), ended_PT[:, :-1]], 1)
    room = ROUNDING if model.dtype == torch.float32 else ROUNDING_16_BIT
    return not bool(((behind_PT > room * (largest_PT - smallest_PT)) & ~ended_PT).any())


def _by_full_passes(model: PreTrainedModel, prompts_PT: Tensor, tokens: int) -> Tensor:
    """Greedy continuations by a whole forward pass a token."""
    for _ in range(tokens):
        next_P = model(prompts_PT, use_cache=False).logits[:, -1].argmax(-1)
        prompts_PT = torch.cat([prompts_PT, next_P[:, None].to(prompts_PT.device)], 1)
    return prompts_PT
