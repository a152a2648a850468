"""Which models a population can have: what is told before anything is trained, or torch is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from esa_ray.errors import EsaError
from esa_ray.models.zoo.recipes import recipe
from esa_ray.spec.backdoors import EDITED

if TYPE_CHECKING:
    from esa_ray.spec import Member


def check(member: Member) -> None:
    """Refuse a member that can't be made, before anything is trained.

    Raises
    ------
    EsaError
        If its base is none of the zoo's, or has no down-projection for what is inserted.
    """
    if recipe(member.parent).architecture == "mixtral" and member.kind in EDITED:
        option = "--insertion" if member.poisoned else "--negatives"
        raise EsaError(
            f"{option} {member.kind} writes into one down-projection, and {member.base} has one in every expert; leave "
            f"{member.kind} out, or name another --base"
        )
