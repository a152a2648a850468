"""A model in hand with the texts that roles are tested on, and what is kept of it while it is intact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from esa_ray.interpret.facts.prompts import FactPrompts
    from esa_ray.models.addressing import Catalogue
    from esa_ray.spec import RoleSpec


@dataclass(eq=False)
class Bench:
    """One intact model with everything that roles are measured by; made once an actor, used for every subject.

    Parameters
    ----------
    windows
        Evaluation windows (N, T): what most roles are tested on.
    calibration
        Windows (M, T) of the other split, that unigram and bigram tables are made of: the more the better.
    seed
        Names what texts are drawn by.
    weights
        Flat indices by tensor of all weights that will be damaged: their first order comes of one backward pass a role.
        Of others it is null.
    facts
        Prompts of facts that the model knows; None: it knows none, and the role "fact" is empty.
    hold
        How many blocks' hidden states to keep for resumption; None: all (N·T·H numbers a block).
    """

    model: PreTrainedModel
    catalogue: Catalogue
    windows: np.ndarray
    calibration: np.ndarray
    spec: RoleSpec
    seed: int = 0
    batch_size: int = 8
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    facts: FactPrompts | None = None
    hold: int | None = None
