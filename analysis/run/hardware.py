"""Rows of hardware that rounds otherwise than the intact model's did, and how much that would have meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from analysis.damage.windows import baseline
from analysis.study import Study


@dataclass(frozen=True)
class Mixed:
    """What has an intact loss of its own: how many ``cells``, ``ablations``, …, on what ``cards``.

    ``faults`` are packets of injections.

    ``reference`` is what measured the intact model that the store has, ``largest`` the largest difference between an
    intact loss and that, nats per token.
    """

    cells: int
    ablations: int
    compressions: int
    faults: int
    attacks: int
    cards: list[str]
    reference: str
    largest: float


def mixed_hardware(study: Study) -> Mixed | None:
    """What was computed where the intact model's loss isn't to the bit the stored one's; None if nothing was."""
    found = [*_damaged(study), _compressed(study), *_stored(study)]
    if not any(found):
        return None
    cards, shifts = zip(*(one for of in found for one in of), strict=True)
    intact = study.compressions.filter(pl.col("kind") == "dense") if study.baselines.is_empty() else study.baselines
    cells, ablations, compressions, faults, attacks = map(len, found)
    return Mixed(
        cells, ablations, compressions, faults, attacks, sorted(set(cards)), _card(intact["device"][0]),
        max(map(abs, shifts)),
    )  # fmt: skip


def _damaged(study: Study) -> list[list[tuple[str, float]]]:
    """Of cells and of ablations, for each that has an intact loss of its own: the card, and how far that is off."""
    if study.baselines.is_empty():
        return [[], []]
    base = baseline(study)
    return [_apart(rows, base["nll"], base["tokens"]) for rows in (study.cells, study.ablations)]


def _stored(study: Study) -> list[list[tuple[str, float]]]:
    """The same of packets of faults and of attacks, all of whose rows have one intact loss."""
    if study.baselines.is_empty():
        return [[], []]
    base = baseline(study)
    units = (
        study.faults.unique("fault_id", maintain_order=True),
        study.attacks.unique("attack_id", maintain_order=True),
    )
    return [_apart(rows, base["nll"], base["tokens"]) for rows in units]


def _compressed(study: Study) -> list[tuple[str, float]]:
    """The same of compressions, each on the first text on which it is off."""
    found = dict[str, tuple[str, float]]()
    for dense in study.compressions.filter((pl.col("kind") == "dense") & (pl.col("status") == "ok")).to_dicts():
        mine = study.compressions.filter(text=dense["text"], domain=dense["domain"])
        for (identity,), rows in mine.group_by("compression_id", maintain_order=True):
            for apart in _apart(rows, dense["nll"], dense["tokens"]):
                found.setdefault(str(identity), apart)
    return list(found.values())


def _apart(rows: pl.DataFrame, nll: Sequence[float], tokens: Sequence[int]) -> list[tuple[str, float]]:
    own = rows.drop_nulls("intact_nll").select("device", "intact_nll").iter_rows()
    return [(_card(device), float(np.subtract(here, nll).sum() / np.sum(tokens)))
            for device, here in own if not np.array_equal(here, nll)]  # fmt: skip


def _card(device: str | None) -> str:
    """``"NVIDIA A100 on host"`` without its host."""
    return (device or "unknown hardware").rpartition(" on ")[0] or (device or "unknown hardware")
