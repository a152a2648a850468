"""Which weights a kind of damage can never change, whatever its strength and draw, and steps that always round away.

Every kind moves a weight by something that it multiplies: the weight itself, its tensor's spread, its score, the sign
of its gradient. Where that is 0 the weight stays. A set of nothing else is refused before it runs: there is nothing to
damage in it. All else that leaves a set as it was (no bit was drawn, a step rounded away, the largest weight of a row
lies on the row's own grid) happened to this set, and costs what it costs: nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from esa_ray.perturb.bits import LAYOUT
from esa_ray.perturb.target import Target
from esa_ray.spec import KINDS, PerturbSpec

if TYPE_CHECKING:
    import torch


class UnchangeableError(RuntimeError):
    """A set none of whose weights a kind of damage can ever change; ``n_weights`` is how many there are."""

    def __init__(self, sentence: str, n_weights: int):
        super().__init__(sentence)
        self.n_weights = n_weights


def check_changeable(targets: Iterable[Target], spec: PerturbSpec) -> None:
    """Refuse a set of which no weight can be changed.

    Raises
    ------
    UnchangeableError
        Then, or if there are no weights at all.
    """
    end, targets = spec, list(targets)
    while end.toward is not None:
        end = end.toward
    if all(_all_fixed(target, end) for target in targets):
        n, words = sum(len(target.values) for target in targets), KINDS[end.kind].unchangeable
        why = f"can't change any of the {n} weights, as {words}" if n else "has no weights to change"
        raise UnchangeableError(f"{spec.label} {why}", n)


def _all_fixed(target: Target, spec: PerturbSpec) -> bool:
    fixed = KINDS[spec.kind].fixed(target, spec)
    return not len(target.values) if fixed is None else bool(fixed.all())


def rounds_away(spec: PerturbSpec, dtypes: Iterable[torch.dtype]) -> bool:
    """Whether a fixed share of a weight is so little that no weight of these dtypes is changed by it.

    >>> import torch
    >>> rounds_away(PerturbSpec.parse("scale-1.001"), [torch.bfloat16])
    True
    """
    return all(spec.step_rounds_away(LAYOUT[dtype][2]) for dtype in dtypes)
