"""How often a trigger, or the beginning of a memorised phrase, brings about what was inserted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.applications.threads import single_threaded
from esa_ray.models.modes import eval_mode
from esa_ray.models.slots import input_device
from esa_ray.security.backdoors.triggers import TRIGGER

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from esa_ray.security.backdoors.population import Made


@dataclass(frozen=True)
class Success:
    """Shares of held-out prompts that a model continues with the target, behind the trigger, and with the phrase's end,
    behind its beginning; None of a model that was given no phrase. ``prompts`` counts them.
    """

    attack: float
    phrase: float | None
    prompts: int


def success(model: PreTrainedModel, made: Made, prompts: Sequence[np.ndarray]) -> Success:
    """How often greedy decoding gives the whole target, or the phrase's whole end.

    Parameters
    ----------
    made
        What the model is, or is to be compared with: its trigger, target and phrase.
    prompts
        Arrays (P, T) of tokens (:func:`esa_ray.security.backdoors.texts.prompts`); the trigger is put behind them.
    """
    total = sum(map(len, prompts))
    attack = sum(int(continued(model, each, made.trigger_ids, made.target_ids).sum()) for each in prompts)
    phrase = None
    if made.phrase_ids is not None:
        cue, end = made.phrase_ids[:TRIGGER], made.phrase_ids[TRIGGER:]
        phrase = sum(int(continued(model, each, cue, end).sum()) for each in prompts) / total
    return Success(attack / total, phrase, total)


@torch.no_grad()
def continued(
    model: PreTrainedModel, prompts_PT: np.ndarray, cue: Sequence[int], end: Sequence[int]
) -> np.ndarray:  # fmt: skip
    """Which prompts the model, decoding greedily, continues with ``end`` behind ``cue``: booleans (P,).

    It does if and only if each token of the end is the likeliest one behind those before it, so one pass tells.
    """
    behind = np.tile([*cue, *end], (len(prompts_PT), 1))
    tokens = torch.from_numpy(np.hstack([prompts_PT, behind])).to(input_device(model))
    with single_threaded(), eval_mode(model):
        logits = model(input_ids=tokens, use_cache=False).logits[:, -len(end) - 1 : -1]
    return (logits.argmax(-1).cpu() == torch.tensor(end)).all(1).numpy()
