"""Lists of weights from files and from other studies."""

from esa_ray.weights.lists import read_weights

__all__ = ["read_weights"]
