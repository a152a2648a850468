"""Which facts are compared with which. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from esa_ray.interpret.facts.sources import Fact


def alike(fact: Fact, facts: Sequence[Fact]) -> list[Fact]:
    """The facts of one's source and relation, itself among them: alternatives, and other subjects, are of these."""
    return [other for other in facts if (other.source, other.relation) == (fact.source, fact.relation)]
