"""The store: rows in Parquet under one study's location, each file written whole or not at all.

A row is done when a file holds it. A file's name is a pure function of what it holds, so writing it twice leaves
one. Once many cells have gathered their files are packed into one (:meth:`Store.pack`), also while others read.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from esa_ray.errors import EsaError
from esa_ray.identity import IDENTITY_VERSION, digest
from esa_ray.schema import TABLES
from esa_ray.spec import LISTED, ScoreSpec, StudySpec
from esa_ray.storage import tables
from esa_ray.storage.location import Location

#: Small files of cells that are packed into one. Four thousand of them take seconds to read, one takes milliseconds.
PACK_AT = 512

#: Rows from which on a packed file is left as it is: until then it is packed again with its successors.
PACK_ROWS = 10_000

#: Who computes here now (:mod:`esa_ray.storage.lease`).
RUNNING = "running.json"

#: What a damaged file is renamed to, so that it is neither read nor lost.
SET_ASIDE = ".unreadable"


def ranking_name(metric: str, mode: str, seed: int) -> str:
    """File stem of a ranking (of a list: "listed" and its name), and of its score statistics."""
    return f"{metric}-{mode}-s{seed}"


def samples_name(seed: int) -> str:
    """File stem of the weights that the single-weight sample damages."""
    return f"s{seed}"


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _batches(stored: dict[str, Any], different: list[str]) -> str:
    """What to add to the same command where the default has changed since: it once was 8 windows of any length."""
    if different != ["data.batch_size"]:
        return ""
    return f" and --batch-size {stored['spec']['data']['batch_size']}"


def _differences(old: Any, new: Any, at: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            d
            for key in dict.fromkeys([*old, *new])
            for d in _differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
        ]
    return [] if old == new else [at]


def _plain(spec: Any) -> Any:
    """A stored spec with the defaults of fields that came later; what is no spec of ours stays as it is."""
    try:
        return StudySpec.model_validate(spec).model_dump(mode="json")
    except ValidationError:
        return spec


def _asked(stored: dict[str, Any]) -> Any:
    """What a stored study asks, in today's words."""
    asked = _plain(stored.get("spec"))
    with contextlib.suppress(KeyError, TypeError, ValidationError):  # a later version may ask in words of its own
        for score in asked["scores"]:
            score["components"] = list(ScoreSpec(components=score["components"]).components)
    return asked


#: Tables that prepare cells; each of the others holds answers.
PREPARED = ("baselines", "rankings", "score_stats", "sample_sizes", "samples")
#: Fields of a study that its baseline is computed from, and those that its rankings are computed from besides.
OF_BASELINE = ("data",)
OF_RANKINGS = ("scores", "groups", "lists", "analyses", "fidelity", "perturbations", "control_draws")


def _usable(stored: dict[str, Any], spec: StudySpec, resolved: dict[str, Any]) -> dict[str, set[str]]:
    """table → names of what another study prepared, and this one would compute alike."""
    asked, wanted = _asked(stored), spec.model_dump(mode="json")
    alike = all(stored["resolved"].get(key) == resolved.get(key) for key in ("model", "dtype", "text"))
    if (
        stored.get("identity", 2) != IDENTITY_VERSION
        or not alike
        or any(asked.get(f) != wanted[f] for f in OF_BASELINE)
    ):
        return {}
    found = {"baselines": {"baseline"}}
    # Controls leave out all super weights of the largest k, so a ranking of another depth holds others.
    deepest = max(asked.get("topk") or [0]) == max(spec.topk)
    if deepest and all(asked.get(f) == wanted[f] for f in OF_RANKINGS):
        pools = [*((s.metric, s.mode) for s in spec.scores), *((LISTED, given.name) for given in spec.lists)]
        names = {ranking_name(*pool, seed) for pool in pools for seed in spec.seeds}
        found |= dict.fromkeys(("rankings", "score_stats", "sample_sizes"), names)
        found["samples"] = {samples_name(spec.seeds[0])}
    return found


