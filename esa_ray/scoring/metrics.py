"""What each score is: which statistics it is made of, and its formula.

Legend: N windows of T tokens, g_n the gradient of window n's summed next-token NLL in nats, ``tokens`` = N·(T−1)
scored tokens, X the inputs of a matrix over all positions that it saw, h the diagonal of the Hessian of the NLL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from esa_ray.spec import members

if TYPE_CHECKING:
    from torch import Tensor


class Places(Protocol):
    """Some weights of one tensor with all that is known of them, each a 1-D fp32 tensor."""

    @property
    def weight(self) -> Tensor:
        """The weights themselves."""

    @property
    def tokens(self) -> int:
        """Scored tokens of all windows."""

    def __getitem__(self, statistic: str) -> Tensor:
        """A statistic of :data:`STATISTICS` at these weights."""


#: Statistic → the pass that gathers it.
STATISTICS = {
    "gradient": "backward",  # Σ_n g_n
    "gradient_abs": "backward",  # Σ_n |g_n|
    "gradient_square": "backward",  # Σ_n g_n²
    "input_norm": "forward",  # ‖X_j‖₂ of the weight's input channel j, as if every token had been routed to it
    "input_peak": "forward",  # max |X_j|
    "output_peak": "forward",  # max |Y_i| of its output channel i
    "curvature": "probes",  # h, per token
    "curvature_error": "probes",  # its standard error
}


@dataclass(frozen=True)
class Metric:
    """A score: the statistics it needs, and its value at some weights; ``error`` is its standard error there."""

    needs: tuple[str, ...]
    score: Callable[[Places], Tensor]
    error: Callable[[Places], Tensor] | None = None


METRICS: dict[str, Metric] = {
    "grad_x_weight": Metric(("gradient",), lambda p: (p["gradient"] * p.weight).abs() / p.tokens),
    "grad_x_weight_abs": Metric(("gradient_abs",), lambda p: (p["gradient_abs"] * p.weight).abs() / p.tokens),
    "grad_squared": Metric(("gradient_square",), lambda p: p["gradient_square"] / p.tokens),
    "act_mag": Metric(("input_norm",), lambda p: p.weight.abs() * p["input_norm"]),
    "magnitude": Metric((), lambda p: p.weight.abs()),
    "hutchinson_diag": Metric(
        ("curvature", "curvature_error"),
        lambda p: p.weight.square() * p["curvature"].clamp(min=0) / 2,
        lambda p: p.weight.square() * p["curvature_error"] / 2,
    ),
    "hutchinson_abs": Metric(
        ("curvature", "curvature_error"), lambda p: p["curvature"].abs(), lambda p: p["curvature_error"]
    ),
    "super_activation": Metric(("input_peak", "output_peak"), lambda p: p["input_peak"] * p["output_peak"]),
}


def needed(metrics: Sequence[str], gatherer: str) -> tuple[str, ...]:
    """The statistics that some metrics (or rank ensembles of them) need from one pass.

    >>> needed(["magnitude", "grad_squared+grad_x_weight"], "backward")
    ('gradient', 'gradient_square')
    """
    wanted = {statistic for name in metrics for metric in members(name) for statistic in METRICS[metric].needs}
    return tuple(s for s, source in STATISTICS.items() if s in wanted and source == gatherer)
