"""Windows → what a model makes of them: loss, hits, divergence from the intact model, loops in generated text."""

from esa_ray.evaluation.confidence import BINS, Confidence, confident
from esa_ray.evaluation.intact import Intact
from esa_ray.evaluation.loops import continued, loops
from esa_ray.evaluation.outcome import Forward, Outcome, evaluate
from esa_ray.sequential import SignTest, log_sign_e_value

__all__ = [
    "BINS",
    "Confidence",
    "Forward",
    "Intact",
    "Outcome",
    "SignTest",
    "confident",
    "continued",
    "evaluate",
    "log_sign_e_value",
    "loops",
]
