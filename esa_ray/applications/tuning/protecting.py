"""What keeps what the source text needs while everything is tuned.

F is the Fisher information Σ_n g_n² of the source's calibration windows, g_n the gradient of a window's summed NLL,
divided by its mean over all weights of the components: so no strength depends on how long the text is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from esa_ray.applications import masks
from esa_ray.errors import EsaError

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.applications.kept import Kept
    from esa_ray.applications.tuning.trained import Weights


class NoInformationError(EsaError):
    """Fisher information that tells no weights apart: NaN, infinite, or 0 everywhere."""


class Guard:
    """No protection; others are derived from it. ``masters`` are what is trained."""

    def __init__(self, masters: Sequence[Tensor]):
        self.masters = masters

    @property
    def held(self) -> int:
        """How many of the masters' numbers can't move."""
        return 0

    def measure(self, fisher: Sequence[Tensor]) -> None:
        """Take the Fisher information of each master's weights, over its mean."""

    def pull(self) -> None:
        """Add to the gradients, or take from them."""

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Around an update of the masters."""
        yield

    def state(self) -> Any:
        """What it goes on from."""

    def resume(self, state: Any) -> None:
        """Go on from a state."""


class Penalty(Guard):
    """Elastic weight consolidation: λ/2·Σ F·(w − w₀)² is added to the loss (Kirkpatrick et al. 2017)."""

    def __init__(self, masters: Sequence[Tensor], before: Sequence[Tensor], strength: float):
        super().__init__(masters)
        self._before = [each.to(master.device) for each, master in zip(before, masters, strict=True)]
        self._strength = strength
        self._fisher: Sequence[Tensor] = ()

    def measure(self, fisher: Sequence[Tensor]) -> None:
        """See :class:`Guard`."""
        self._fisher = fisher

    def pull(self) -> None:
        """Add λ·F·(w − w₀)."""
        for master, before, fisher in zip(self.masters, self._before, self._fisher, strict=True):
            pull = (master - before.to(master.dtype)).mul_(fisher).mul_(self._strength)
            master.grad = pull if master.grad is None else master.grad.add_(pull)

    def state(self) -> Any:
        """See :class:`Guard`."""
        return list(self._fisher)

    def resume(self, state: Any) -> None:
        """See :class:`Guard`."""
        self._fisher = [was.to(master) for was, master in zip(state, self.masters, strict=True)]


class Freeze(Guard):
    """The weights with the largest F stay as they are, bit for bit."""

    def __init__(self, masters: Sequence[Tensor], share: float):
        super().__init__(masters)
        self._share = share
        self._at: Sequence[Tensor] = ()

    @property
    def held(self) -> int:
        """See :class:`Guard`."""
        return sum(map(len, self._at))

    def measure(self, fisher: Sequence[Tensor]) -> None:
        """See :class:`Guard`."""
        self._at = [torch.nonzero(mask).flatten() for mask in masks.largest(fisher, self._share)]
        if not self.held:
            n = sum(each.numel() for each in fisher)
            raise EsaError(f"--strength {self._share:g} of {n:,} weights freezes not one; raise it")

    def pull(self) -> None:
        """What is frozen has no gradient."""
        for master, at in zip(self.masters, self._at, strict=True):
            if master.grad is not None:
                master.grad[at] = 0

    @contextmanager
    def holding(self) -> Iterator[None]:
        """What is frozen stands again afterwards: momentum of earlier steps moves it, and rounding turns −0 to 0."""
        before = [master[at] for master, at in zip(self.masters, self._at, strict=True)]
        yield
        for master, at, was in zip(self.masters, self._at, before, strict=True):
            master[at] = was

    def state(self) -> Any:
        """See :class:`Guard`."""
        return list(self._at)

    def resume(self, state: Any) -> None:
        """See :class:`Guard`."""
        self._at = [was.to(master.device) for was, master in zip(state, self.masters, strict=True)]


class Scale(Guard):
    """Every update is multiplied by 1/(1 + F/τ): the update, since Adam divides a factor of the gradient out."""

    def __init__(self, masters: Sequence[Tensor], tau: float):
        super().__init__(masters)
        self._tau = tau
        self._factor: Sequence[Tensor] = ()

    def measure(self, fisher: Sequence[Tensor]) -> None:
        """See :class:`Guard`."""
        self._factor = [1 / (1 + each / self._tau) for each in fisher]

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Go back on the way of an update by what the factor leaves of it."""
        before = [master.clone() for master in self.masters]
        yield
        for master, was, factor in zip(self.masters, before, self._factor, strict=True):
            torch.lerp(was, master, factor, out=master)  # exact at factors 0 and 1

    def state(self) -> Any:
        """See :class:`Guard`."""
        return list(self._factor)

    def resume(self, state: Any) -> None:
        """See :class:`Guard`."""
        self._factor = [was.to(master) for was, master in zip(state, self.masters, strict=True)]


def guard_of(protect: str, dose: float | None, trained: Weights, kept: Kept) -> Guard:
    """The protection of that name; it has to measure before the first step."""
    if dose is None:
        return Guard(trained.masters)
    if protect == "ewc":
        return Penalty(trained.masters, trained.of(kept.before), dose)
    return Freeze(trained.masters, dose) if protect == "freeze" else Scale(trained.masters, dose)


def over_mean(fisher: Sequence[Tensor]) -> list[Tensor]:
    """F of some weights over its mean.

    Raises
    ------
    NoInformationError
        If it is 0 everywhere, or anywhere NaN or infinite.
    """
    mean = sum(float(each.sum(dtype=torch.float64)) for each in fisher) / sum(each.numel() for each in fisher)
    if not mean:
        raise NoInformationError(
            "the source text gives no weight a gradient, so there is nothing to protect; take another --data"
        )
    found = [each / mean for each in fisher]
    if not all(bool(torch.isfinite(each.sum(dtype=torch.float64))) for each in found):
        raise NoInformationError(
            "the Fisher information of the source text is NaN or infinite, so it tells no weights apart; take another "
            "--data, or --dtype fp32"
        )
    return found
