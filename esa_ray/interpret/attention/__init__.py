"""Attention under damage: sinks and spikes, where they are, and what becomes of them.

>>> from esa_ray.interpret.attention import Attending, attended  # doctest: +SKIP
>>> intact = Attending(model, windows)  # doctest: +SKIP
>>> start = intact.prepare(catalogue["model.layers.11.mlp.down_proj.weight"])  # doctest: +SKIP
>>> with perturbed(catalogue, weights, PerturbSpec(kind="zero"), seed=0):  # doctest: +SKIP
...     rows = attended(intact, start)
"""

from esa_ray.interpret.attention.measure import Attending, attended

__all__ = ["Attending", "attended"]
