"""The kinds of damage, one object each: old values in, new values out, nothing applied yet.

Nothing here imports torch, numpy or scipy before it computes: specs, the command line and reports ask kinds, too.
"""

from esa_ray.perturb.kinds import plain, noise, bits, gradient, grid, path  # isort: skip

__all__ = ["bits", "gradient", "grid", "noise", "path", "plain"]
