"""Tuning a model: all of it, low-rank adapters, or few chosen weights; with protection, or with damage on the way."""

from esa_ray.applications.tuning.loop import CHECKPOINT, tune
from esa_ray.applications.tuning.outcome import Look, Tuned

__all__ = ["CHECKPOINT", "Look", "Tuned", "tune"]
