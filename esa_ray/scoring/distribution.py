"""How scores are distributed within a tensor: heavy tails judged on all weights, not on the top-k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from esa_ray.schema import QUANTILES, SCORE_STATS
from esa_ray.scoring.histogram import Histogram
from esa_ray.scoring.pools import pool_of, some_of, wanted
from esa_ray.spec import asks_for

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.scoring.scores import Effort
    from esa_ray.scoring.streaming import Chunk, Stretch
    from esa_ray.spec import ScoreSpec


def gini(histogram: Histogram) -> float:
    """Gini coefficient: with x_1 ≤ … ≤ x_n, Σ_i (2i − n − 1) x_i / (n Σ_i x_i).

    Values of one bin count as equal, which changes it by less than 2⁻⁸.
    """
    upto = histogram.upto.double()
    before = upto - histogram.counts
    n, total = histogram.n, histogram.total
    return float(((before + upto - n) * histogram.sums).sum()) / (n * total) if total > 0 else 0.0


def half_mass_fraction(histogram: Histogram) -> float | None:
    """Smallest fraction of the values that holds half of their sum; None if the sum is 0."""
    sums, counts = histogram.sums.flip(0), histogram.counts.flip(0)
    half, total = histogram.total / 2, sums.cumsum(0)
    if half == 0:
        return None
    border = int(torch.searchsorted(total, half))
    before = float(total[border] - sums[border])
    partial = (half - before) / float(sums[border]) * int(counts[border])
    return (int(counts[:border].sum()) + partial) / histogram.n


def tail_index(histogram: Histogram, share: float = 0.01) -> float | None:
    """Hill's estimator of the tail index α from the top 1%: P(X > x) ~ x^−α (Hill 1975, doi:10.1214/aos/1176343247).

    1/α = mean over the m largest of ln x_i − ln x_(m+1). The smaller α, the heavier the tail: at α ≤ 1 few
    values hold most of the sum. None where fewer than 10 values, or zeros, make up the tail.
    """
    m = int(histogram.n * share)
    threshold = histogram.quantile(1 - m / max(histogram.n - 1, 1))
    if m < 10 or threshold <= 0:
        return None
    above = histogram.means > threshold
    logs = torch.log(histogram.means[above] / threshold) * histogram.counts[above]
    excess = float(logs.sum()) / m
    return 1 / excess if excess > 0 else None


def describe(histogram: Histogram) -> dict:
    """Moments (exact), and quantiles, tail shape and Gini coefficient of scores, read from a histogram.

    Quantiles and means of tails are within 2⁻⁸ (0.4%) of the exact ones, the Gini coefficient is within 2⁻⁸ and
    1 / ``tail_index`` within 2⁻⁷; the half-mass fraction is interpolated within the bin that it ends in.

    ``top1pct_over_median`` is the mean of the largest ⌈n/100⌉ scores over the median, ``top1pct_mass`` their
    share of the sum; :func:`half_mass_fraction`, :func:`tail_index` and :func:`gini` say what they are.

    >>> h = Histogram()
    >>> h.add(torch.ones(4))
    >>> describe(h)["gini"], describe(h)["half_mass_fraction"]
    (0.0, 0.5)
    """
    n, total = histogram.n, histogram.total
    mean, median = total / n, histogram.quantile(0.5)
    few = max(1, -(-n // 100))
    top = histogram.largest(few)
    return {
        "n": n,
        "mean": mean,
        "std": max(histogram.squares / n - mean**2, 0.0) ** 0.5,
        "min": histogram.min,
        "max": histogram.max,
        "quantiles": [histogram.quantile(p) for p in QUANTILES],
        "top1pct_over_median": top / few / median if median > 0 else None,
        "gini": gini(histogram),
        "top1pct_mass": top / total if total > 0 else None,
        "half_mass_fraction": half_mass_fraction(histogram),
        "tail_index": tail_index(histogram),
    }


@dataclass
class _Piece:
    """All scores of one component of a tensor and expert: their histogram, and the sum of their squared errors."""

    histogram: Histogram
    noise: Tensor | None = None

    def merge(self, other: _Piece) -> None:
        """Add another's scores."""
        self.histogram.merge(other.histogram)
        if self.noise is not None and other.noise is not None:
            self.noise = self.noise + other.noise.to(self.noise.device)


