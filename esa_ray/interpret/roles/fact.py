"""Facts: weights that a model needs to say what it knows of a subject."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from esa_ray.interpret.roles.base import Batch, Place, Role, Target
from esa_ray.models.observe import Site


class FactRole(Role):
    """R = d(fact) − κ·d(control), d = z(answer) − z(alternative): see ``metric`` of
    :class:`esa_ray.interpret.facts.FactPrompts`.

    A window of this role is a fact, and its loss that of the answer. Held: what feed-forward layers add at the
    subject's last token.
    """

    name = "fact"
    measured = "logit of a fact's answer less that of the alternative, less the same of controls"
    mediator = "outputs of feed-forward layers at the subject's last token"
    text = "facts"

    def prepare(self) -> None:
        """See that there are facts."""
        self.prompts = self.bench.known_facts

    def values(self, batch: Batch) -> Tensor:
        """R; all prompts are one batch."""
        return self.prompts.metric(batch.logits_BTV)[:, None]

    def held(self, target: Target) -> Sequence[Site]:
        """Feed-forward layers."""
        tensors = self.bench.catalogue.tensors
        blocks = {t.layer for t in tensors if any(part.component == "down" for part in t.parts)}
        return [Site("ffn", b) for b in sorted(b for b in blocks if b is not None) if target.before(b)]

    def places(self, target: Target, damaged: object, intact: object) -> Sequence[Place]:
        """At the subjects' last tokens."""
        last_PT = torch.from_numpy(self.bench.answered.subject)
        return [Place(site, last_PT) for site in self.held(target)]
