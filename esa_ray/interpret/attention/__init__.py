"""Attention under damage: sinks and spikes, where they are, and what becomes of them.

``Attending(model, windows)`` is made while the model is intact; its ``prepare(tensor)`` is asked before a weight of the
tensor is damaged, and ``attended`` while the damage stands.
"""

from esa_ray.interpret.attention.measure import Attending, attended

__all__ = ["Attending", "attended"]
