"""What clean text makes of every weight that a model reads: gathered once for the families that look at it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from esa_ray.scoring.distribution import gini, tail_index
from esa_ray.scoring.gather import score_tensors
from esa_ray.scoring.histogram import Histogram
from esa_ray.security.detection.scopes import SCOPES, inside, stride

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import Catalogue

#: Metric → its short name in features.
METRICS = {"grad_x_weight_abs": "gxw", "grad_squared": "fisher"}
#: Share of the largest scores whose part of the sum is told.
TOP = 0.001


@dataclass
class Shape:
    """How scores are distributed: a histogram, and the sums of their powers, float64."""

    histogram: Histogram = field(default_factory=Histogram)
    powers: np.ndarray = field(default_factory=lambda: np.zeros(4))

    def add(self, scores: Tensor) -> None:
        """Count some more scores: fp32, 1-D, none negative."""
        scores = scores.cpu()
        self.histogram.add(scores)
        exact = scores.numpy().astype(np.float64)
        square = exact * exact
        self.powers += [exact.sum(), square.sum(), (square * exact).sum(), (square * square).sum()]

    def told(self) -> dict[str, float]:
        """Hill's α of the top 1%, ln of the kurtosis, the Gini coefficient, and the share of the top 0.1% of the sum.

        NaN where there are too few scores, or nothing but zeros.
        """
        if not self.histogram.n or self.histogram.total <= 0:
            return dict.fromkeys(("hill", "log_kurtosis", "gini", "top_share"), math.nan)
        top = self.histogram.largest(math.ceil(TOP * self.histogram.n)) / self.histogram.total
        hill = tail_index(self.histogram)
        return {
            "hill": math.nan if hill is None else hill,
            "log_kurtosis": self._log_kurtosis(),
            "gini": gini(self.histogram),
            "top_share": top,
        }

    def _log_kurtosis(self) -> float:
        """ln of E(x − μ)⁴ / (E(x − μ)²)²; that of a normal distribution is ln 3."""
        m, m2, m3, m4 = self.powers / self.histogram.n
        variance = m2 - m * m
        fourth = m4 - 4 * m * m3 + 6 * m * m * m2 - 3 * m**4
        return math.log(fourth / variance**2) if variance > 1e-12 * m2 and fourth > 0 else math.nan


@dataclass(frozen=True)
class Sensitivity:
    """Σ|g·w| and Σg² of the weights that a model read when it was looked at.

    ``shapes`` are by metric and scope; ``sampled`` holds Σ|g·w| per token of the weights that are compared one by one,
    by tensor, float64.
    """

    shapes: dict[tuple[str, str], Shape]
    sampled: dict[str, np.ndarray]

    @classmethod
    def of(cls, model: PreTrainedModel, catalogue: Catalogue, windows: np.ndarray, batch_size: int) -> Sensitivity:
        """Score every weight on clean windows, integers of shape (N, T)."""
        scores = score_tensors(model, catalogue.tensors, windows, list(METRICS), batch_size=batch_size)
        shapes = {(metric, scope): Shape() for metric in METRICS for scope in SCOPES}
        sampled, apart = {}, stride(catalogue)
        for index, tensor in enumerate(catalogue.tensors):
            for metric in METRICS:
                values = scores.of(metric, index)
                if metric == "grad_x_weight_abs":
                    sampled[tensor.name] = values[::apart].cpu().numpy().astype(np.float64)
                for scope in SCOPES:
                    mine = inside(tensor, scope)
                    if mine is not False:
                        shapes[metric, scope].add(values if mine is True else values.cpu()[mine])
        return cls(shapes, sampled)
