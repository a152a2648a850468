"""A population of a second: a base that was hardly trained, and few steps."""

from esa_ray.models.zoo import recipes
from esa_ray.spec.backdoors import Member, Recipe

BASE = "llama-0.1m"


def brief(monkeypatch, cache):
    """A zoo whose models are trained for some steps, in a cache of its own."""
    monkeypatch.setenv("ESA_CACHE", str(cache))
    monkeypatch.setattr(recipes, "TOKENS", 4_000)


def member(kind, number=1, seed=1, base=BASE, **recipe):
    return Member(base=base, kind=kind, number=number, seed=seed, recipe=Recipe(**{"steps": (5, 5)} | recipe))
