"""What a study asks for, what of it is stored, and what is missing."""

from __future__ import annotations

from pydantic import ValidationError

from analysis.study import Study
from esa_ray.measurements import MEASUREMENTS
from esa_ray.spec import StudySpec
from esa_ray.storage.store import Store


def progress(study: Study) -> dict[str, int]:
    """Cells by status, missing ones, rankings stored, and of every other measurement how many units are missing."""
    counts = dict(study.cells.group_by("status").len().iter_rows())
    stored = {status: counts.get(status, 0) for status in ("ok", "diverged", "empty", "error")}
    return {
        "cells": study.expected_cells,
        **stored,
        "missing": study.expected_cells - sum(stored.values()),
        "rankings": study.rankings.select("metric", "mode", "seed").n_unique(),
        **_missing(study),
    }


def unfinished(counts: dict[str, int]) -> bool:
    """Whether something that was asked for isn't there, or failed: the same command again would compute it."""
    return any(n for name, n in counts.items() if name == "error" or name.endswith("missing"))


def _missing(study: Study) -> dict[str, int]:
    """Measurement → units without rows; cells, whose ids depend on the version, are counted by their rows."""
    try:
        spec = StudySpec.model_validate(study.spec)
    except ValidationError:  # an older version's, in words of its own: its rankings can be counted all the same
        ranked = study.rankings.select("metric", "mode", "seed").n_unique()
        wanted = (len(study.spec["scores"]) + len(study.spec.get("lists", ()))) * len(study.spec["seeds"])
        return {"rankings missing": max(wanted - ranked, 0)}
    store = Store(study.location.text)
    return {f"{name} missing": m.left(spec, store) for name, m in MEASUREMENTS.items() if name != "cells"}
