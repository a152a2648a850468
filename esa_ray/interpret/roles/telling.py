"""What a damaged weight does in words: the types of token that it hurts most, and a text before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from esa_ray.evaluation.loops import continued
from esa_ray.interpret.roles.token_specific import TokenSpecific

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from esa_ray.interpret.roles.base import Shown
    from esa_ray.interpret.roles.bench import Bench

#: Tokens of the prompt at most, and of its continuation.
PROMPT, CONTINUED = 24, 24


def as_text(tokens: np.ndarray, tokenizer: PreTrainedTokenizerBase | None, *, plain: bool = False) -> str:
    """Tokens as text, up to the end of it (−1); without a tokenizer their numbers. ``plain`` leaves special ones out.

    >>> as_text(np.array([5, 6, -1]), None)
    '5 6'
    """
    mine = [int(token) for token in tokens if token >= 0]
    return " ".join(map(str, mine)) if tokenizer is None else str(tokenizer.decode(mine, skip_special_tokens=plain))


def continuation(bench: Bench) -> np.ndarray:
    """How the model as it is now continues the beginning of the first evaluation window, greedily."""
    return continued(bench.model, bench.windows[:1, :PROMPT], CONTINUED)[0]


def hurt(bench: Bench, damaged: Shown) -> dict[str, Any]:
    """Columns ``hurt`` and ``hurt_share`` of a row of "token-specific"."""
    types, shares = TokenSpecific.hit(bench.windows, damaged.losses - bench.intact["token-specific"].losses)
    words = [as_text(token[None], bench.tokenizer) for token in types]
    return {"hurt": words, "hurt_share": shares.tolist()}


def before_and_after(bench: Bench) -> dict[str, Any]:
    """Columns ``prompt``, ``before`` and ``after`` of a row of "token-specific"; called while the damage stands."""
    prompt, after = bench.windows[0, :PROMPT], continuation(bench)
    texts = {"prompt": prompt, "before": bench.continued, "after": after}
    return {name: as_text(tokens, bench.tokenizer, plain=True) for name, tokens in texts.items()}
