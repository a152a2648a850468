"""Roles of weights: one file a role, with its metric, its text, and the place in the forward pass that it goes through.

>>> from esa_ray.interpret.roles import Bench, measured, mediated  # doctest: +SKIP
>>> bench = Bench(model, catalogue(model), evaluation, calibration, RoleSpec())  # doctest: +SKIP
>>> rows = measured(bench, subject, perturbed(bench.catalogue, where, PerturbSpec(kind="zero"), 0))  # doctest: +SKIP
"""

from esa_ray.interpret.roles.bench import Bench
from esa_ray.interpret.roles.measure import measured, mediated
from esa_ray.interpret.roles.registry import ROLES

__all__ = ["ROLES", "Bench", "measured", "mediated"]
