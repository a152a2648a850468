"""What allocation by damage measures, from the compression alone: which curves of the blocks, and at which sparsities.

No torch here: a plan counts them before anything is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

    from esa_ray.spec.compression import PruneSpec

#: Calibration windows that a block's own damage is measured on, and the sparsities at which.
WINDOWS, MEASURED = 4, (0.3, 0.5, 0.7, 0.85)


def points(spec: PruneSpec) -> tuple[float, ...]:
    """The sparsities at which every block is pruned alone: beyond 70% one between the asked one and all, too.

    >>> from esa_ray.spec import PruneSpec
    >>> points(PruneSpec(sparsity=0.6)), points(PruneSpec(sparsity=0.8))
    ((0.3, 0.5, 0.7, 0.85), (0.3, 0.5, 0.7, 0.85, 0.9))
    """
    return tuple(sorted({*MEASURED, round((1 + spec.sparsity) / 2, 6)}) if spec.sparsity > 0.7 else MEASURED)


def curves(spec: PruneSpec) -> Hashable:
    """What two prunings have in common that share measured curves: an update isn't done on the way to them.

    >>> from esa_ray.spec import PruneSpec
    >>> curves(PruneSpec(update="refit", sparsity=0.6)) == curves(PruneSpec())
    True
    """
    damping = spec.damping if spec.score == "obs" else None
    return spec.score, spec.group, spec.pattern, spec.components, damping, points(spec)