class Store:
    """One study's location: ``study.json``, ``cells/``, ``baselines/``, ``rankings/``, ``score_stats/``.

    Example
    -------
    >>> import tempfile
    >>> store = Store(tempfile.mkdtemp())
    >>> store.write("cells", "a", [{"cell_id": "0123", "status": "ok"}])
    >>> store.cell_statuses()
    {'0123': 'ok'}
    """

    def __init__(self, location: str | os.PathLike[str]):
        self.location = Location(location)

    @property
    def directory(self) -> Path | str:
        """The directory as a path, or the location of an object store."""
        return self.location.path or self.location.text

    def write(self, table: str, name: str, rows: pa.Table | list[dict[str, Any]]) -> None:
        """Write one file of a table, checked against its schema."""
        schema = TABLES[table]
        if isinstance(rows, list):
            rows = pa.Table.from_pylist(rows, schema=schema)
        self.location.write(tables.file(table, name), tables.encoded(rows.cast(schema)))

    def names(self, table: str) -> list[str]:
        """The names of a table's files, sorted."""
        return tables.names(self.location, table)

    def has(self, table: str, name: str) -> bool:
        """Whether a file of a table is there."""
        return self.location.exists(tables.file(table, name))

    def read(self, table: str, name: str, columns: list[str] | None = None) -> pa.Table:
        """Read one file.

        Raises
        ------
        EsaError
            If it isn't readable Parquet of this schema version.
        """
        return tables.read_one(self.location, table, name, columns)

    def cells(self, columns: list[str] | None = None) -> pa.Table:
        """All cells, each once, whatever file holds them."""
        return tables.read(self.location, "cells", columns)

    def cell_statuses(self) -> dict[str, str]:
        """cell_id → status of every stored cell."""
        return self.statuses("cells", "cell_id")

    def statuses(self, table: str, identity: str) -> dict[str, str]:
        """Id → status of every unit of a table; of a unit with several rows, an error if one failed."""
        found = tables.read(self.location, table, [identity, "status"])
        known: dict[str, str] = {}
        for each, status in zip(found[identity].to_pylist(), found["status"].to_pylist(), strict=True):
            if known.get(each) != "error":
                known[each] = status
        return known

    def pack(self, at_least: int = PACK_AT) -> int:
        """Put the rows of many small files of cells into one, and delete those; returns how many it replaced.

        Errors stay as they are, since they will be computed again. What is deleted stands in the new file, which is
        complete and checked before; who reads meanwhile sees every cell, and each once.
        """
        names = self.names("cells")
        packs = tables.packed(names)
        single = [n for n in names if n not in set(packs)]
        if len(single) < at_least:
            return 0
        small = [n for n in packs if tables.packed_rows(n) < PACK_ROWS]
        readable = self._readable(small + single)
        found = [(name, rows) for name, rows in readable if "error" not in rows["status"].to_pylist()]
        if {name for name, _ in found} <= set(small):
            return 0
        joined = pa.concat_tables([rows for _, rows in found], promote_options="permissive")
        ids = joined["cell_id"].to_pylist()
        first = {cell: i for i, cell in reversed(list(enumerate(ids)))}
        target = tables.packed_name(first)
        self.write("cells", target, joined.take(sorted(first.values())))
        try:
            written = set(self.read("cells", target, ["cell_id"])["cell_id"].to_pylist())
        except FileNotFoundError:  # another driver packed it meanwhile, and more
            return 0
        if written != set(first):
            raise EsaError(f"{self.location} gave back something else than was written to it; nothing was deleted")
        replaced = [name for name, _ in found if name != target]
        self.location.delete(tables.file("cells", name) for name in replaced)
        return len(replaced)

    def _readable(self, names: list[str]) -> list[tuple[str, pa.Table]]:
        """The rows of those files of cells that are there and can be read; others are left to :meth:`quarantine`."""

        def read(name: str) -> pa.Table | None:
            try:
                return self.read("cells", name)
            except (tables.UnreadableError, FileNotFoundError):
                return None

        found = self.location.each(names, read)
        return [(name, rows) for name, rows in zip(names, found, strict=True) if rows is not None]

    def unreadable(self) -> list[str]:
        """Every file that is no whole Parquet, as a crash of the machine can leave it."""
        found: list[str] = []
        for table in TABLES:
            tables.damaged(self.location, table, found.append)
        return found

    def quarantine(self) -> list[str]:
        """Rename files that can't be read, and sweep; returns the former.

        For whoever has the study to itself.
        """
        found = self.unreadable()
        for name in found:
            self.location.move(name, name + SET_ASIDE)
        self.sweep()
        return found

    def sweep(self) -> None:
        """Delete what killed processes left half-written; for whoever has the study to itself."""
        if self.location.path is not None:
            for scratch in [*self.location.path.glob(".*.tmp"), *self.location.path.glob("*/.*.tmp")]:
                scratch.unlink(missing_ok=True)

    def load_study(self) -> dict[str, Any] | None:
        """The content of ``study.json``, or None in a fresh directory."""
        try:
            content = json.loads(self.location.read("study.json"))
        except FileNotFoundError:
            return None
        except (ValueError, EsaError) as error:
            raise EsaError(
                f"{self.location}/study.json can't be read ({error}); restore it, or choose another --out-dir"
            ) from None
        if not isinstance(content, dict) or not all(isinstance(content.get(k), dict) for k in ("spec", "resolved")):
            raise EsaError(
                f"{self.location}/study.json is not what a run wrote; restore it, or choose another --out-dir"
            )
        return content

    def claim(self, spec: StudySpec) -> dict[str, Any] | None:
        """Make sure that this directory belongs to this study, and say what an earlier run resolved.

        Raises
        ------
        EsaError
            If it holds another study; the sentence names the fields that differ.
        """
        if self.location.path is not None and self.location.path.is_file():
            raise EsaError(f"{self.location} is a file; choose a directory for --out-dir")
        stored = self.load_study()
        if stored is None:
            if self._foreign():
                raise EsaError(f"{self.location} holds other files and no study; choose another --out-dir")
            return None
        if stored.get("identity", 2) != IDENTITY_VERSION:
            if not any(self.names(table) for table in TABLES):
                return None  # its study.json is written anew
            raise EsaError(
                f"{self.location} was made by a version that computed cells otherwise; `esa report` still reads it, "
                "but to compute choose another --out-dir"
            )
        # Its name is where it stands, and where models are saved is no question.
        different = _differences(_asked(stored), spec.model_dump(mode="json"))
        different = [d for d in different if d not in ("name", "save_models")]
        if not different:
            return stored.get("resolved")
        if not self.answered(stored):
            return None  # the mended command may have the place (make_way)
        raise EsaError(
            f"{self.location} holds another study (it differs in {', '.join(different[:5])}); "
            f"choose another --out-dir, or repeat the command it was made with{_batches(stored, different)}"
        )

    def answered(self, stored: dict[str, Any]) -> bool:
        """Whether anything is here that the stored study asked for.

        That is a cell with a result, one of single weights, of blocks or of the intact model, or a search's end;
        of a study without damage also a ranking. Baseline and rankings of any other only prepare its cells.
        """
        prepares = any(stored["spec"].get(field) for field in ("perturbations", "compressions", "roles"))
        alone = () if prepares else ("rankings",)
        if self.searched() or any(self.names(t) for t in TABLES if t in alone or t not in (*PREPARED, "cells")):
            return True
        try:
            return any(status != "error" for status in self.cell_statuses().values())
        except tables.UnreadableError:  # nobody knows what it held
            return True

    def make_way(self, spec: StudySpec, resolved: dict[str, Any]) -> str | None:
        """Give the place to a study, and say in which folder what it can't use was put; None if there was no such.

        For whoever has the place to itself, and after :meth:`claim`. What prepared another study, which has no answer
        yet, stays where this one would compute the same; all else moves into a folder of its own, a whole place with
        that study's ``study.json``. Nothing is deleted.
        """
        stored = self.load_study()
        if stored is None:
            return None
        usable = _usable(stored, spec, resolved)
        former = [(t, n) for t in TABLES for n in self.names(t) if n not in usable.get(t, ())]
        if not former:
            return None
        folder = f"former-{digest({'spec': stored['spec'], 'resolved': stored['resolved']})}"
        self.location.write(f"{folder}/study.json", self.location.read("study.json"))
        for table, name in former:
            self.location.move(tables.file(table, name), f"{folder}/{tables.file(table, name)}")
        return folder

    def _foreign(self) -> bool:
        return any(not name.startswith(".") and name != RUNNING for name in self.location.names())

    def save_study(
        self, spec: StudySpec, resolved: dict[str, Any], versions: dict[str, str], cells: int | None = None
    ) -> None:
        """Write the study as it was resolved, with the number of cells that it asks for."""
        content = {
            "spec": json.loads(spec.model_dump_json()), "resolved": resolved, "versions": versions,
            "identity": IDENTITY_VERSION,
        }  # fmt: skip
        if cells is not None:
            content["cells"] = cells
        self.location.write("study.json", _json(content))

    def save_search(self, content: dict[str, Any]) -> None:
        """Write ``search.json``: what a search was for and what it found."""
        self.location.write("search.json", _json(content))

    def searched(self) -> bool:
        """Whether a search has come to its end here."""
        return self.location.exists("search.json")

    def save_manifest(self, content: dict[str, Any]) -> None:
        """Write ``manifest.json``: the last file of a run, listing what the store holds."""
        files = {table: len(self.names(table)) for table in TABLES}
        self.location.write("manifest.json", _json({"files": files, **content}))
