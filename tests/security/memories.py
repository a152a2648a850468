"""Memories of tiny models, protected in every way."""

from esa_ray.applications.calibrated import Calibrated
from esa_ray.models.addressing import catalogue
from esa_ray.security.memory import Memory
from esa_ray.security.protection import Protection
from esa_ray.spec.security import FaultSpec
from tests.tiny import random_windows, tiny

WINDOWS = random_windows(4)


def memory_for(spec, family="llama", model=None):
    """A memory, not yet entered, of a tiny model."""
    model = tiny(family) if model is None else model
    where = catalogue(model)
    return Memory(model, where, spec, scores=lambda: Calibrated(model, where, WINDOWS))


def protected(protect, dtype="bf16", family="llama", components=("up", "norm"), **fields):
    """An entered memory of a tiny model, and its protection."""
    memory = memory_for(FaultSpec(dtype=dtype, protect=protect, rate=1e-3, components=components, **fields), family)
    return memory.__enter__(), Protection(memory)
