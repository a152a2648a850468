"""Super sets from growing parts of a seed's calibration windows: how many windows a stable set takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from esa_ray.schema import SAMPLE_SIZES
from esa_ray.scoring.ranking import by_tensor, joined, placed
from esa_ray.scoring.selection import Competition, Selector
from esa_ray.scoring.steps import sizes
from esa_ray.scoring.streaming import stretches, walk
from esa_ray.spec import DATA_FREE, ScoreSpec, members

if TYPE_CHECKING:
    from esa_ray.models.addressing import WeightTensor
    from esa_ray.scoring.scores import Scores


def growing(spec: ScoreSpec) -> bool:
    """Whether a score can be read while windows pass: it depends on them, and is neither estimated nor combined."""
    return len(members(spec.metric)) == 1 and spec.metric not in DATA_FREE and not spec.estimated


class SampleSizes:
    """Hears of the scores so far (``watch`` of :func:`score_tensors`) and keeps the k highest of every pool.

    Memory: O(sizes × pools × k).
    """

    def __init__(self, specs: Sequence[ScoreSpec], k: int, windows: int):
        self.specs, self._k = [s for s in specs if growing(s)], k
        self.at = sizes(windows) if self.specs else ()
        self._tensors: tuple[WeightTensor, ...] = ()
        self._best = {(spec, n): Selector(self._k) for spec in self.specs for n in self.at}

    def __call__(self, windows: int, scores: Scores, tensors: Sequence[int]) -> None:
        """Let some tensors' scores after so many windows compete."""
        self._tensors = scores.tensors  # and not the scores: they hold a whole range's accumulators
        for spec in (s for s in self.specs if s.metric in scores.metrics):
            competition = Competition(self._best[spec, windows], spec.mode, spec.components)
            walk(stretches(scores, spec.metric, spec.components, tensors), [competition])

    def table(self, spec: ScoreSpec, *, seed: int, model: str = "") -> pa.Table:
        """The super sets by number of windows (``schema.SAMPLE_SIZES``); empty for a score that can't be watched."""
        common = {"model": model, "metric": spec.metric, "mode": spec.mode, "seed": seed}
        rows = [
            {"windows": [windows] * len(flat), "rank": ranks, "score": values, **placed(self._tensors[index], flat)}
            for windows in (self.at if growing(spec) else ())
            for index, ranks, flat, values in by_tensor(self._best[spec, windows])
        ]
        return joined(rows, common, SAMPLE_SIZES) if rows else SAMPLE_SIZES.empty_table()
