"""Windows → what a model makes of them: loss, hits, divergence from the intact model, loops in generated text."""

from esa_ray.evaluation.intact import Intact
from esa_ray.evaluation.loops import continued, loops
from esa_ray.evaluation.outcome import Forward, Outcome, evaluate
from esa_ray.evaluation.sequential import SignTest, log_sign_e_value

__all__ = [
    "Forward",
    "Intact",
    "Outcome",
    "SignTest",
    "continued",
    "evaluate",
    "log_sign_e_value",
    "loops",
]
