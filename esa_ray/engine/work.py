"""One study on its way: what is known of it, its actors, and how it stands in its store."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from esa_ray import data
from esa_ray.data import hub
from esa_ray.data.files import LARGE, check_others
from esa_ray.engine import actor as model_actor
from esa_ray.engine import cluster
from esa_ray.engine.dispatch import Actors, result
from esa_ray.engine.placement import Placement
from esa_ray.errors import EsaError, first_line
from esa_ray.grid import Fingerprints, cells
from esa_ray.measurements import MEASUREMENTS, Unit, failed
from esa_ray.measurements.missing import check_opening, lacks, resolution
from esa_ray.measurements.swept import Swept
from esa_ray.measurements.target import check_judged_apart, named, rest_of
from esa_ray.models.sources import Source, find
from esa_ray.spec import DataSpec, StudySpec
from esa_ray.storage.store import PACK_AT, Store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Counts:
    """How a grid stands: units that were asked for, and how many have which status.

    ``refused`` are the errors that lie in what was asked for: the same command can't mend them.
    """

    asked: int
    statuses: dict[str, int]
    refused: int = 0

    @property
    def missing(self) -> int:
        """Units without a row."""
        return self.asked - sum(self.statuses.values())

    @property
    def failed(self) -> int:
        """Units whose row is an error."""
        return self.statuses.get("error", 0)


@dataclass(frozen=True)
class Summary:
    """How a run ended; ``grids`` by the name of their measurement, ``failures`` of those that are no grids in words."""

    directory: Path | str
    grids: dict[str, Counts]
    computed: int
    seconds: float
    failures: tuple[str, ...] = ()

    @property
    def cells(self) -> int:
        """Cells that were asked for."""
        return self.grids["cells"].asked

    @property
    def complete(self) -> bool:
        """Every unit has a result (divergence is one)."""
        return not self.failures and not any(counts.missing or counts.failed for counts in self.grids.values())


@dataclass
class Work:
    """One study on its way: what is known of it, and the actors that compute it."""

    spec: StudySpec
    store: Store
    source: Source
    text: str | None = None
    target: str | None = None
    windows: data.Windows | None = None
    resolved: Fingerprints | None = None
    actors: Actors = field(default_factory=lambda: Actors([]))
    intact: float = math.nan
    cell_seconds: float = 0.0
    computed: int = 0
    unpacked: int = 0
    remarks: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, spec: StudySpec, location: str | Path) -> Work:
        """A study that was asked for.

        Raises
        ------
        EsaError
            If its model isn't there.
        """
        return cls(spec, Store(location), find(spec.model))

    def read_text(self) -> None:
        """Learn what the text says, and what an earlier run resolved."""
        check_others(self.spec.other_texts)
        documents = None
        if data.is_large(self.spec.data):
            if self.spec.protocols:
                raise EsaError(
                    f"--data {self.spec.data.source} is more than a protocol measures on; give a sample of it, of at "
                    f"most {LARGE >> 20} MiB" + ", as by --split 'train[:1%]'" * hub.is_hub(self.spec.data)
                )
            try:
                self.windows, self.text = result(_packed.remote(self.spec, self.source))
            except ray.exceptions.RayError as error:
                raise EsaError(
                    f"packing {self.spec.data.source} failed ({first_line(error)[:160]}); run the same command again"
                ) from None
        else:
            documents = self._documents(self.spec.data)
            self.text = data.text_fingerprint(documents)
        if self.spec.target:
            self._read_target(self.spec.target, documents)
        self.look()

    def _read_target(self, spec: DataSpec, source: list[str] | None) -> None:
        """Learn what the target says, and what of it the source's documents say, too."""
        with named():
            if data.is_large(spec):
                raise EsaError(
                    f"--data {spec.source} is more than is tuned to; give a sample of it, of at most {LARGE >> 20} MiB"
                    + ", as by --target-split 'train[:1%]'" * hub.is_hub(spec)
                )
            documents = self._documents(spec)
        self.target = data.text_fingerprint(documents)
        assert self.text
        check_judged_apart(self.spec, self.text, self.target)
        if source is not None and self.target != self.text and (told := rest_of(self.spec, documents, source).told):
            self.remarks.append(f"{told} of --target {spec.source} stand in --data, too, and are left out of it")

    def _documents(self, spec: DataSpec) -> list[str]:
        return data.read_documents(spec, self._tokenizer(spec))

    def _tokenizer(self, spec: DataSpec) -> PreTrainedTokenizerBase | None:
        """What writes chat rows down; it takes torch, which a driver does without otherwise."""
        if not spec.chat:
            return None
        from esa_ray.models.load import load_tokenizer

        return load_tokenizer(self.source)

    def look(self) -> None:
        """Learn what stands in the store now.

        Raises
        ------
        EsaError
            If it holds another study, or one of another model or text.
        """
        assert self.text
        self.resolved = resolution(self.store, self.spec, self.source, self.text, self.target)

    @property
    def lacks(self) -> bool:
        """Whether anything is left to compute."""
        return self.resolved is None or lacks(self.spec, self.store)

    @property
    def pieces(self) -> int:
        """Independent pieces of work that are left; more actors than that would idle."""
        spec, store = self.spec, self.store
        if store.unreadable():  # what that held is known once it is set aside
            return max(len(spec.seeds), len(cells(spec)))
        phases = MEASUREMENTS.phases().values()
        return max(1, *(sum(m.pieces(spec, store) for m in phase) for phase in phases))

    @property
    def model(self) -> cluster.Model:
        """What the placement has to know."""
        # A dtype once resolved stays: a study that began on a GPU must not go on in another dtype on a CPU.
        resolved = self.resolved.dtype if self.resolved else None
        trains = any(how.arm == "full" for how in self.spec.tunings) or self.spec.population is not None
        return cluster.Model(self.source, self.spec.model.dtype, self.pieces, resolved, trains)

    def start(self, placement: Placement, memory_budget: int | None) -> None:
        """Start its model actors."""
        spec = self.spec.model_copy(
            update={
                "model": self.spec.model.model_copy(update={"dtype": placement.dtype}),
                "data": data.anchored(self.spec.data),
                "target": self.spec.target and data.anchored(self.spec.target),
                "facts": self.spec.facts and self.spec.facts.anchored,
            }
        )
        actors = model_actor.start(
            placement, memory_budget=memory_budget, spec=spec, source=self.source, text=self.text,
            target=self.target, windows=self.windows, directory=self.store.location.text,
        )  # fmt: skip
        self.actors = Actors(actors, new=True)

    def described(self, found: dict[str, Any]) -> str | None:
        """Keep what an actor found, and write it down for a study that is new.

        Returns the folder of what prepared another study here, if there was one.
        """
        versions = found.pop("versions") | {"ray": ray.__version__}
        fresh = self.resolved is None
        if not fresh:
            check_opening(self.store, found)
        self.resolved = Fingerprints.of({"resolved": found})
        former = self.store.make_way(self.spec, found) if fresh else None
        if fresh:
            if revision := hub.revision(self.spec.data):
                found["data_revision"] = revision
            self.store.save_study(self.spec, found, versions, cells=len(cells(self.spec)))
        return former

    def landed(self, finished: int) -> None:
        """Some cells came in; once many have, their files are packed."""
        self.unpacked += finished
        if self.unpacked >= PACK_AT:
            self.unpacked = 0
            self.store.pack()

    def record_crashed(self, swept: Swept, units: list[Unit]) -> None:
        """Write error rows for units that crashed their actor."""
        assert self.resolved
        rowless = set(swept.missing(self.spec, self.store, failed=False)) if units else set()
        common = {
            "study": self.spec.name, "model": self.source.name, "dtype": self.resolved.dtype,
            "data": self.spec.data.source, **({"target": self.spec.target.source} if self.spec.target else {}),
        }  # fmt: skip
        for unit in rowless.intersection(units):
            name, row = swept.crashed(unit, common, self.spec, self.resolved)
            self.store.write(swept.table, name, [row])

    def summary(self, seconds: float) -> Summary:
        """How it stands; a run that computed something leaves a manifest."""
        stored = self.store.load_study()
        assert stored
        grids = {m.name: self._counts(m, stored) for m in MEASUREMENTS.values() if isinstance(m, Swept)}
        failures = tuple(failed.told(failed.noted(self.store.location)))
        found = Summary(self.store.directory, grids, self.computed, seconds, failures)
        if self.computed or not self.store.location.exists("manifest.json"):
            cells = grids["cells"]
            self.store.save_manifest(
                {
                    "study": self.spec.name,
                    "cells": cells.asked,
                    "statuses": cells.statuses,
                    "missing": cells.missing,
                    "grids": {name: vars(counts) for name, counts in grids.items() if counts.asked},
                    "computed_by_this_run": self.computed,
                    "seconds": round(seconds, 1),
                    "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                }
            )
        return found

    def _counts(self, swept: Swept, record: dict[str, Any]) -> Counts:
        found = self.resolved or Fingerprints.of(record)
        counts = swept.counts(self.spec, self.store, found)
        asked = counts.total() if swept.done(self.spec, self.store) else len(swept.asked(self.spec, self.store))
        return Counts(asked, dict(counts), swept.refused(self.spec, self.store, found) if counts["error"] else 0)


@ray.remote(num_cpus=0, max_retries=3)
def _packed(spec: StudySpec, source: Source) -> tuple[data.Windows, str]:
    from esa_ray.engine import corpus

    return corpus.prepare(data.anchored(spec.data), source, spec.seeds)
