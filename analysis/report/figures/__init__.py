"""Figures, as Altair charts: colour-blind safe, and each one readable without its caption's colour."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from analysis.report.figures.agreement import scores, stability, stability_by_k, stability_by_windows
from analysis.report.figures.attacks import WITHSTOOD, attack_ratios
from analysis.report.figures.axes import LINEAR_BELOW
from analysis.report.figures.backdoors import (
    ROC_CURVES,
    detection_schemes,
    inserted_models,
    mitigations,
    ranked_features,
)
from analysis.report.figures.compression import (
    block_errors,
    excess,
    excess_bits,
    factors,
    front_bits,
    front_sparsity,
    savings,
    savings_bits,
)
from analysis.report.figures.damage import damage
from analysis.report.figures.distribution import depth, hotspots, survival, tail
from analysis.report.figures.dose import dose, kinds
from analysis.report.figures.faults import (
    BREAK_CURVES,
    PROTECTION_COSTS,
    PROTECTIONS,
    VULNERABLE_BITS,
    covered_shares,
    foretold_chances,
    gradient_bits,
    vulnerable_scores,
)
from analysis.report.figures.fidelity import calibration, fidelity
from analysis.report.figures.intact import reliability
from analysis.report.figures.pairs import pairs
from analysis.report.figures.sets import layers, recovery, together
from analysis.report.figures.structure import channels, spread
from analysis.report.figures.style import COLOURS, SHAPES, Chart
from analysis.report.figures.timeline import timeline
from analysis.report.figures.tuning import (
    moved_blocks,
    moved_components,
    source_curves,
    target_curves,
    tuning_front,
    tuning_rates,
)
from analysis.study import Study
from esa_ray import extensions
from esa_ray.storage.location import Location

__all__ = ["COLOURS", "FIGURES", "LINEAR_BELOW", "SHAPES", "Chart", "charts", "save_charts", "save_figures", "styled"]

FIGURES: dict[str, Callable[[Study], Chart | None]] = {
    figure.__name__: figure
    for figure in (
        damage, stability, stability_by_k, stability_by_windows, scores, hotspots, depth, tail, survival, spread,
        channels, fidelity, calibration, dose, kinds, together, pairs, layers, recovery, timeline,
        reliability, excess, excess_bits, savings, savings_bits, front_sparsity, front_bits, factors, block_errors,
        tuning_front, target_curves, source_curves, tuning_rates, moved_blocks, moved_components,
        *BREAK_CURVES, *PROTECTIONS, *PROTECTION_COSTS, *VULNERABLE_BITS, vulnerable_scores, covered_shares,
        foretold_chances, gradient_bits, *WITHSTOOD, attack_ratios, inserted_models, *ROC_CURVES, detection_schemes,
        ranked_features, mitigations,
    )
}  # fmt: skip


def charts(study: Study) -> dict[str, Chart]:
    """Every figure that this study has data for, styled."""
    extensions.load()
    return styled({name: chart for name, figure in FIGURES.items() if (chart := figure(study)) is not None})


def styled(made: dict[str, Chart]) -> dict[str, Chart]:
    """Charts with the looks that all share."""
    plain = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    return {
        name: chart.configure_view(stroke=None)
        .configure_axis(**plain, titlePadding=8, gridColor="#e6e6e6")
        .configure_legend(**plain, orient="bottom")
        for name, chart in made.items()
    }


def save_figures(study: Study, width: int = 640) -> Path | str:
    """Write every figure as SVG and PNG into ``figures/`` of the study's place; returns where that is."""
    return save_charts(charts(study), study.location, width)


def save_charts(made: dict[str, Chart], location: Location, width: int = 640) -> Path | str:
    """Write styled charts as SVG and PNG into ``figures/`` of a place; returns where that is."""
    for name, chart in made.items():
        sized = chart.properties(width=width)
        vector, pixels = io.StringIO(), io.BytesIO()
        sized.save(vector, format="svg")
        sized.save(pixels, format="png", scale_factor=2)
        location.write(f"figures/{name}.svg", vector.getvalue().encode())
        location.write(f"figures/{name}.png", pixels.getvalue())
    return location.at("figures")
