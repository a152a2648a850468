"""Rank ensembles: several scores combined by their ranks, since their values differ by orders of magnitude."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from esa_ray.scoring.histogram import Histogram
from esa_ray.scoring.pools import eligible, holds, pool_of
from esa_ray.spec import ScoreSpec, members

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from esa_ray.scoring.scores import Scores


class RankEnsemble:
    r"""The rank product of several scores (Breitling et al. 2004, doi:10.1016/j.febslet.2004.07.055).

    The score of a weight is mean over members m of −ln(r_m / (n + 1)), with r_m its rank by m among the n weights
    of its pool, 1 the highest. So it is high where all members rank a weight high, and a weight that one member
    puts first isn't carried by that alone, as it would be by a mean of values.

    Ranks come from a histogram a pool and member (:meth:`Histogram.ranks`), in one more pass over the scores and
    1 MB each: equal to within the weights that share a bin of relative width 2⁻⁸, exact where a bin holds one
    weight, as the top ones of a heavy tail do.

    Has the :meth:`at` and :meth:`of` of :class:`Scores`, for this one metric and mode.
    """

    def __init__(self, scores: Scores, spec: ScoreSpec):
        self.tensors, self._scores, self._mode = scores.tensors, scores, spec.mode
        self._histograms = {metric: self._count(metric, spec) for metric in members(spec.metric)}

    def _count(self, metric: str, spec: ScoreSpec) -> dict[str, Histogram]:
        pools: dict[str, Histogram] = defaultdict(Histogram)
        for index, tensor in enumerate(self.tensors):
            if not holds(tensor, spec.components):
                continue
            values, mask = self._scores.of(metric, index), eligible(tensor, spec.components)
            pools[pool_of(tensor, spec.mode)].add(values if mask is None else values[mask.to(values.device)])
        return pools

    def of(self, metric: str, index: int) -> Tensor:
        """One tensor's combined scores, 1-D, fp32."""
        return self.at(metric, index, slice(None))

    def at(self, metric: str, index: int, flat: torch.Tensor | slice) -> Tensor:
        """Combined scores of some of one tensor's weights, by flat index."""
        pool = pool_of(self.tensors[index], self._mode)
        total: Tensor | float = 0.0
        for member, pools in self._histograms.items():
            ranks = pools[pool].ranks(self._scores.at(member, index, flat))
            total = total - (ranks / (pools[pool].n + 1)).log()
        assert not isinstance(total, float)
        return (total / len(self._histograms)).float()

    def error(self, metric: str, index: int, flat: torch.Tensor | slice) -> None:
        """Ranks have no standard error."""
