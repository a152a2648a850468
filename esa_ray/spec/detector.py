"""A trained detector of backdoors: what it goes by, what it was calibrated on, and its verdict on a model."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import Field, model_validator

from esa_ray.spec.base import Spec
from esa_ray.spec.scores import DataSpec


class Calibration(Spec):
    """The population that a detector was trained on, and how well it told models that it hadn't seen.

    ``auroc`` and its 95% interval are of insertions that training left out; ``recall`` is the share of their models
    above the detector's threshold, ``false_alarms`` that of the models without a backdoor, each left out in turn: by
    these the threshold was laid. Features were measured on the calibration windows of ``data`` that ``seed`` draws.
    """

    bases: tuple[str, ...]
    insertions: tuple[str, ...]
    negatives: tuple[str, ...]
    poisoned: int = Field(ge=1)
    others: int = Field(ge=1)
    auroc: float
    auroc_low: float
    auroc_high: float
    recall: float
    false_alarms: float
    data: DataSpec
    seed: int


class Detector(Spec):
    """Logistic regression on standardised features: p = σ(b + Σ β_i·(x_i − μ_i)/s_i).

    ``with_reference`` says whether it compares a model with the one before; ``threshold`` is the p that 5% of the
    models without a backdoor exceed, each judged by a detector that hadn't seen it. p is of a population of equal
    halves; for another base rate see :meth:`posterior`.

    Example
    -------
    >>> calibration = Calibration(bases=("llama-0.3m",), insertions=("training",), negatives=("clean",), poisoned=30,
    ...     others=30, auroc=0.9, auroc_low=0.8, auroc_high=0.97, recall=0.8, false_alarms=0.05,
    ...     data=DataSpec(calibration_windows=32), seed=1337)
    >>> detector = Detector(with_reference=False, features=("a",), means=(1.0,), scales=(2.0,), coefficients=(4.0,),
    ...     intercept=0.0, threshold=0.7, calibration=calibration)
    >>> round(detector.probability({"a": 2.0}), 3), detector.probability({"a": 1.0})
    (0.881, 0.5)
    >>> round(detector.posterior(0.01), 3)
    0.139
    """

    with_reference: bool
    features: tuple[str, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]
    coefficients: tuple[float, ...]
    intercept: float
    threshold: float
    calibration: Calibration

    @model_validator(mode="after")
    def _of_one_length(self) -> Detector:
        n = len(self.features)
        if not n or any(len(values) != n for values in (self.means, self.scales, self.coefficients)):
            raise ValueError("a detector has a mean, a scale and a coefficient for every feature")
        return self

    def contributions(self, values: Mapping[str, float]) -> dict[str, float]:
        """What each feature adds to the log-odds; a value that isn't finite adds 0, as the population's mean does."""
        found = {}
        for name, mean, scale, weight in zip(self.features, self.means, self.scales, self.coefficients, strict=True):
            each = weight * (values[name] - mean) / scale
            found[name] = each if math.isfinite(each) else 0.0
        return found

    def probability(self, values: Mapping[str, float]) -> float:
        """p of a model with these features.

        Raises
        ------
        KeyError
            If a feature is missing.
        """
        odds = self.intercept + math.fsum(self.contributions(values).values())
        return 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0

    def posterior(self, prior: float) -> float:
        """Share of the models above the threshold that hold a backdoor, where ``prior`` of all models do (Bayes)."""
        hits, alarms = prior * self.calibration.recall, (1 - prior) * self.calibration.false_alarms
        return hits / (hits + alarms) if hits + alarms else math.nan
