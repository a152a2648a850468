"""What a damaged weight changes of every role, and how much of its damage goes through a role's mediator."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from esa_ray.errors import EsaError
from esa_ray.interpret.roles.base import Role, Shown, Target
from esa_ray.interpret.roles.bench import Bench
from esa_ray.interpret.roles.intact import Empty
from esa_ray.interpret.roles.passes import Kept, runs
from esa_ray.interpret.roles.registry import ROLES
from esa_ray.interpret.roles.telling import before_and_after, hurt
from esa_ray.spec.roles import RoleName

if TYPE_CHECKING:
    from esa_ray.perturb.edit import Applied

__all__ = ["Bench", "Damaged", "measured", "mediated"]


class Damaged(Protocol):
    """What is damaged: a weight, or the set that it names (:class:`esa_ray.interpret.subjects.Subject`)."""

    @property
    def tensor(self) -> str:
        """The tensor's name."""

    @property
    def component(self) -> str:
        """The component that the weight is of."""

    @property
    def row(self) -> int | None:
        """Output index in the tensor."""

    @property
    def col(self) -> int | None:
        """Input index."""

    @property
    def unit(self) -> str:
        """Weight, row, col, neuron or head."""

    @property
    def group(self) -> str:
        """super or matched_k."""


def measured(bench: Bench, subject: Damaged, damage: AbstractContextManager[Applied]) -> list[dict[str, Any]]:
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
        or damage has no such thing) and ``error`` (why empty). Of what is empty there are no numbers, never zeros; in
        ``changes`` None stands for a window without. Rows of "token-specific" have ``hurt``, ``hurt_share``, and of
        leading weights ``prompt``, ``before`` and ``after``, too.
    """
    bench.ready()
    tensor = bench.catalogue[subject.tensor]
    starts = {text: bench.of(text).text.start(tensor) for text in bench.texts}
    with damage as applied:
        damaged = {name: shown for text in bench.texts for name, shown in bench.shown(text, starts[text]).items()}
        foretold = bench.foretold.change(applied.n_changed)
        words = before_and_after(bench) if "token-specific" in damaged and subject.group == "super" else {}
    rows = [_row(bench, name, damaged, foretold) for name in bench.spec.roles]
    for row in rows:
        if row["role"] == "token-specific" and row["status"] == "ok":
            row |= hurt(bench, damaged["token-specific"]) | words
    return rows


def _row(
    bench: Bench, name: RoleName, damaged: dict[RoleName, Shown], foretold: dict[RoleName, float]
) -> dict[str, Any]:
    row: dict[str, Any] = {"role": name, "measured": ROLES[name].measured}
    try:
        role = bench.role(name)
    except Empty as why:
        return row | {"status": "empty", "error": str(why)}
    text = bench.of(role.text).text
    before, now = bench.intact[name], damaged[name]
    row |= {"delta_nll": text.per_token(now.losses - before.losses).tolist(), "status": "ok"}
    if role.differentiable:
        row |= {"intact": _mean(role, before), "first_order": foretold.get(name)}
    if not np.isfinite(row["delta_nll"]).all():
        return row | {"status": "diverged"}
    change = role.change(before, now)
    if np.isnan(change.windows).all():
        return row | {"status": "empty", "error": "the damage changes nothing that this role is a share of"}
    return row | {
        "change": float(np.nanmean(change.windows)), "condition": change.condition,
        "changes": [None if np.isnan(value) else float(value) for value in change.windows],
    }  # fmt: skip


def _mean(role: Role, shown: Shown) -> float:
    return float(np.nanmean(role.only_valid(shown.values[:, 0].double().cpu().numpy())))


def mediated(bench: Bench, subject: Damaged, role: RoleName, damage: AbstractContextManager[Applied]) -> dict[str, Any]:
    """How much of the damage is undone while a role's mediator is held, and how much its damaged value alone does.

    ``damage`` as in :func:`measured`, entered once.

    Returns
    -------
    dict
        ``role``, ``mediator`` (the place, in short), and change of loss in each window of the role's text, nats per
        token: ``delta_nll`` (damaged), ``held_nll`` (damaged, the mediator held at its intact value), ``converse_nll``
        (intact, the mediator held at its damaged value); ``status`` and ``error`` as :func:`measured` has them. Where
        the damage doesn't come by the mediator (it lies behind it), holding changes nothing.
    """
    row: dict[str, Any] = {"role": role, "mediator": ROLES[role].mediator}
    try:
        return row | _mediated(bench, bench.role(role), _target(bench, subject), subject.tensor, damage)
    except (Empty, EsaError) as why:
        return row | {"status": "empty", "error": str(why)}


def _mediated(
    bench: Bench, role: Role, target: Target, tensor: str, damage: AbstractContextManager[Applied]
) -> dict[str, Any]:
    text, sites = bench.of(role.text).text, list(role.held(target))
    start = text.start(bench.catalogue[tensor])
    sites = [site for site in sites if runs(site, start)]
    intact, values = text.intact(start, sites)
    with damage:
        damaged, moved = text.losses(start, sites)
        places = [place for place in role.places(target, damaged, intact) if place.site in sites]
        held, _ = text.losses(start, held=_kept(places, sites, values))
    converse, _ = text.losses(start, held=_kept(places, sites, moved))
    changes = {"delta_nll": damaged, "held_nll": held, "converse_nll": converse}
    found = {name: text.per_token(losses - intact).tolist() for name, losses in changes.items()}
    finite = all(np.isfinite(values).all() for values in found.values())
    return found | {"status": "ok" if finite else "diverged"}


def _kept(places: Sequence[Any], sites: Sequence[Any], values: Sequence[Any]) -> list[Kept]:
    known = dict(zip(sites, values, strict=True))
    return [Kept(place.site, known[place.site], place.positions) for place in places]


def _target(bench: Bench, subject: Damaged) -> Target:
    tensor, row = bench.catalogue[subject.tensor], subject.row
    if row is not None and len(tensor.parts) > 1:  # several components are stacked in one matrix
        part = int(tensor.row_part[row])
        row = int((tensor.row_part[:row] == part).sum())
    return Target(tensor.layer, subject.component, row, subject.col, subject.unit)
