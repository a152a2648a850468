"""A study on disk as Polars frames."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from esa_ray.schema import TABLES

#: What names one way of damaging: rows that agree in these differ only in group and seed.
DAMAGE = ["metric", "mode", "k", "perturbation", "strength", "variant"]


class StudyError(ValueError):
    """The directory holds no readable study; the message names the cause and the mend."""


@dataclass(frozen=True, eq=False)
class Study:
    """One study as it stood when first read: its resolved spec and its four tables."""

    directory: Path
    record: dict[str, Any]

    @property
    def spec(self) -> dict[str, Any]:
        """The study's spec, as JSON."""
        return self.record["spec"]

    @property
    def resolved(self) -> dict[str, Any]:
        """What the run found: fingerprints, dtype, window counts, parameters."""
        return self.record["resolved"]

    def _table(self, name: str) -> pl.DataFrame:
        files = sorted((self.directory / name).glob("*.parquet"))
        empty = pl.from_arrow(TABLES[name].empty_table())
        assert isinstance(empty, pl.DataFrame)
        if not files:
            return empty
        try:
            return pl.concat([pl.read_parquet(files), empty], how="diagonal_relaxed")
        except (pl.exceptions.PolarsError, OSError):
            raise StudyError(f"{self._unreadable(files)} is not readable Parquet; delete it and run again") from None

    @staticmethod
    def _unreadable(files: list[Path]) -> Path:
        for file in files:
            try:
                pl.read_parquet_schema(file)
            except (pl.exceptions.PolarsError, OSError):
                return file
        return files[0].parent

    @cached_property
    def cells(self) -> pl.DataFrame:
        """One row a cell, each once."""
        return self._table("cells").unique("cell_id", maintain_order=True)

    @cached_property
    def baselines(self) -> pl.DataFrame:
        """The intact model."""
        return self._table("baselines")

    @cached_property
    def rankings(self) -> pl.DataFrame:
        """One row a selected weight."""
        return self._table("rankings")

    @cached_property
    def score_stats(self) -> pl.DataFrame:
        """One row a tensor (or component of it) and seed."""
        return self._table("score_stats")

    @property
    def expected_cells(self) -> int:
        """How many cells the spec asks for."""
        spec = self.spec
        axes = ("scores", "seeds", "topk", "perturbations", "groups")
        total = 1
        for axis in axes:
            total *= len(spec[axis])
        return total


def load(directory: str | Path) -> Study:
    """Open a study's directory.

    Raises
    ------
    StudyError
        If there is no readable ``study.json``.

    Example
    -------
    >>> load("results/quickstart").cells.group_by("group").len()  # doctest: +SKIP
    """
    path = Path(directory) / "study.json"
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        raise StudyError(f"{directory} holds no study (no study.json); give the --out-dir of a run") from None
    except (ValueError, OSError) as error:
        raise StudyError(f"{path} can't be read: {error}") from None
    if not isinstance(record, dict) or not {"spec", "resolved", "versions"} <= record.keys():
        raise StudyError(f"{path} is not what a run wrote; restore it, or choose another directory")
    return Study(Path(directory), record)


def progress(study: Study) -> dict[str, int]:
    """Cells by status, missing ones, and rankings stored."""
    counts = dict(study.cells.group_by("status").len().iter_rows())
    stored = {status: counts.get(status, 0) for status in ("ok", "diverged", "error")}
    wanted = len(study.spec["scores"]) * len(study.spec["seeds"])
    ranked = study.rankings.select("metric", "mode", "seed").n_unique()
    return {
        "cells": study.expected_cells,
        **stored,
        "missing": study.expected_cells - sum(stored.values()),
        "rankings": ranked,
        "unranked": wanted - ranked,
    }
