"""A model in hand with the texts that roles are tested on, and what is kept of it while it is intact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.errors import EsaError
from esa_ray.interpret.roles.base import Role, Shown
from esa_ray.interpret.roles.foretold import Foretold
from esa_ray.interpret.roles.intact import Empty, Intact
from esa_ray.interpret.roles.passes import Batch, Text
from esa_ray.interpret.roles.registry import ROLES
from esa_ray.interpret.roles.telling import continuation
from esa_ray.interpret.roles.texts import Answered, Repeated, answered, repeated
from esa_ray.models.blocks import vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from esa_ray.interpret.facts.prompts import FactPrompts
    from esa_ray.models.addressing import Catalogue
    from esa_ray.spec.roles import RoleName, RoleSpec


@dataclass(eq=False)
class Bench:
    """One intact model with everything that roles are measured by; made once an actor, used for every subject.

    What is kept of the intact model is made when it is first asked for, which
    :func:`~esa_ray.interpret.roles.measured` does before it lets damage stand.

    Parameters
    ----------
    windows
        Evaluation windows (N, T): what most roles are tested on. The text "repeated" is made of as many.
    calibration
        Windows (M, T) of the other split, that unigram and bigram tables are made of: the more the better.
    seed
        Names what texts are drawn by.
    weights
        Flat indices by tensor of all weights that will be damaged: their first order comes of one backward pass a role.
        Of others it is null.
    facts
        Prompts of facts that the model knows; None: the role "fact" is empty.
    tokenizer
        Tells tokens as text; None: rows have their numbers.
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
    tokenizer: PreTrainedTokenizerBase | None = None
    hold: int | None = None

    @cached_property
    def vocabulary(self) -> int:
        """How many tokens the model tells apart."""
        return vocabulary(self.model)

    @cached_property
    def repeated(self) -> Repeated:
        """Random tokens, repeated."""
        return repeated(self.windows, self.seed)

    @property
    def known_facts(self) -> FactPrompts:
        """The facts.

        Raises
        ------
        Empty
            If there are none.
        """
        if self.facts is None or not len(self.facts):
            raise Empty((self.facts and self.facts.why) or "no prompts of facts were made")
        return self.facts

    @cached_property
    def answered(self) -> Answered:
        """The facts' prompts, with their answers behind them."""
        return answered(self.known_facts)

    @cached_property
    def _intact(self) -> dict[str, Intact]:
        return {}

    def of(self, text: str) -> Intact:
        """What the intact model shows on a text: evaluation, repeated or facts."""
        if text not in self._intact:
            self._intact[text] = Intact(self._made(text), self.catalogue.layers)
        return self._intact[text]

    def _made(self, text: str) -> Text:
        if text == "evaluation":
            return Text(self.model, self.windows, self.batch_size, hold=self.hold)
        if text == "repeated":
            return Text(self.model, self.repeated.windows, self.batch_size, hold=self.hold)
        prompts = self.answered
        return Text(self.model, prompts.windows, len(prompts.windows), scored=prompts.scored, hold=self.hold)

    @cached_property
    def _roles(self) -> dict[RoleName, Role | str]:
        found: dict[RoleName, Role | str] = {}
        for name in self.spec.roles:
            try:
                found[name] = ROLES[name](self)
            except (Empty, EsaError) as why:
                found[name] = str(why)
        return found

    def role(self, name: RoleName) -> Role:
        """A role of the spec.

        Raises
        ------
        Empty
            If this model or text has no such thing.
        """
        found = self._roles[name]
        if isinstance(found, str):
            raise Empty(found)
        return found

    @cached_property
    def there(self) -> tuple[Role, ...]:
        """The roles of the spec that can be measured of this model."""
        return tuple(role for role in self._roles.values() if not isinstance(role, str))

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The texts that these need."""
        return tuple(dict.fromkeys(role.text for role in self.there))

    @cached_property
    def intact(self) -> dict[RoleName, Shown]:
        """What every role shows in the intact model."""
        return {name: shown for text in self.texts for name, shown in self.shown(text, None, keep=True).items()}

    def shown(self, text: str, start: int | None, *, keep: bool = False) -> dict[RoleName, Shown]:
        """What the roles of a text show in the model as it is now, run from block ``start`` on."""
        mine, run = [role for role in self.there if role.text == text], self.of(text).text

        def look(batch: Batch) -> list[torch.Tensor]:
            for role in mine if keep else ():
                role.keep(batch)
            return [batch.nll_BT.cpu(), *(role.values(batch) for role in mine)]

        sites = list(dict.fromkeys(site for role in mine for site in role.sites()))
        losses, *values = (torch.cat(same) for same in zip(*run.run(look, start, sites), strict=True))
        scored = (losses * run.scored_NT).numpy()
        return {role.name: Shown(each, scored) for role, each in zip(mine, values, strict=True)}

    @cached_property
    def foretold(self) -> Foretold:
        """The first order of damage to ``weights``, by role."""
        return Foretold(self)

    def ready(self) -> None:
        """Make what is kept of the intact model; called while it is."""
        _ = self.intact, self.foretold
        if "token-specific" in self.intact:
            _ = self.continued

    @cached_property
    def continued(self) -> np.ndarray:
        """How the intact model continues the beginning of a window, greedily."""
        return continuation(self)
