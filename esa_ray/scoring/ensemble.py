"""Rank ensembles: several scores combined by their ranks, since their values differ by orders of magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.scoring.distribution import Counting
from esa_ray.scoring.histogram import Histogram, bin_of
from esa_ray.scoring.pools import pool_of
from esa_ray.scoring.selection import Competition, Selector
from esa_ray.scoring.streaming import stretches, walk
from esa_ray.spec import ScoreSpec, members

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.errors import EsaError
    from esa_ray.models.addressing import WeightTensor
    from esa_ray.scoring.scores import Reading, Scores


#: So many of the highest scores of a pool are ranked exactly.
EXACT = 4096


class _Ranks:
    """Ranks in one pool by one score: exact at the top, by a histogram below."""

    def __init__(self, histogram: Histogram, top: np.ndarray):
        self.n = histogram.n
        self._top = torch.from_numpy(top[::-1].astype(np.float64))  # ascending
        self._logs = (histogram.ranks() / (self.n + 1)).log()
        self._placed: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def logs(self, values: Tensor) -> Tensor:
        """ln(r / (n + 1)) of each value, r its rank from above, from 1, ties in the middle; float64."""
        if values.device not in self._placed:
            self._placed[values.device] = self._logs.to(values.device), self._top.to(values.device)
        by_bin, top = self._placed[values.device]
        logs = by_bin[bin_of(values)]
        # Others may be equal to the last of the top, unless that is the whole pool.
        whole = len(top) == self.n
        known = slice(None) if whole else torch.nonzero(values.double() > top[0]).flatten()
        exact = values[known].double()
        below = torch.searchsorted(top, exact)
        upto = torch.searchsorted(top, exact, right=True)
        logs[known] = ((len(top) - upto + (upto - below + 1).double() / 2) / (self.n + 1)).log()
        return logs


@dataclass(frozen=True)
class Combining:
    """The combined scores of one tensor, for who reads them slice by slice (as :class:`Reading`)."""

    members: list[tuple[_Ranks, Reading]]

    @property
    def tensor(self) -> WeightTensor:
        """The tensor."""
        return self.members[0][1].tensor

    @property
    def weights(self) -> Tensor:
        """All its weights, 1-D, in the model's dtype."""
        return self.members[0][1].weights

    def __call__(self, flat: Tensor | slice) -> Tensor:
        """Scores of some of its weights, 1-D, fp32."""
        return -torch.stack([ranks.logs(reading(flat)) for ranks, reading in self.members]).mean(0).float()

    def error(self, flat: Tensor | slice) -> None:
        """Ranks have no standard error."""

    def refusal(self) -> EsaError:
        """What to raise where a score is NaN or infinite."""
        return self.members[0][1].refusal()


class RankEnsemble:
    r"""The rank product of several scores (Breitling et al. 2004, doi:10.1016/j.febslet.2004.07.055).

    The score of a weight is mean over members m of −ln(r_m / (n + 1)), with r_m its rank by m among the n weights
    of its pool, 1 the highest. So it is high where all members rank a weight high, and a weight that one member
    puts first isn't carried by that alone, as it would be by a mean of values.

    Ranks are exact for the highest 4,096 of a pool by each member. Below that they come from a histogram
    (:meth:`Histogram.ranks`), equal to within the weights that share a bin of relative width 2⁻⁸. One more pass
    over the scores and about 1 MB a pool and member, whatever its size.

    Has what a ranking needs of :class:`Scores` (:meth:`at`, :meth:`of`, :meth:`error`, ``tensors``, ``effort``),
    for this one metric and mode.
    """

    def __init__(self, scores: Scores, spec: ScoreSpec):
        self.tensors, self.effort, self._scores, self._mode = scores.tensors, scores.effort, scores, spec.mode
        self._ranks = {metric: self._count(metric, spec) for metric in members(spec.metric)}

    def _count(self, metric: str, spec: ScoreSpec) -> dict[str, _Ranks]:
        counting, top = Counting(spec.mode, spec.components), Selector(EXACT)
        competition = Competition(top, spec.mode, spec.components)
        walk(stretches(self._scores, metric, spec.components), [counting, competition])
        return {pool: _Ranks(histogram, top.pools[pool].best[0]) for pool, histogram in counting.pools.items()}

    def reading(self, metric: str, index: int) -> Combining:
        """One tensor's combined scores, to be read slice by slice."""
        pool = pool_of(self.tensors[index], self._mode)
        members = [(pools[pool], self._scores.reading(member, index)) for member, pools in self._ranks.items()]
        return Combining(members)

    def of(self, metric: str, index: int) -> Tensor:
        """One tensor's combined scores, 1-D, fp32."""
        return self.at(metric, index, slice(None))

    def at(self, metric: str, index: int, flat: Tensor | slice) -> Tensor:
        """Combined scores of some of one tensor's weights, by flat index."""
        return self.reading(metric, index)(flat)

    def error(self, metric: str, index: int, flat: Tensor | slice) -> None:
        """Ranks have no standard error."""

    def signed(self, what: str, index: int, flat: Tensor | slice) -> Tensor | None:
        """See :meth:`Scores.signed`."""
        return self._scores.signed(what, index, flat)
