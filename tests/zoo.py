"""A model of the zoo for tests, in a cache of their own: of its architecture and tokens, barely trained."""

from contextlib import contextmanager

import pytest

#: The base: 10,000 tokens of training take a second or two.
BASE = "llama-0.1m@10k"


@contextmanager
def trained(cache, *names):
    """These models are there, and nothing else is, for the length of a ``with`` block."""
    from esa_ray.models.zoo.training import ensure

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ESA_CACHE", str(cache))
        for name in names:
            for _ in ensure(name):
                pass
        yield
