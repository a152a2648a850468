"""What a damaged weight changes of every role, and how much of its damage goes through a role's mediator."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from esa_ray.interpret.roles.bench import Bench
from esa_ray.spec.roles import RoleName

__all__ = ["Bench", "Damaged", "measured", "mediated"]


class Damaged(Protocol):
    """What is damaged: a weight, or a set that its first matrix names (:class:`esa_ray.interpret.subjects.Subject`)."""

    tensor: str
    row: int | None
    col: int | None


def measured(bench: Bench, subject: Damaged, damage: AbstractContextManager[Any]) -> list[dict[str, Any]]:
    """A row a role: what damage changes of its metric, in each window of its text.

    Parameters
    ----------
    bench
        Of the intact model; what it keeps of that is made before the damage stands.
    damage
        Lets the damage stand for the length of a ``with`` block (:func:`esa_ray.perturb.edit.perturbed`); entered once.

    Returns
    -------
    list
        In the order of ``bench.spec.roles``: ``role``, ``measured``, ``change``, ``changes``, ``intact``,
        ``first_order``, ``condition``, ``delta_nll``, ``status`` (ok; diverged: NaN or infinite loss; empty: this model
        or damage has no such thing) and ``error`` (why empty). Of what is empty there are no numbers, never zeros.
    """
    raise NotImplementedError


def mediated(bench: Bench, subject: Damaged, role: RoleName, damage: AbstractContextManager[Any]) -> dict[str, Any]:
    """How much of the damage is undone while a role's mediator is held, and how much its damaged value alone does.

    ``damage`` as in :func:`measured`, entered once.

    Returns
    -------
    dict
        ``role``, ``mediator`` (the place, in short), and change of loss in each window of the role's text, nats per
        token: ``delta_nll`` (damaged), ``held_nll`` (damaged, the mediator held at its intact value), ``converse_nll``
        (intact, the mediator held at its damaged value); ``status`` and ``error`` as :func:`measured` has them.
    """
    raise NotImplementedError