class Distributions:
    """How the scores of every tensor, component and expert are distributed (a ``Watcher``)."""

    def __init__(self, spec: ScoreSpec, effort: Effort | None):
        self.spec, self._effort = spec, effort
        self._rows: list[dict[str, Any]] = []
        self._open: dict[tuple[int, int | None, int], tuple[dict[str, Any], _Piece]] = {}

    def __call__(self, stretch: Stretch) -> _Described:
        """Begin with a stretch."""
        return _Described(self, stretch)

    def take(self, stretch: Stretch, pieces: dict[int, _Piece]) -> None:
        """Add what a stretch holds of every component, by the number of the component's part."""
        if any((stretch.index, stretch.expert) != key[:2] for key in self._open):
            self._close()
        tensor = stretch.reading.tensor
        for number, piece in sorted(pieces.items()):
            key = (stretch.index, stretch.expert, number)
            if key in self._open:
                self._open[key][1].merge(piece)
            else:
                where = {"tensor": tensor.name, "layer": tensor.layer, "component": tensor.parts[number].component}
                self._open[key] = where | {"expert": stretch.expert}, piece

    def _close(self) -> None:
        """Make rows of what is complete, so that no more is held than one tensor's histograms."""
        for _, (where, piece) in sorted(self._open.items(), key=lambda item: item[0][2]):
            self._rows.append(where | describe(piece.histogram) | self._noise(piece))
        self._open = {}

    def _noise(self, piece: _Piece) -> dict[str, Any]:
        """What an estimate took, and how much of a piece's scores is noise."""
        if not self.spec.estimated or self._effort is None:
            return {}
        found: dict[str, Any] = {"probes": self._effort.probes, "probe_error": self._effort.relative_error}
        if piece.noise is not None:
            noise = float(piece.noise)
            signal = piece.histogram.squares - noise
            found["relative_error"] = (noise / signal) ** 0.5 if signal > 0 else None
        return found

    def table(self, *, seed: int, model: str) -> pa.Table:
        """One row per tensor, component and expert (``schema.SCORE_STATS``)."""
        self._close()
        common = {"model": model, "metric": self.spec.metric, "mode": self.spec.mode, "seed": seed}
        return pa.Table.from_pylist([common | row for row in self._rows], schema=SCORE_STATS)


class _Described:
    """Those of one stretch."""

    def __init__(self, whole: Distributions, stretch: Stretch):
        self._whole, self._stretch = whole, stretch
        tensor, components = stretch.reading.tensor, whole.spec.components
        self._outputs = {
            number: some_of(tensor.row_part == number)
            for number, part in enumerate(tensor.parts)
            if asks_for(components, part.component, tensor.name)
        }
        self._pieces: dict[int, _Piece] = {}

    def see(self, chunk: Chunk) -> None:
        """Count a chunk's scores."""
        errors = chunk.reading.error(chunk.flat) if self._whole.spec.estimated else None
        for number, outputs in self._outputs.items():
            values = chunk.of(outputs)
            if n := values.numel():
                piece = self._pieces.get(number) or self._pieces.setdefault(number, _Piece(Histogram(values.device)))
                piece.histogram.add(values, chunk.ends if n == chunk.n else None)
                if errors is not None:
                    noise = chunk.of(outputs, errors).double().square().sum()
                    piece.noise = noise if piece.noise is None else piece.noise + noise

    def hand_over(self) -> None:
        """Add them to those of earlier stretches."""
        self._whole.take(self._stretch, self._pieces)


class Counting:
    """Histograms of the scores of some components, by pool (a ``Watcher``)."""

    def __init__(self, mode: str, components: Sequence[str], *, damageable: bool = False):
        self.mode, self.components, self.damageable = mode, components, damageable
        self.pools: dict[str, Histogram] = {}

    def __call__(self, stretch: Stretch) -> _Counted:
        """Begin with a stretch."""
        return _Counted(self, stretch)


class _Counted:
    """The histogram of one stretch."""

    def __init__(self, whole: Counting, stretch: Stretch):
        tensor = stretch.reading.tensor
        self._whole, self._pool = whole, pool_of(tensor, whole.mode)
        self._outputs = wanted(tensor, whole.components)
        self._histogram = Histogram(stretch.reading.weights.device)

    def see(self, chunk: Chunk) -> None:
        """Count a chunk's scores."""
        mask = chunk.eligible(self._outputs, damageable=self._whole.damageable)
        if mask is None:
            self._histogram.add(chunk.scores, chunk.ends)
        else:
            self._histogram.add(chunk.scores[mask])

    def hand_over(self) -> None:
        """Add it to its pool's."""
        pools = self._whole.pools
        if self._pool in pools:
            pools[self._pool].merge(self._histogram)
        else:
            pools[self._pool] = self._histogram
