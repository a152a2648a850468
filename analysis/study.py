"""A study on disk as Polars frames."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from esa_ray.schema import TABLES

#: Scores that look at no text, and so are the same for every seed.
DATA_FREE = frozenset({"magnitude"})

#: What names one way of damaging: rows that agree in these differ only in group and seed.
DAMAGE = ["metric", "mode", "k", "perturbation", "strength", "variant"]


class StudyError(ValueError):
    """The directory holds no readable study; the message names the cause and the mend."""


@dataclass(frozen=True, eq=False)
class Study:
    """One study as it stood when first read: its resolved spec and its tables."""

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
    def whole(self) -> pl.DataFrame:
        """The cells that damaged a whole set, each once: parts of sets and repetitions left out."""
        return self.cells.filter(pl.col("part").is_null() & (pl.col("repeat").fill_null(0) == 0))

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

    @cached_property
    def sample_sizes(self) -> pl.DataFrame:
        """One row a selected weight and number of calibration windows; empty unless "weights" was analysed."""
        return self._table("sample_sizes")

    @cached_property
    def samples(self) -> pl.DataFrame:
        """One row a weight of the stratified sample, with its score by every metric; empty in older studies."""
        return self._table("samples")

    @cached_property
    def fidelity(self) -> pl.DataFrame:
        """One row an edit of a single weight, with what was measured and predicted; empty in older studies."""
        return self._table("fidelity")

    @cached_property
    def search(self) -> dict[str, Any] | None:
        """What a search for the smallest set or strength found; None if the study is none or hasn't ended."""
        path = self.directory / "search.json"
        try:
            return json.loads(path.read_text()) if path.is_file() else None
        except (ValueError, OSError) as error:
            raise StudyError(f"{path} can't be read ({error}); delete it and run again") from None

    @property
    def expected_cells(self) -> int:
        """How many cells the spec asks for, as the run that resolved it counted them; of a search, what it ran."""
        if self.search is not None:
            return self.cells.height
        if (counted := self.record.get("cells")) is not None:
            return counted
        spec = self.spec
        axes = ("scores", "seeds", "topk", "perturbations", "groups")
        total = 1
        for axis in axes:
            total *= len(spec[axis])
        return total


def members(metric: str) -> list[str]:
    """The scores that a rank ensemble joins; of a plain score, itself.

    >>> members("grad_x_weight+act_mag")
    ['grad_x_weight', 'act_mag']
    """
    return metric.split("+")


def is_ensemble(metric: str) -> bool:
    """Whether a score combines ranks of others, and so is no magnitude."""
    return len(members(metric)) > 1


def is_data_free(metric: str) -> bool:
    """Whether a score looks at no text: all its members are the same for every seed."""
    return set(members(metric)) <= DATA_FREE


def first_score(study: Study) -> tuple[str, str]:
    """(metric, mode) of the first score that looks at text, else of the first."""
    scores = [(s["metric"], s["mode"]) for s in study.spec["scores"]]
    return next((s for s in scores if not is_data_free(s[0])), scores[0])


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
    """Cells by status, missing ones, rankings stored, and single weights of the census that aren't measured."""
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
    }


def _unmeasured(study: Study) -> int:
    """Weights of the fidelity census without a row; before they are drawn, as many as were asked for."""
    if not study.spec.get("fidelity"):
        return 0
    drawn = study.samples.height or study.spec["fidelity"]
    return drawn - study.fidelity.select("tensor", "flat", "seed").n_unique()
