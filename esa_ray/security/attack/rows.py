"""What a step of an attack did and what came of it: columns of ``schema.ATTACKS``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from esa_ray.security.numbers import bit_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from esa_ray.evaluation import Outcome
    from esa_ray.models.addressing import WeightTensor
    from esa_ray.security.attack.moves import Move


def vocabulary(model: PreTrainedModel) -> int:
    """V: how many tokens a model's head tells apart."""
    head = model.get_output_embeddings()
    return int(head.weight.shape[0] if head is not None else model.config.get_text_config().vocab_size)


def collapsed(outcome: Outcome, words: int) -> bool:
    """Whether a loss is that of guessing among so many tokens, or more, or not finite.

    >>> from esa_ray.evaluation import Outcome
    >>> [collapsed(Outcome([nll], [1], [0]), 2) for nll in (0.69, 0.70, math.nan)]
    [False, True, True]
    """
    return not outcome.nll_per_token < math.log(words)


def measured(outcome: Outcome, words: int) -> dict[str, Any]:
    """What came of it."""
    return {
        "status": "diverged" if outcome.diverged else "ok", "nll": outcome.nll, "tokens": outcome.tokens,
        "hits": outcome.hits, "collapsed": collapsed(outcome, words), "vocabulary": words,
    }  # fmt: skip


def flipped(move: Move, tensor: WeightTensor, flat: int, dtype: str) -> dict[str, Any]:
    """What a flip was, where, and what was known of it beforehand."""
    flip = move.flip
    where = {name: values[0] for name, values in tensor.locate(np.array([flat])).items()}
    return where | {
        "tensor": tensor.name, "layer": tensor.layer, "row": int(where["row"]), "col": int(where["col"]),
        "bit": flip.bit, "bit_class": bit_class(dtype, flip.bit), "weight": flip.weight, "damaged": flip.damaged,
        "bits_flipped": flip.price, "predicted": move.predicted,
        "selected_nll": None if move.selected is None else float(np.sum(move.selected)), "tried": move.tried,
    }  # fmt: skip
