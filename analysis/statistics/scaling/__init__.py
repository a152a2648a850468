"""How quantities move with the size of a model: laws, their uncertainty, breaks, and whether families share them."""

from analysis.statistics.scaling.breaks import NEAR, Break, changepoint, different
from analysis.statistics.scaling.families import SAME, Families, compare_families
from analysis.statistics.scaling.intervals import (
    HeldOut,
    Interval,
    band,
    chosen_laws,
    exponent,
    held_out,
    leave_one_out,
    predicted,
)
from analysis.statistics.scaling.laws import LAWS, Fit, Law, fit_laws

__all__ = [
    "LAWS", "NEAR", "SAME", "Break", "Families", "Fit", "HeldOut", "Interval", "Law", "band", "changepoint",
    "chosen_laws", "compare_families", "different", "exponent", "fit_laws", "held_out", "leave_one_out", "predicted",
]  # fmt: skip
