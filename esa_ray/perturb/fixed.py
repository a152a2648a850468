"""Which weights a kind of damage can never change, whatever its strength and draw, and steps that always round away.

Every kind moves a weight by something that it multiplies: the weight itself, its tensor's spread, its score, the sign
of its gradient. Where that is 0 the weight stays. A set of nothing else is refused before it runs: there is nothing to
damage in it. All else that leaves a set as it was (no bit was drawn, a step rounded away, the largest weight of a row
lies on the row's own grid) happened to this set, and costs what it costs: nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from esa_ray.perturb.bits import LAYOUT
from esa_ray.perturb.kinds import Target, own_scale, spread
from esa_ray.spec import PerturbSpec


class UnchangeableError(RuntimeError):
    """A set none of whose weights a kind of damage can ever change; ``n_weights`` is how many there are."""

    def __init__(self, sentence: str, n_weights: int):
        super().__init__(sentence)
        self.n_weights = n_weights


def _zero(target: Target, spec: PerturbSpec) -> Tensor:
    return target.values == 0


def _none(target: Target, spec: PerturbSpec) -> Tensor:
    return torch.zeros_like(target.values, dtype=torch.bool)


def _without_spread(target: Target, spec: PerturbSpec) -> Tensor:
    return spread(target, spec.relative_to) == 0


def _without_scale(target: Target, spec: PerturbSpec) -> Tensor:
    return own_scale(target, spec) == 0


def _without_gradient(target: Target, spec: PerturbSpec) -> Tensor:
    return _zero(target, spec) | (target.gradient == 0)


def _zero_of_sign(target: Target, spec: PerturbSpec) -> Tensor:
    return _zero(target, spec) if spec.bits == "sign" else _none(target, spec)  # −0 is 0


#: Kind → which weights it can't change, and what these are in words.
FIXED: dict[str, tuple[Callable[[Target, PerturbSpec], Tensor], str]] = {
    **dict.fromkeys(("sign_flip", "zero", "scale", "quantize"), (_zero, "every one is 0")),
    "set_mean": (_none, ""),
    "bit_flip": (_zero_of_sign, "every one is 0"),
    **dict.fromkeys(("gauss_noise", "correlated"), (_without_spread, "what the noise is relative to is 0")),
    "adaptive": (_without_scale, "what the noise is adapted to is 0"),
    **dict.fromkeys(("gradient_aligned", "gradient_opposed"), (_without_gradient, "every one is 0 or has gradient 0")),
}


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
    mask, words = FIXED[end.kind]
    if all(bool(mask(target, end).all()) for target in targets):
        n = sum(len(target.values) for target in targets)
        why = f"can't change any of the {n} weights, as {words}" if n else "has no weights to change"
        raise UnchangeableError(f"{spec.label} {why}", n)


def rounds_away(spec: PerturbSpec, dtypes: Iterable[torch.dtype]) -> bool:
    """Whether a fixed share of a weight is so little that no weight of these dtypes is changed by it.

    >>> from esa_ray.spec import PerturbSpec
    >>> rounds_away(PerturbSpec.parse("scale-1.001"), [torch.bfloat16])
    True
    """
    return all(spec.step_rounds_away(LAYOUT[dtype][2]) for dtype in dtypes)
