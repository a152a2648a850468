"""Attacks: bits of stored weights that an adversary flips, one after the other, until the model collapses.

Progressive bit search (:mod:`esa_ray.security.attack.guided`) over all weights or some, beside bits by chance and an
attack that looks at no data. All of it runs on a model in hand; nothing is written anywhere.
"""

from esa_ray.security.attack.confined import confined
from esa_ray.security.attack.run import attack

__all__ = ["attack", "confined"]
