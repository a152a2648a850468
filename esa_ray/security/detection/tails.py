"""Tails: how few weights hold the sensitivity of a model, its attention and its feed-forward layers."""

from __future__ import annotations

from esa_ray.security.detection.scopes import SCOPES
from esa_ray.security.detection.sensitivity import METRICS, Sensitivity

_OF = {
    "hill": "Hill's tail index α of the largest 1%",
    "log_kurtosis": "ln of the kurtosis",
    "gini": "the Gini coefficient",
    "top_share": "the share of the sum that the largest 0.1% hold",
}
_WHAT = {"gxw": "Σ|g·w|", "fisher": "Σg²"}

#: Feature → what it is.
ALONE = {
    f"tails.{short}.{scope}.{name}": f"{text} of {_WHAT[short]} over clean text, {scope}"
    for short in METRICS.values() for scope in SCOPES for name, text in _OF.items()
}  # fmt: skip
COMPARED = {
    f"tails.{short}.model.{name}_change": f"{text} of {_WHAT[short]} over clean text, less the reference's"
    for short in METRICS.values() for name, text in _OF.items()
}  # fmt: skip


def alone(now: Sensitivity) -> dict[str, float]:
    """Features of a model."""
    return {
        f"tails.{METRICS[metric]}.{scope}.{name}": value
        for (metric, scope), shape in now.shapes.items() for name, value in shape.told().items()
    }  # fmt: skip


def compared(now: Sensitivity, before: Sensitivity) -> dict[str, float]:
    """Features of a model beside its reference."""
    found = {}
    for metric, short in METRICS.items():
        old = before.shapes[metric, "model"].told()
        for name, value in now.shapes[metric, "model"].told().items():
            found[f"tails.{short}.model.{name}_change"] = value - old[name]
    return found
