"""The sections of the report on many models: each an answer, its evidence, and what that can't say."""

from __future__ import annotations

from collections.abc import Callable

from analysis.comparison.loading import Comparison
from analysis.comparison.sections.architectures import kinds, mixtures, sublayers
from analysis.comparison.sections.backdoors import across_bases, removed
from analysis.comparison.sections.features import fingerprints, ranks
from analysis.comparison.sections.hardening import hardening
from analysis.comparison.sections.intact import intact
from analysis.comparison.sections.scale import exponents, foreseen, laws, models
from analysis.report.parts import Section

__all__ = ["MAKERS", "ON_POPULATIONS"]

#: What is asked of populations of several bases.
ON_POPULATIONS: tuple[Callable[[Comparison], Section | None], ...] = (across_bases, removed)

MAKERS: tuple[Callable[[Comparison], Section | None], ...] = (
    *ON_POPULATIONS, hardening, laws, exponents, foreseen, ranks, sublayers, kinds, mixtures, fingerprints, intact,
    models,
)  # fmt: skip
