"""Every score: the statistics that it is made of, and its formula. Legend: :mod:`esa_ray.spec.metrics`.

Imports no torch: specs, plans and reports ask scores, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from esa_ray.spec.metrics import SCORES, STATISTICS, Places, Score, members

if TYPE_CHECKING:
    from torch import Tensor


def needed(metrics: Sequence[str], gatherer: str) -> tuple[str, ...]:
    """The statistics that some scores (or rank ensembles of them) need from one pass.

    >>> needed(["magnitude", "grad_squared+grad_x_weight"], "backward")
    ('gradient', 'gradient_square')
    """
    wanted = {statistic for name in metrics for metric in members(name) for statistic in SCORES[metric].needs}
    return tuple(s for s, source in STATISTICS.items() if s in wanted and source == gatherer)


@SCORES.add
class GradientTimesWeight(Score):
    """|Σ_n g_n · w| / tokens: first-order change of the loss by zeroing w (Molchanov et al. 2019, arXiv:1906.10771)."""

    name, needs, joint = "grad_x_weight", ("gradient",), "signed"
    formula, unit = "|Σ_n g_n · w| / tokens", "nats per token, first order in zeroing w"

    def at(self, places: Places) -> Tensor:
        """Its value at some weights."""
        return (places["gradient"] * places.weight).abs_().div_(places.tokens)

    def signed(self, places: Places) -> Tensor:
        """Σ_n g_n · w / tokens: minus the first-order change, which adds up over weights that are zeroed together."""
        return places["gradient"] * places.weight / places.tokens


@SCORES.add
class AbsoluteGradientTimesWeight(Score):
    """Σ_n |g_n · w| / tokens: as grad_x_weight, where windows of opposite sign don't cancel."""

    name, needs = "grad_x_weight_abs", ("gradient_abs",)
    formula, unit = "Σ_n |g_n · w| / tokens", "nats per token"

    def at(self, places: Places) -> Tensor:
        """Its value at some weights."""
        return (places["gradient_abs"] * places.weight).abs_().div_(places.tokens)


@SCORES.add
class EmpiricalFisher(Score):
    """Σ_n g_n² / tokens: the diagonal of the empirical Fisher matrix (Kunstner et al. 2019, arXiv:1905.12558)."""

    name, needs = "grad_squared", ("gradient_square",)
    formula, unit = "Σ_n g_n² / tokens", "empirical Fisher (nats²/w² per token)"

    def at(self, places: Places) -> Tensor:
        """Its value at some weights."""
        return places["gradient_square"] / places.tokens


@SCORES.add
class WeightTimesActivation(Score):
    """|W_ij| · √(N/n) ‖X_j‖₂, of an expert that saw n of N tokens: Wanda (Sun et al. 2023, arXiv:2306.11695)."""

    name, needs, joint = "act_mag", ("input_norm",), "norm"  # of a column: the norm of what it adds to the output
    formula, unit = "|W_ij| · √(N/n) ‖X_j‖₂", "w × activation; an expert saw n of N tokens"
    never, where = ("embed", "norm", "decay"), "matrices that multiply activations"

    def at(self, places: Places) -> Tensor:
        """Its value at some weights."""
        return places.weight.abs().mul_(places["input_norm"])


@SCORES.add
class Magnitude(Score):
    """|w|, whatever the text."""

    name, formula, unit, joint = "magnitude", "|w|", "w", "norm"

    def at(self, places: Places) -> Tensor:
        """Its value at some weights."""
        return places.weight.abs()


@SCORES.add
class SecondOrder(Score):
    """½ w² max(h, 0): second-order change of the loss by zeroing w (LeCun et al. 1989, Optimal Brain Damage)."""

    name, needs = "hutchinson_diag", ("curvature", "curvature_error")
    formula, unit = "½ w² max(h, 0)", "nats per token, second order in zeroing w"

    def at(self, places: Places) -> Tensor:
        """Its value at some weights."""
        return places.weight.square().mul_(places["curvature"].clamp(min=0)).div_(2)

    def error(self, places: Places) -> Tensor:
        """Its standard error there."""
        return places.weight.square() * places["curvature_error"] / 2


@SCORES.add
class Curvature(Score):
    """|h|, the diagonal of the Hessian as random signs estimate it (Hutchinson)."""

    name, needs = "hutchinson_abs", ("curvature", "curvature_error")
    formula, unit = "|h|", "nats/w² per token"

    def at(self, places: Places) -> Tensor:
        """Its value at some weights."""
        return places["curvature"].abs()

    def error(self, places: Places) -> Tensor:
        """Its standard error there."""
        return places["curvature_error"]


@SCORES.add
class SuperActivation(Score):
    """max |X_j| · max |Y_i|: where super activations go in and come out (Yu et al. 2024, arXiv:2411.07191)."""

    name, needs = "super_activation", ("input_peak", "output_peak")
    formula, unit = "max |X_j| · max |Y_i|", "activation²"
    alone, where = ("down",), "down-projections alone"
    magnitude, joint = False, "largest"  # a product of rank one, zero but for a few candidates

    def at(self, places: Places) -> Tensor:
        """Its value at some weights."""
        return places["input_peak"] * places["output_peak"]
