"""Induction: what followed a token last time follows it again (Olsson et al. 2022, arXiv:2209.11895)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from esa_ray.interpret.roles.base import Batch, Empty, Role, Target, patterns_from
from esa_ray.interpret.roles.intact import FOCUS
from esa_ray.models.observe import Site


class Induction(Role):
    """R = mean loss of the second half of repeated random tokens less that of the first.

    A window is n random tokens twice (after the token that every window of the text begins with, if there is one). The
    repetition's first token can't be foretold and counts with the first half. Held: patterns of induction heads, those
    whose mean attention to what followed last time exceeds 0.3 in the second half.
    """

    name = "induction"
    measured = "loss of the second less the first half of repeated random tokens, nats per token"
    mediator = "attention patterns of induction heads"
    text = "repeated"

    def prepare(self) -> None:
        """Find the heads."""
        text = self.bench.repeated
        self.heads = self.bench.of("repeated").repeating(text.period)
        if not self.heads:
            raise Empty(f"no head's mean attention to what followed last time exceeds {FOCUS:g}")
        #: Of losses, from the second token on: where the second half begins.
        self._second = text.windows.shape[1] - text.period

    def values(self, batch: Batch) -> Tensor:
        """R."""
        first, second = batch.nll_BT[:, : self._second], batch.nll_BT[:, self._second :]
        return (second.mean(-1) - first.mean(-1))[:, None]

    def held(self, target: Target) -> Sequence[Site]:
        """Patterns."""
        return patterns_from(self.heads, target)
