"""What a study asks for, what of it is stored, and what is missing."""

from __future__ import annotations

from analysis.study import Study

#: Counts of :func:`progress` that say that something asked for isn't there.
LACKING = ("missing", "error", "unranked", "unmeasured", "unsilenced", "unprobed")


def progress(study: Study) -> dict[str, int]:
    """Cells by status, missing ones, rankings stored, and what else was asked for and isn't measured."""
    counts = dict(study.cells.group_by("status").len().iter_rows())
    stored = {status: counts.get(status, 0) for status in ("ok", "diverged", "empty", "error")}
    wanted = (len(study.spec["scores"]) + len(study.spec.get("lists", ()))) * len(study.spec["seeds"])
    ranked = study.rankings.select("metric", "mode", "seed").n_unique()
    return {
        "cells": study.expected_cells,
        **stored,
        "missing": study.expected_cells - sum(stored.values()),
        "rankings": ranked,
        "unranked": wanted - ranked,
        "unmeasured": _unmeasured(study),
        "unsilenced": _unsilenced(study),
        "unprobed": _unprobed(study),
    }


def _unprobed(study: Study) -> int:
    """Measurements of the intact model that are asked for and not stored."""
    asked = study.spec.get("protocols", ())
    measured = set(study.protocols.select("protocol", "context", "seed").iter_rows()) if asked else set()
    done = set(study.tasks["protocol"]) if asked else set()
    wanted = [(p["name"], context, seed) for p in asked for context in p["contexts"] for seed in study.spec["seeds"]]
    return sum(one not in measured for one in wanted) + sum(bool(p["tasks"]) and p["name"] not in done for p in asked)


def _unsilenced(study: Study) -> int:
    """Blocks whose sub-layers weren't silenced yet, if that was asked for."""
    if "architecture" not in study.spec["analyses"]:
        return 0
    return study.resolved["layers"] - study.ablations["layer"].n_unique()


def _unmeasured(study: Study) -> int:
    """Weights of the fidelity census without a row; before they are drawn, as many as were asked for."""
    if not study.spec.get("fidelity"):
        return 0
    drawn = study.samples.height or study.spec["fidelity"]
    return drawn - study.fidelity.select("tensor", "flat", "seed").n_unique()
