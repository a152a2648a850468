"""Causal tracing: where in a model a fact is, by what restoring one state of a corrupted run gives back of its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from esa_ray.interpret.facts.sources import Fact

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from esa_ray.models.addressing import Catalogue
    from esa_ray.spec.roles import FactSpec

#: Positions that a state is restored at, and sub-layers whose output it is.
POSITIONS = ("subject-first", "subject-middle", "subject-last", "after", "last")
SUBLAYERS = ("residual", "attention", "ffn")


def traced(
    model: PreTrainedModel, catalogue: Catalogue, tokenizer: PreTrainedTokenizerBase, fact: Fact, spec: FactSpec, *,
    others: Sequence[Fact], seed: int, sensitivity: Mapping[tuple[int, str], float], opening: Sequence[int] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of ``facts/`` (:mod:`esa_ray.schema.roles`): every place of every way of asking for one fact.

    Parameters
    ----------
    others
        The facts that are asked about (:func:`~esa_ray.interpret.facts.facts_of`); those of the same source and relation
        give alternatives, corrupted subjects, and what the answer is to be preferred to.
    seed
        Names the noise and the other subject that are drawn.
    sensitivity
        Of each block's sub-layers (:func:`esa_ray.interpret.facts.sensitivity.sensitivities`).
    opening
        Tokens that every prompt begins with; None: those that the tokenizer puts first.

    Returns
    -------
    list
        ``fact``, ``source``, … ``sensitivity``, ``status`` and ``error``. A way of asking by which the model doesn't know
        the fact is one row, "empty"; so is a corruption that can't be made, as where no other subject has as many tokens.
    """
    raise NotImplementedError
