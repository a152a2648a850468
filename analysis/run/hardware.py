"""Cells and ablations of hardware that rounds otherwise than the baseline's, and how much that would have meant."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.damage.effects import baseline
from analysis.study import Study


@dataclass(frozen=True)
class Mixed:
    """Rows with an intact loss of their own: how many of ``cells`` and ``ablations``, and on which ``cards``.

    ``reference`` is what measured the baseline, ``largest`` the largest difference between an intact loss and the
    baseline's, nats per token.
    """

    cells: int
    ablations: int
    cards: list[str]
    reference: str
    largest: float


def mixed_hardware(study: Study) -> Mixed | None:
    """What was computed where the intact model's loss isn't to the bit the baseline's; None if nothing was."""
    if study.baselines.is_empty():
        return None
    base = baseline(study)
    found = [
        [(_card(device), float(np.subtract(own, base["nll"]).sum()))
         for device, own in rows.drop_nulls("intact_nll").select("device", "intact_nll").iter_rows()
         if not np.array_equal(own, base["nll"])]
        for rows in (study.cells, study.ablations)
    ]  # fmt: skip
    if not any(found):
        return None
    cells, ablations = map(len, found)
    cards, shifts = zip(*found[0], *found[1], strict=True)
    largest = max(map(abs, shifts)) / int(base["tokens"].sum())
    return Mixed(cells, ablations, sorted(set(cards)), _card(study.baselines["device"][0]), largest)


def _card(device: str | None) -> str:
    """``"NVIDIA A100 on host"`` without its host."""
    return (device or "unknown hardware").rpartition(" on ")[0] or (device or "unknown hardware")
