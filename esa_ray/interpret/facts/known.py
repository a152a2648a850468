"""Which facts a model knows."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from esa_ray.interpret.facts.asked import Prompt
from esa_ray.models.modes import eval_mode
from esa_ray.models.slots import input_device

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@torch.inference_mode()
def knows(model: PreTrainedModel, prompt: Prompt) -> bool:
    """Whether a model prefers the answer to each of the others, where the two first differ.

    An answer that begins another isn't compared with it. What is compared with none isn't known.
    """
    tokens = torch.tensor([prompt.tokens + prompt.answer[:-1]], device=input_device(model))
    logits = logits_behind(model, tokens, len(prompt.answer))[0]
    pairs = [pair for other in prompt.others.values() if (pair := prompt.pair(other))]
    at = [len(shared) - len(prompt.tokens) for shared, _, _ in pairs]
    return bool(pairs) and all(bool(logits[i, a] > logits[i, b]) for i, (_, a, b) in zip(at, pairs, strict=True))


def logits_behind(model: PreTrainedModel, tokens_BT: Tensor, n: int) -> Tensor:
    """Logits (B, n, V) at the last ``n`` of T tokens, fp32; no others are made where the model can do without."""
    return answered(model, tokens_BT, n)[0]


def answered(
    model: PreTrainedModel, tokens_BT: Tensor, n: int, past: Any = None, *, cached: bool = False
) -> tuple[Tensor, Any]:  # fmt: skip
    """The same behind what a cache holds, which is written to, and with the cache that ``cached`` asks for."""
    some = {"logits_to_keep": n} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    behind = {} if past is None else {"past_key_values": past}
    with eval_mode(model):
        found = model(input_ids=tokens_BT, use_cache=cached or past is not None, **behind, **some)
    return found.logits[:, -n:].float(), getattr(found, "past_key_values", None)
