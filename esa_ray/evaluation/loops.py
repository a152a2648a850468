"""Whether generated text runs into a loop: collapse that a loss on given text doesn't show."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import GenerationConfig

from esa_ray.errors import EsaError, first_line
from esa_ray.models.exhaustion import out_of_memory, poisoned
from esa_ray.models.modes import eval_mode
from esa_ray.models.places import input_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: How often a block of tokens must stand one after the other to be a loop.
REPEATS = 3


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

    Raises
    ------
    EsaError
        If the model can't generate: the cache that some have in transformers is at odds with their own code.

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
        made = [text for some in prompts_PT.split(together) for text in _generated(model, some)]
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


def _generated(model: PreTrainedModel, prompts_PT: torch.Tensor) -> np.ndarray:
    """What comes after some prompts, as far as the longest continuation goes."""
    try:
        made_PT = model.generate(prompts_PT, attention_mask=torch.ones_like(prompts_PT))  # type: ignore[operator]
    except Exception as error:  # a model's own cache may be at odds with its own code
        if out_of_memory(error) or poisoned(error):
            raise
        raise EsaError(
            f"{type(model).__name__} fails in transformers' generate ({first_line(error)}); leave --prompts out"
        ) from error
    return made_PT[:, prompts_PT.shape[1] :].cpu().numpy()
