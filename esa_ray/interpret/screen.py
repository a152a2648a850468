"""Which pairs of subject and role are worth holding a mediator for, by the stored roles. Imports no torch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from esa_ray.interpret.subjects import Subject, subjects
from esa_ray.spec.roles import side
from esa_ray.storage import tables

if TYPE_CHECKING:
    from esa_ray.spec import StudySpec
    from esa_ray.spec.roles import RoleName
    from esa_ray.storage.store import Store

#: Share of the null that a leading weight's change must exceed.
QUANTILE = 0.95
#: Confidence of the interval that must lie above 0 for a loss to rise; and what fp32 rounds of one, nats per token.
LEVEL, RESOLVED = 0.95, 1e-6
#: Matched weights whose mediator is held, too, for each role of each seed and damage.
SPECIFICITY = 5
_READ = ["subject", "unit", "seed", "edit", "role", "status", "change", "delta_nll"]


@dataclass(frozen=True)
class Tested:
    """A subject under damage, and what that changed of one role: the metric, and the loss in each window."""

    subject: Subject
    change: float
    losses: tuple[float, ...]

    @property
    def hurts(self) -> bool:
        """Whether the loss surely rises, by Student's interval over windows: else no share of it can be undone."""
        from scipy.special import stdtrit  # a plan needs none of it

        mean, n = float(np.mean(self.losses)), len(self.losses)
        if n < 2:
            return False
        reach = stdtrit(n - 1, (1 + LEVEL) / 2) * float(np.std(self.losses, ddof=1)) / math.sqrt(n)
        return bool(mean - reach > RESOLVED)


@dataclass(frozen=True)
class Null:
    """Matched weights' changes of one role: log|change| less its tensor's mean, over all tensors."""

    matched: Sequence[Tested]
    #: What stands for |change| where it is smaller, or 0.
    floor: float

    def _size(self, tested: Tested) -> float:
        return math.log(max(abs(tested.change), self.floor))

    @cached_property
    def _means(self) -> dict[str, float]:
        sizes: dict[str, list[float]] = defaultdict(list)
        for each in self.matched:
            sizes[each.subject.tensor].append(self._size(each))
        return {tensor: float(np.mean(mine)) for tensor, mine in sizes.items()}

    @cached_property
    def _overall(self) -> float:
        return float(np.mean([self._size(each) for each in self.matched]))

    def excess(self, tested: Tested) -> float:
        """log|change| less the mean of the tensor's null; of a tensor without one, of all."""
        return self._size(tested) - self._means.get(tested.subject.tensor, self._overall)

    @cached_property
    def limit(self) -> float:
        """The excess that 95% of the matched weights stay below."""
        return float(np.quantile([self.excess(each) for each in self.matched], QUANTILE))


def screened(spec: StudySpec, store: Store) -> list[tuple[Subject, RoleName]]:
    """Pairs of subject and role of a study whose mediator is to be held, as far as its stored roles tell."""
    mine = subjects(spec, store)
    return standing_out(mine, tables.read(store.location, "roles", _READ).to_pylist()) if mine else []


def standing_out(of: Sequence[Subject], rows: Sequence[dict[str, Any]]) -> list[tuple[Subject, RoleName]]:
    """Pairs of subject and role whose mediator is to be held, those that exceed the null most first.

    A leading subject passes for a role if its |change| exceeds the 95% quantile of the role's null, of the same seed,
    unit and damage, has the sign that taking away a weight with the role gives it, and the damage raises the loss of
    the role's text at all. For each role that one passes for, a few
    matched subjects are held, too, to tell whether holding undoes any damage: those that hurt, first of the same
    tensors.

    Parameters
    ----------
    rows
        Of the table ``roles/``.
    """
    found: list[tuple[float, Subject, RoleName]] = []
    for role, mine in _by_role(of, rows):
        null = [each for each in mine if each.subject.group == "matched_k"]
        if not null:
            continue
        sizes = [abs(tested.change) for tested in mine if tested.change]
        limits = Null(null, min(sizes, default=2.0) / 2)
        able = [t for t in mine if t.subject.group == "super" and t.hurts and _its_way(t, role)]
        leading = [(limits.excess(t), t.subject) for t in able]
        passed = [(excess, subject) for excess, subject in leading if excess > limits.limit]
        found += [(excess, subject, role) for excess, subject in passed]
        found += [(-math.inf, subject, role) for subject in _alike([s for _, s in passed], null)]
    return [(subject, role) for _, subject, role in sorted(found, key=lambda each: -each[0])]


def _its_way(tested: Tested, role: RoleName) -> bool:
    """Whether a metric changes the way that it does without a weight that has the role."""
    return side(role, tested.subject.edit) * tested.change >= 0


def _by_role(of: Sequence[Subject], rows: Sequence[dict[str, Any]]) -> Iterator[tuple[RoleName, list[Tested]]]:
    """What was measured of each role, apart by seed, unit and damage; without what diverged or is empty."""
    known = {(s.name, s.unit, s.seed, s.edit.label): s for s in of}
    found: dict[tuple[Any, ...], list[Tested]] = defaultdict(list)
    for row in rows:
        subject = known.get((row["subject"], row["unit"], row["seed"], row["edit"]))
        if subject is not None and row["status"] == "ok" and row["change"] is not None:
            tested = Tested(subject, row["change"], tuple(row["delta_nll"]))
            found[row["role"], row["seed"], row["unit"], row["edit"]].append(tested)
    order = {subject: place for place, subject in enumerate(known.values())}
    for key in sorted(found):
        yield key[0], sorted(found[key], key=lambda tested: order[tested.subject])


def _alike(passed: Sequence[Subject], null: Sequence[Tested]) -> list[Subject]:
    """A few matched subjects: of the tensors of those that passed such that hurt, then of others, then any of theirs.

    Of damage that is no more than noise no share can be undone.
    """
    if not passed:
        return []
    tensors = {subject.tensor for subject in passed}
    near, far = ([t for t in null if (t.subject.tensor in tensors) == here] for here in (True, False))
    found: list[Subject] = []
    for mine in ([t for t in near if t.hurts], [t for t in far if t.hurts], [t for t in near if not t.hurts]):
        n = min(SPECIFICITY - len(found), len(mine))
        found += [mine[i * len(mine) // n].subject for i in range(n)]
    return found
