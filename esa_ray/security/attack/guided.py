"""Progressive bit search: gradients propose flips, forward passes choose among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from esa_ray.scoring.selection import keep
from esa_ray.security.attack.gradients import SummedLoss
from esa_ray.security.attack.moves import Move, stored
from esa_ray.security.attack.trials import Trials, harm

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from esa_ray.security.attack.victim import Flips, Victim
    from esa_ray.spec.security import AttackSpec


@dataclass(frozen=True)
class Proposals:
    """Flips with the number of each one's tensor and its ``gain`` to first order: g·Δw, nats of the search windows."""

    flips: Flips
    tensor: np.ndarray
    gain: np.ndarray

    def ordered(self, tries: int | None) -> np.ndarray:
        """Which ones to try, and when: the best of each tensor by gain, then the next ones of any, ``tries`` in all.

        None: the best of each tensor alone. Of equal gains the first in memory comes first.
        """
        # A value that isn't finite makes every loss that it touches infinite, whatever the gradient says.
        void = ~np.isfinite(self.flips.damaged) | np.isnan(self.gain)
        order = np.lexsort((self.flips.bit, self.flips.address, -np.where(void, np.inf, self.gain)))
        first = np.zeros(len(order), dtype=bool)
        first[np.unique(self.tensor[order], return_index=True)[1]] = True
        return order[first] if tries is None else np.concatenate([order[first], order[~first]])[:tries]


class Guided:
    """Progressive bit search among all stored weights, or some of them.

    Parameters
    ----------
    search, selection
        Windows, integers of shape (N, T), of which no one is in both.
    within
        Flat indices by tensor name; None: all.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        victim: Victim,
        spec: AttackSpec,
        search: np.ndarray,
        selection: np.ndarray,
        within: Mapping[str, np.ndarray] | None,
        batch_size: int,
    ):
        self._victim, self._spec = victim, spec
        self._where = stored(victim.memory, spec.components, within)
        self._tensors = tuple(self._where)
        self._loss = SummedLoss(model, self._tensors, search, batch_size)
        self._start = model, selection, batch_size

    @cached_property
    def _trials(self) -> Trials:
        """Made when it is first asked for: all flips of an interrupted attack stand by then."""
        return Trials(*self._start)

    def next(self) -> Move | None:
        """The flip that does the selection windows most harm, of those that the gradient proposes."""
        proposed = self._proposed()
        if proposed is None:
            return None
        tried = proposed.ordered(self._spec.tries).tolist()
        return max((self._try(proposed, at, len(tried)) for at in tried), key=_worth)

    def committed(self, move: Move) -> None:
        """Go on from a flip that was made."""
        self._trials.renew(self._victim.at(move.flip.address)[0])

    def _try(self, proposed: Proposals, at: int, tried: int) -> Move:
        flip = proposed.flips[at]
        tensor, _ = self._victim.at(flip.address)
        assert self._trials  # what enters its blocks is noted before the flip stands
        with self._victim.trying(flip):
            nll = self._trials.nll(tensor)
        return Move(flip, float(proposed.gain[at]), nll.tolist(), tried)

    def _proposed(self) -> Proposals | None:
        """Every bit that can flip of the weights with the largest |g| of each tensor; None where there is none."""
        found: list[tuple[np.ndarray, np.ndarray]] = []
        self._loss.gradients(lambda index, gradient: found.append(self._steepest(index, gradient)))
        if not found:
            return None
        address, slope = map(np.concatenate, zip(*found, strict=True))
        order = np.argsort(address)
        flips = self._victim.of_weights(address[order])
        if not len(flips):
            return None
        slope = slope[order][np.searchsorted(address[order], flips.address)]
        with np.errstate(invalid="ignore", over="ignore"):
            gain = slope * (flips.damaged - flips.weight)
        return Proposals(flips, self._victim.memory.locate(flips.address)[0], gain)

    def _steepest(self, index: int, gradient: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Addresses of the weights of a tensor with the largest |g|, of equal ones the first, and their g, float64."""
        tensor = self._tensors[index]
        at, gradient = self._where[tensor], self._victim.memory.by_stored(tensor, gradient)
        mine = gradient if at is None else gradient[at.to(gradient.device)]
        kept = keep(mine.abs().nan_to_num_(0.0), self._spec.candidates, largest=True)
        flat = kept.cpu() if at is None else at[kept.cpu()]
        return self._victim.memory.address(tensor.name, flat.numpy()), mine[kept].double().cpu().numpy()


def _worth(move: Move) -> tuple:
    """What the best move has most of: harm, and of equal harm the first place in memory."""
    assert move.selected is not None
    return harm(np.array(move.selected)), -move.flip.address, -move.flip.bit
