"""Roles of weights: one file a role, with its metric, its text, and the place in the forward pass that it goes through.

A ``Bench`` is made of the intact model, its evaluation and calibration windows and a ``RoleSpec``; ``measured`` gives a
row a role under a damage, and ``mediated`` how much of a damage goes through one role's place.
"""

from esa_ray.interpret.roles.bench import Bench
from esa_ray.interpret.roles.measure import measured, mediated
from esa_ray.interpret.roles.registry import ROLES

__all__ = ["ROLES", "Bench", "measured", "mediated"]
