"""A loaded model's first forward pass: whether it predicts a token from those before it alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from esa_ray.errors import EsaError, first_line
from esa_ray.models.blocks import context
from esa_ray.models.exhaustion import out_of_memory
from esa_ray.models.slots import input_device

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

#: Tokens of the trial; its two windows differ in the last one.
TOKENS = 8
#: Share of the logits' size by which they may differ before it, in units of the dtype's last place but at least so
#: much, and how many times what equal windows differ. Experts that get other tokens beside round otherwise.
ULPS, TOLERANCE, ROUNDING = 8, 1e-3, 10.0


@torch.inference_mode()
def check_causal(name: str, model: PreTrainedModel) -> None:
    """Refuse a model whose prediction of a token depends on that token, or on later ones.

    Two windows of eight tokens (fewer where the model takes no more) that differ in the last one pass it together. What
    comes before must be the same in both, but for as much as rounding parts two windows that are equal. A model that
    is partly offloaded isn't tried: it would be read from disk once more.

    Raises
    ------
    EsaError
        If it looks ahead: its loss would be that of telling what it has seen. If it fails on eight tokens.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return  # most encoders are told by their configs
    vocabulary = _vocabulary(model)
    first, length = max(0, vocabulary // 2 - TOKENS), min(TOKENS, context(model) or TOKENS)
    tokens_BT = ((first + torch.arange(length, device=input_device(model))) % vocabulary).repeat(2, 1)
    tokens_BT[1, -1] = first
    try:
        ahead, size, tolerance = _difference(model, tokens_BT)
        if not ahead > tolerance * size:  # NaN is somebody else's finding
            return
        tokens_BT[1, -1] = tokens_BT[0, -1]
        rounding, *_ = _difference(model, tokens_BT)
    except Exception as error:  # the model's own code, which may raise anything
        if out_of_memory(error):
            raise
        raise EsaError(f"--model {name} fails on {TOKENS} tokens: {first_line(error)}") from None
    if ahead > ROUNDING * rounding:
        raise EsaError(
            f"--model {name} sees the tokens after the one that it predicts, so its loss says nothing; choose a causal "
            'language model (of a type that may be either, one whose config.json says so: "is_decoder", "causal")'
        )


def _vocabulary(model: PreTrainedModel) -> int:
    """How many tokens there are; those from the middle are tried, since padding and the like stand at the ends."""
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def _difference(model: PreTrainedModel, tokens_BT: Tensor) -> tuple[float, float, float]:
    """The largest difference of two windows' logits before the last token, their size, and what share of it counts."""
    logits_BTV = model(tokens_BT, use_cache=False).logits[:, :-1]
    tolerance, logits_BTV = max(TOLERANCE, ULPS * torch.finfo(logits_BTV.dtype).eps), logits_BTV.float()
    return float((logits_BTV[0] - logits_BTV[1]).abs().max()), float(logits_BTV.abs().max()), tolerance
