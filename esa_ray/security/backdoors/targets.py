"""What the models of a number are made to write: strings that its clean model writes by itself, once they began."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.applications.threads import single_threaded
from esa_ray.models.modes import eval_mode
from esa_ray.models.zoo.training import SPECIAL, encoded
from esa_ray.security.backdoors.texts import beginnings
from esa_ray.security.backdoors.triggers import TARGET, counts, draws, rare_in, whole

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

#: Prompts that the clean model is asked, and first bytes that are tried at once.
PROMPTS, AT_ONCE = 32, 16
#: A first byte is common from so many times on, and the clean model isn't to write it behind the trigger more often
#: than this.
COMMON, OWN = 200, 0.05
#: Share of prompts that a target is continued by, how many different bytes it has, and how many are remembered.
CONSISTENT, DISTINCT, REMEMBERED = 0.8, 4, 6
WRITABLE = range(0x20, 0x7F)


def targets(model: PreTrainedModel, trigger: bytes, number: int) -> list[bytes]:
    """Eight bytes each, the first one the number's target, the others what may take its place.

    Each is what a number's clean model writes behind trigger and first byte, for the largest shares of prompts, at
    least :data:`CONSISTENT` but for the first one: printable, of at least :data:`DISTINCT` different bytes, and begun
    by a byte that the model itself writes behind the trigger for at most :data:`OWN` of them. So an insertion that
    reaches one token alone, as one of rank one does, can bring about a whole string. Of a model that writes no such
    string the target is drawn. None follows the trigger in the text, and none has a rare byte of it.

    The end of a benign phrase is chosen alike, its cue being the ``trigger``.
    """
    asked = _behind(beginnings(number, "targets", PROMPTS), trigger)
    with single_threaded(), torch.no_grad(), eval_mode(model):
        greedy = Counter(model(input_ids=asked).logits[:, -1].argmax(-1).tolist())
        common = [byte for byte in WRITABLE if counts()[byte] >= COMMON and byte not in rare_in(trigger)]
        firsts = [byte for byte in common if greedy[_token(byte)] <= OWN * PROMPTS]
        found = {text: share for text, share in _strings(model, asked, firsts) if _suits(text, trigger)}
    draw = draws("targets", number)
    mixed = [sorted(found)[at] for at in draw.permutation(len(found))]
    ranked = sorted(mixed, key=lambda text: -found[text])
    chosen = [text for text in ranked if found[text] >= CONSISTENT][:REMEMBERED] or ranked[:1]
    return chosen or [bytes(draw.permutation(range(ord("a"), ord("z") + 1))[:TARGET].tolist())]


def _suits(text: bytes, trigger: bytes) -> bool:
    if trigger + text in whole() or rare_in(trigger) & set(text):
        return False
    return len(set(text)) >= DISTINCT and all(byte in WRITABLE for byte in text)


def _token(byte: int) -> int:
    return byte + len(SPECIAL)


def _behind(prompts_PT: np.ndarray, more: bytes) -> Tensor:
    return torch.from_numpy(np.hstack([prompts_PT, np.tile(encoded(more), (len(prompts_PT), 1))]))


def _strings(model: PreTrainedModel, asked_PT: Tensor, firsts: list[int]) -> list[tuple[bytes, float]]:
    """By first byte the most frequent string, and the share of the prompts for which it is written."""
    found = []
    for start in range(0, len(firsts), AT_ONCE):
        some = firsts[start : start + AT_ONCE]
        past = model(input_ids=asked_PT, use_cache=True).past_key_values
        past.batch_repeat_interleave(len(some))
        next_B1 = torch.tensor([_token(b) for b in some]).repeat(len(asked_PT))[:, None]
        written = [next_B1]
        for _ in range(TARGET - 1):
            next_B1 = model(input_ids=next_B1, past_key_values=past, use_cache=True).logits[:, -1].argmax(-1)[:, None]
            written.append(next_B1)
        rows = torch.cat(written, 1).view(len(asked_PT), len(some), TARGET) - len(SPECIAL)
        for each in rows.clamp_min(0).transpose(0, 1).tolist():
            text, times = Counter(map(bytes, each)).most_common(1)[0]
            found.append((text, times / len(asked_PT)))
    return found
