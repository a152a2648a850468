"""A study on disk as Polars frames."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from esa_ray.errors import EsaError
from esa_ray.schema import TABLES
from esa_ray.storage import tables
from esa_ray.storage.location import Location


class StudyError(ValueError):
    """The directory holds no readable study; the message names the cause and the mend."""


@dataclass(frozen=True, eq=False)
class Study:
    """One study as it stood when first read: its resolved spec and its tables."""

    location: Location
    record: dict[str, Any]

    @property
    def directory(self) -> Path | str:
        """Where it lies: a path, or the location of an object store."""
        return self.location.path or self.location.text

    @property
    def spec(self) -> dict[str, Any]:
        """The study's spec, as JSON."""
        return self.record["spec"]

    @property
    def resolved(self) -> dict[str, Any]:
        """What the run found: fingerprints, dtype, window counts, parameters."""
        return self.record["resolved"]

    def table(self, name: str) -> pl.DataFrame:
        """A table by its name, also of a measurement that isn't ours; empty where nothing is stored."""
        if name not in TABLES:
            raise StudyError(f"no table {name!r} is known here; install the package that adds it")
        try:
            found = pl.from_arrow(tables.read(self.location, name))
        except EsaError as error:
            raise StudyError(str(error)) from None
        assert isinstance(found, pl.DataFrame)
        return found

    @cached_property
    def cells(self) -> pl.DataFrame:
        """One row a cell, each once."""
        return self.table("cells")

    @cached_property
    def whole(self) -> pl.DataFrame:
        """The cells that damaged a whole set, each once: parts of sets and repetitions left out."""
        return self.cells.filter(pl.col("part").is_null() & (pl.col("repeat").fill_null(0) == 0))

    @cached_property
    def first_draws(self) -> pl.DataFrame:
        """:attr:`whole`, of drawn controls the first set of each seed alone: that which parts of controls are of."""
        return self.whole.filter(pl.col("control_draw").fill_null(0) == 0)

    @cached_property
    def baselines(self) -> pl.DataFrame:
        """The intact model."""
        return self.table("baselines")

    @cached_property
    def rankings(self) -> pl.DataFrame:
        """One row a selected weight."""
        return self.table("rankings")

    @cached_property
    def score_stats(self) -> pl.DataFrame:
        """One row a tensor (or component of it) and seed."""
        return self.table("score_stats")

    @cached_property
    def sample_sizes(self) -> pl.DataFrame:
        """One row a selected weight and number of calibration windows; empty unless "weights" was analysed."""
        return self.table("sample_sizes")

    @cached_property
    def samples(self) -> pl.DataFrame:
        """One row a weight of the stratified sample, with its score by every metric; empty in older studies."""
        return self.table("samples")

    @cached_property
    def fidelity(self) -> pl.DataFrame:
        """One row an edit of a single weight, with what was measured and predicted; empty in older studies."""
        return self.table("fidelity")

    @cached_property
    def ablations(self) -> pl.DataFrame:
        """One row a silenced sub-layer or expert; empty unless "architecture" was analysed."""
        return self.table("ablations")

    @cached_property
    def protocols(self) -> pl.DataFrame:
        """One row a measurement of the intact model: protocol, context and seed; empty unless there are protocols."""
        return self.table("protocols")

    @cached_property
    def tasks(self) -> pl.DataFrame:
        """One row a zero-shot task and metric; empty unless tasks were asked for."""
        return self.table("tasks")

    @cached_property
    def compressions(self) -> pl.DataFrame:
        """One row a compression, seed and text, and one of the dense model a text; empty where none was asked for."""
        return self.table("compressions")

    @cached_property
    def tunings(self) -> pl.DataFrame:
        """One row a tuning, seed and step that was measured, and one of the intact model; empty where none is asked."""
        return self.table("tunings")

    @cached_property
    def faults(self) -> pl.DataFrame:
        """One row an injection of faults into stored weights; empty where none was asked for."""
        return self.table("faults")

    @cached_property
    def attacks(self) -> pl.DataFrame:
        """One row a flip that an attack committed, and one of each attack's stored model; empty where none is asked."""
        return self.table("attacks")

    @cached_property
    def backdoors(self) -> pl.DataFrame:
        """One row a model of the population and feature; empty where no population was asked for."""
        return self.table("backdoors")

    @cached_property
    def mitigations(self) -> pl.DataFrame:
        """One row a model with a backdoor and mitigation; empty where none was asked for."""
        return self.table("mitigations")

    @cached_property
    def roles(self) -> pl.DataFrame:
        """One row a damaged weight or set and role; empty where no role was asked for."""
        return self.table("roles")

    @cached_property
    def mediations(self) -> pl.DataFrame:
        """One row a damaged weight or set and role whose mediator was held; empty where no role was asked for."""
        return self.table("mediations")

    @cached_property
    def attention(self) -> pl.DataFrame:
        """One row a damaged weight or set and block; empty where attention wasn't asked for."""
        return self.table("attention")

    @cached_property
    def facts(self) -> pl.DataFrame:
        """One row a fact, paraphrase, corruption and restored place; empty where no facts were asked for."""
        return self.table("facts")

    @cached_property
    def search(self) -> dict[str, Any] | None:
        """What a search for the smallest set or strength found; None if the study is none or hasn't ended."""
        try:
            return json.loads(self.location.read("search.json"))
        except FileNotFoundError:
            return None
        except (ValueError, EsaError) as error:
            raise StudyError(f"{self.location}/search.json can't be read ({error}); delete it and run again") from None

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


def load(directory: str | Path) -> Study:
    """Open a study: a directory, or the location of an object store (``s3://bucket/study``).

    Raises
    ------
    StudyError
        If there is no readable ``study.json``.

    Example
    -------
    >>> load("results/quickstart").cells.group_by("group").len()  # doctest: +SKIP
    """
    try:
        location = Location(directory)
        record = json.loads(location.read("study.json"))
    except (FileNotFoundError, NotADirectoryError):
        raise StudyError(f"{directory} holds no study (no study.json); give the --out-dir of a run") from None
    except EsaError as error:
        raise StudyError(str(error)) from None
    except ValueError as error:
        raise StudyError(f"{directory}/study.json can't be read: {error}") from None
    if not isinstance(record, dict) or not {"spec", "resolved", "versions"} <= record.keys():
        raise StudyError(f"{directory}/study.json is not what a run wrote; restore it, or choose another directory")
    return Study(location, record)


def _names(location: Location, directory: str) -> list[str]:
    """What lies in a directory of a place; nothing in a file."""
    if location.path is not None and not (location.path / directory).is_dir():
        return []
    return Location(location.at(directory)).names()


def below(location: str | Path) -> list[str]:
    """The study at a location, or those below it, at any depth up to two.

    Raises
    ------
    StudyError
        If there is none.
    """
    try:
        here = Location(location)
        if here.exists("study.json"):
            return [here.text]
        found = []
        for name in here.names():
            if here.exists(f"{name}/study.json"):
                found.append(str(here.at(name)))
            else:
                found += [
                    str(here.at(f"{name}/{inner}"))
                    for inner in _names(here, name)
                    if here.exists(f"{name}/{inner}/study.json")
                ]
    except (EsaError, NotADirectoryError) as error:
        raise StudyError(str(error)) from None
    if not found:
        raise StudyError(f"{location} holds no study (no study.json there nor below); give the --out-dir of runs")
    return found
