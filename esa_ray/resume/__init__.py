"""Damage measured from the damaged block on.

Two things are saved. Blocks before the damage are not run again: the model's own forward runs with those blocks
handing through and the damaged one fed its cached input, so masks, positions and all that stands outside the
blocks remain the model's own (:mod:`esa_ray.resume.blocks`). And most tokens need no head
(:mod:`esa_ray.resume.head`).
"""

from esa_ray.resume.blocks import RESUME_TOLERANCE, Resumable
from esa_ray.resume.head import HEAD_TOLERANCE, LinearHead

__all__ = ["HEAD_TOLERANCE", "RESUME_TOLERANCE", "LinearHead", "Resumable"]
