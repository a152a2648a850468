"""What every window begins with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from esa_ray.errors import EsaError
from esa_ray.spec import DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def opening(spec: DataSpec, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that every window begins with: none, BOS, or what the tokenizer puts before a text by itself.

    What it puts there is what its model was trained with, whatever its config calls it: post-processors put tokens
    first that no ``bos_token`` names, one (``<s>``, BERT's ``[CLS]``) or several (GLM's ``[gMASK]<sop>``).

    Raises
    ------
    EsaError
        If BOS is asked for and there is none.
    """
    if spec.bos == "never":
        return []
    bos, added = tokenizer.bos_token_id, put_first(tokenizer)
    if bos is not None and (spec.bos == "always" or added[:1] == [bos]):
        return [bos]
    if spec.bos == "always" and not added:
        raise EsaError("--bos always, but this tokenizer has no BOS token; use --bos never")
    return added


def put_first(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What a tokenizer puts before the tokens of a text."""
    whole, plain = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    starts = (n for n in range(len(whole) - len(plain) + 1) if whole[n : n + len(plain)] == plain)
    return list(whole[: next(starts, 0)])


def shown(tokens: list[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Tokens as the vocabulary writes them."""
    return tuple(map(str, tokenizer.convert_ids_to_tokens(tokens)))
