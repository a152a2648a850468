"""Gaussian noise: independent, shared by weights that belong together, or as strong as each weight's score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

from esa_ray.spec import KINDS, Kind, PerturbSpec

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from esa_ray.models.addressing import WeightTensor
    from esa_ray.perturb.target import Target


class _Noise(Kind):
    """w + σ·s·ε, with the spread s of each weight or of its tensor."""

    strengths, unchangeable, random = "σ > 0", "what the noise is relative to is 0", True

    def fixed(self, target: Target, spec: PerturbSpec) -> Tensor:
        """Weights without a spread."""
        return _spread(target, spec) == 0

    def apply(self, target: Target, spec: PerturbSpec) -> Tensor:
        """w + σ·s·ε."""
        scaled = spec.amount * _spread(target, spec) * target.group.upload(self.drawn(target, spec))
        return target.made(target.old + scaled)

    def drawn(self, target: Target, spec: PerturbSpec) -> np.ndarray:
        """ε for each weight."""
        raise NotImplementedError


def _spread(target: Target, spec: PerturbSpec) -> Tensor:
    """What noise is scaled by: |w|, or the standard deviation of the tensor; float64."""
    return target.deviation if spec.relative_to == "tensor" else target.old.abs()


@KINDS.add
class GaussNoise(_Noise):
    """w + σ·|w|·ε (relative to the weight) or w + σ·std(tensor)·ε (relative to its tensor), ε ~ N(0, 1)."""

    name, default = "gauss_noise", 0.02
    variants: ClassVar = {"relative_to": ("weight", "tensor")}
    formula = "w + σ·|w|·ε, or w + σ·std(tensor)·ε"

    def drawn(self, target: Target, spec: PerturbSpec) -> np.ndarray:
        """ε of each weight's own."""
        return target.normal("gauss_noise")


@KINDS.add
class Correlated(_Noise):
    """As ``gauss_noise``, with one ε for all weights of an output row, of a layer, or of a component.

    Cov(Δ_i, Δ_j) = σ²·s_i·s_j for weights that share a draw, with s the scale of each, and 0 for others. A tensor
    outside the blocks is a layer of its own; a component's draw is shared by all layers.
    """

    name, default = "correlated", 0.1
    variants: ClassVar = {"shared": ("row", "layer", "component"), "relative_to": ("weight", "tensor")}
    formula = "as gauss_noise, with one draw for all weights of a row, a layer or a component"

    def drawn(self, target: Target, spec: PerturbSpec) -> np.ndarray:
        """ε of the unit that each weight shares it with."""
        import numpy as np

        from esa_ray.randomness import normal, stream_key

        def of_component(tensor: WeightTensor, flat: np.ndarray) -> np.ndarray:
            return np.array([one("component", part.component) for part in tensor.parts])[tensor.part_of(flat)]

        def of_layer(tensor: WeightTensor, flat: np.ndarray) -> np.ndarray:
            return np.full(len(flat), one("layer", tensor.name if tensor.layer is None else tensor.layer))

        def one(shared: str, unit: object) -> float:
            return float(normal(stream_key(*target.draw, f"correlated {shared}", unit), np.zeros(1))[0])

        if spec.shared == "row":
            keys = [stream_key(*target.draw, "correlated row", tensor.name) for tensor in target.group.tensors]
            return np.concatenate([normal(*pair) for pair in zip(keys, target.group.lines, strict=True)])
        return target.of_each(of_layer if spec.shared == "layer" else of_component)


@KINDS.add
class Adaptive(Kind):
    """w + σ·a·ε with a strength a of each weight's own, ε as in ``gauss_noise``.

    "score": a = s·‖w‖/‖s‖, norms over the whole set, so that E‖Δ‖² = σ²‖w‖² as for ``gauss_noise`` relative to the
    weight, but spent where the score is. "row": a = root mean square of the weight's own output row.
    """

    name, default, random = "adaptive", 0.1, True
    variants: ClassVar = {"adapt": ("score", "row")}
    formula, strengths = "w + σ·a·ε, a by score (s·‖w‖/‖s‖) or by row (root mean square)", "σ > 0"
    unchangeable = "what the noise is adapted to is 0"

    def needs(self, spec: PerturbSpec) -> frozenset[str]:
        """The score that it spreads its noise by."""
        return frozenset({"score"}) if spec.adapt == "score" else frozenset()

    def fixed(self, target: Target, spec: PerturbSpec) -> Tensor:
        """Weights for which a is 0."""
        return (target.root_mean_square_of_row if spec.adapt == "row" else target.group.upload(_by_score(target))) == 0

    def apply(self, target: Target, spec: PerturbSpec) -> Tensor:
        """w + σ·a·ε."""
        epsilon = target.normal("gauss_noise")
        if spec.adapt == "row":
            scaled = spec.amount * target.root_mean_square_of_row * target.group.upload(epsilon)
        else:
            scaled = target.group.upload(spec.amount * _by_score(target) * epsilon)
        return target.made(target.old + scaled)


def _by_score(target: Target) -> np.ndarray:
    import numpy as np

    scores = zip(target.facts("score"), _weight_per_score(target), strict=True)
    return np.concatenate([score * per_score for score, per_score in scores])


def _weight_per_score(target: Target) -> Iterable[float]:
    """‖w‖/‖s‖ over the set, for each tensor: that of the set which its weights are part of.

    So a part of a set is damaged as it is in the whole.
    """
    given = [known.weight_per_score for known in target.known]
    mine = _of_this_set(target.whole or [target]) if None in given else 0.0
    return [mine if one is None else one for one in given]


def _of_this_set(whole: Sequence[Target]) -> float:
    import numpy as np

    weight, score = [], []
    for target in whole:
        olds = np.split(target.old.cpu().numpy(), np.cumsum(target.group.sizes)[:-1])
        weight += [float(old @ old) for old in olds]
        score += [float(s @ s) for s in target.facts("score")]
    return math.sqrt(math.fsum(weight) / math.fsum(score)) if math.fsum(score) > 0 else 0.0
