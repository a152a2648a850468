"""Every kind of damage, and what some of them need to know."""

import numpy as np
import torch

from esa_ray.perturb.known import Known
from esa_ray.spec import PerturbSpec

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SPECS = [
    PerturbSpec(kind="zero"),
    PerturbSpec(kind="sign_flip"),
    PerturbSpec(kind="sign_flip", strength=0.3),
    PerturbSpec(kind="gauss_noise", strength=0.5),
    PerturbSpec(kind="gauss_noise", strength=0.5, relative_to="tensor"),
    PerturbSpec(kind="bit_flip", strength=0.3),
    PerturbSpec(kind="bit_flip", strength=1.0, bits="exponent"),
    PerturbSpec(kind="dropout", strength=0.4),
    PerturbSpec(kind="set_mean"),
    PerturbSpec(kind="scale", strength=-0.5),
    PerturbSpec(kind="gradient_aligned"),
    PerturbSpec(kind="gradient_opposed"),
    PerturbSpec(kind="correlated", shared="row"),
    PerturbSpec(kind="correlated", shared="layer", relative_to="tensor"),
    PerturbSpec(kind="correlated", shared="component"),
    PerturbSpec(kind="adaptive"),
    PerturbSpec(kind="adaptive", adapt="row"),
    PerturbSpec(kind="quantize", strength=2),
    PerturbSpec(kind="quantize", strength=2, per="tensor"),
    PerturbSpec.parse("progressive-bit_flip-0.5-0.3"),
]


def known_of(chosen) -> dict[str, Known]:
    """A score and a gradient for every weight, for kinds that need them."""
    return {n: Known(score=1.0 + np.arange(len(f)), gradient=(-1.0) ** np.arange(len(f))) for n, f in chosen.items()}
