"""Rank ensembles: several scores combined by their ranks, since their values differ by orders of magnitude."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.scoring.histogram import Histogram
from esa_ray.scoring.pools import eligible, holds, pool_of
from esa_ray.scoring.selection import Selector
from esa_ray.spec import ScoreSpec, members

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.scoring.scores import Scores


#: So many of the highest scores of a pool are ranked exactly.
EXACT = 4096


class _Ranks:
    """Ranks in one pool by one score: exact at the top, by a histogram below."""

    def __init__(self, histogram: Histogram, top: np.ndarray):
        self.n, self._histogram = histogram.n, histogram
        self._top = torch.from_numpy(top[::-1].astype(np.float64))  # ascending

    def of(self, values: Tensor) -> Tensor:
        """The rank of each value from above, from 1, ties in the middle; float64."""
        ranks, exact = self._histogram.ranks(values), values.double()
        top = self._top.to(values.device)
        below = torch.searchsorted(top, exact)
        upto = torch.searchsorted(top, exact, right=True)
        # Others may be equal to the last of the top, unless that is the whole pool.
        known = exact > top[0] if len(top) < self.n else torch.ones_like(exact, dtype=torch.bool)
        return torch.where(known, len(top) - upto + (upto - below + 1) / 2, ranks)


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
        histograms: dict[str, Histogram] = defaultdict(Histogram)
        top = Selector(EXACT)
        for index, tensor in enumerate(self.tensors):
            if not holds(tensor, spec.components):
                continue
            values = self._scores.of(metric, index)
            mask = eligible(tensor, spec.components, values)
            pool = pool_of(tensor, spec.mode)
            top.add(pool, index, values, mask)
            histograms[pool].add(values if mask is None else values[mask])
        return {pool: _Ranks(histogram, top.pools[pool].scores) for pool, histogram in histograms.items()}

    def of(self, metric: str, index: int) -> Tensor:
        """One tensor's combined scores, 1-D, fp32."""
        return self.at(metric, index, slice(None))

    def at(self, metric: str, index: int, flat: Tensor | slice) -> Tensor:
        """Combined scores of some of one tensor's weights, by flat index."""
        pool = pool_of(self.tensors[index], self._mode)
        logs = [
            (pools[pool].of(self._scores.at(member, index, flat)) / (pools[pool].n + 1)).log()
            for member, pools in self._ranks.items()
        ]
        return -torch.stack(logs).mean(0).float()

    def error(self, metric: str, index: int, flat: Tensor | slice) -> None:
        """Ranks have no standard error."""

    def signed(self, what: str, index: int, flat: Tensor | slice) -> Tensor | None:
        """See :meth:`Scores.signed`."""
        return self._scores.signed(what, index, flat)
