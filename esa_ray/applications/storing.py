"""How many bits a weight takes in the smallest plain storage of a compressed model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from esa_ray.spec.compression import STRUCTURED, PruneSpec, n_of_m

if TYPE_CHECKING:
    from esa_ray.applications.pruning import Blocks

#: Bits of a weight that isn't rounded: as it would be deployed, whatever it was computed in.
PLAIN = 16


def pruned_bits(spec: PruneSpec, done: Blocks) -> float:
    """16 bits for each weight that stays, and where they are: a bitmap, log₂ C(M, N) bits for M inputs, or nothing.

    Structures need no index: their matrices become smaller.
    """
    n = sum(done.sizes.values())
    stay = 1 - sum(done.gone.values()) / n
    if spec.pattern in STRUCTURED:
        return PLAIN * stay
    if counted := n_of_m(spec.pattern):
        zeros, group = counted
        return PLAIN * stay + math.log2(math.comb(group, zeros)) / group
    return PLAIN * stay + 1
