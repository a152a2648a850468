"""The store: rows in Parquet under one study's directory, each file written whole or not at all.

A row is done when its file is there. Files are written to a temporary name in the same directory, synced
and renamed; a file name is a pure function of what it holds, so writing it twice leaves one.
"""

from __future__ import annotations

import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from esa_ray.errors import EsaError, first_line
from esa_ray.identity import IDENTITY_VERSION
from esa_ray.schema import SCHEMA_VERSION, TABLES
from esa_ray.spec import StudySpec

MENDS = {
    errno.ENOSPC: "no space is left; free some and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EACCES: "no permission to write there; choose another --out-dir",
    errno.EPERM: "no permission to write there; choose another --out-dir",
    errno.EROFS: "the file system is read-only; choose another --out-dir",
    errno.ENOTDIR: "a part of the path is a file; choose another --out-dir",
    errno.EEXIST: "a file is in the way; choose another --out-dir",
}


def ranking_name(metric: str, mode: str, seed: int) -> str:
    """File stem of a ranking (of a list: "listed" and its name), and of its score statistics."""
    return f"{metric}-{mode}-s{seed}"


#: Weights of the fidelity census that are measured together and stored in one file.
CENSUS_PACKET = 16


def samples_name(seed: int) -> str:
    """File stem of the weights that the fidelity census damages."""
    return f"s{seed}"


def fidelity_name(seed: int, part: int) -> str:
    """File stem of one packet of the census."""
    return f"s{seed}-{part:04d}"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file or nothing.

    Raises
    ------
    EsaError
        If the disk is full or the place can't be written to; what stood there stands unharmed.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True) if scratch.parent.is_dir() else None
        raise EsaError(f"{path} can't be written: {MENDS.get(error.errno or 0, str(error))}") from None


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _differences(old: Any, new: Any, at: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            d
            for key in dict.fromkeys([*old, *new])
            for d in _differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
        ]
    return [] if old == new else [at]


class Store:
    """One study's directory: ``study.json``, ``cells/``, ``baselines/``, ``rankings/``, ``score_stats/``."""

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = Path(directory)

    def path(self, table: str, name: str) -> Path:
        """Where a file of a table lies."""
        return self.directory / table / f"{name}.parquet"

    def write(self, table: str, name: str, rows: pa.Table | list[dict[str, Any]]) -> Path:
        """Write one file of a table, checked against its schema."""
        schema = TABLES[table]
        if isinstance(rows, list):
            rows = pa.Table.from_pylist(rows, schema=schema)
        buffer = io.BytesIO()
        pq.write_table(rows.cast(schema), buffer, compression="zstd", write_page_checksum=True)
        path = self.path(table, name)
        write_atomically(path, buffer.getvalue())
        return path

    def names(self, table: str) -> list[str]:
        """The names of a table's files, sorted."""
        return sorted(p.stem for p in (self.directory / table).glob("*.parquet"))

    def read(self, table: str, name: str, columns: list[str] | None = None) -> pa.Table:
        """Read one file.

        Raises
        ------
        EsaError
            If it isn't readable Parquet of this schema version.
        """
        path = self.path(table, name)
        try:
            found = pq.read_table(path, columns=columns, partitioning=None, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise EsaError(
                f"{path} is not readable Parquet ({first_line(error)[:80]}); delete that file and run the "
                "same command again: only what it held is computed anew"
            ) from None
        version = (found.schema.metadata or {}).get(b"esa_ray.schema", b"none").decode()
        if version != SCHEMA_VERSION:
            raise EsaError(
                f"{path} has schema version {version}, this esa-ray reads {SCHEMA_VERSION}; use its own version"
            )
        return found

    def cell_statuses(self) -> dict[str, str]:
        """cell_id → status of every stored cell."""
        found: dict[str, str] = {}
        for name in self.names("cells"):
            row = self.read("cells", name, ["cell_id", "status"]).to_pylist()
            found |= {r["cell_id"]: r["status"] for r in row}
        return found

    def load_study(self) -> dict[str, Any] | None:
        """The content of ``study.json``, or None in a fresh directory."""
        path = self.directory / "study.json"
        try:
            content = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            raise EsaError(f"{path} can't be read ({error}); restore it, or choose another --out-dir") from None
        if not isinstance(content, dict) or not {"spec", "resolved"} <= content.keys():
            raise EsaError(f"{path} is not what a run wrote; restore it, or choose another --out-dir")
        return content

    def claim(self, spec: StudySpec) -> dict[str, Any] | None:
        """Make sure that this directory belongs to this study, and say what an earlier run resolved.

        Raises
        ------
        EsaError
            If it holds another study; the sentence names the fields that differ.
        """
        stored = self.load_study()
        if stored is None:
            if self._foreign():
                raise EsaError(f"{self.directory} holds other files and no study; choose another --out-dir")
            return None
        results = any(self.names(table) for table in TABLES)
        if results and stored.get("identity", 2) != IDENTITY_VERSION:
            raise EsaError(
                f"{self.directory} was made by a version that computed cells otherwise; `esa report` still reads it, "
                "but to compute choose another --out-dir"
            )
        wanted = spec.model_dump(mode="json")
        # Its name is where it stands, not what it asks.
        different = [d for d in _differences(stored.get("spec"), wanted) if d != "name"]
        if not different:
            return stored.get("resolved")
        if not results:
            return None  # it was refused before it computed anything: the mended command may have the place
        raise EsaError(
            f"{self.directory} holds another study (it differs in {', '.join(different[:5])}); "
            "choose another --out-dir, or repeat the command it was made with"
        )

    def _foreign(self) -> bool:
        try:
            return self.directory.is_dir() and any(not p.name.startswith(".") for p in self.directory.iterdir())
        except OSError as error:
            raise EsaError(f"{self.directory} can't be read: {MENDS.get(error.errno or 0, str(error))}") from None

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
        write_atomically(self.directory / "study.json", _json(content))

    def save_search(self, content: dict[str, Any]) -> None:
        """Write ``search.json``: what a search was for and what it found."""
        write_atomically(self.directory / "search.json", _json(content))

    def searched(self) -> bool:
        """Whether a search has come to its end here."""
        return (self.directory / "search.json").is_file()

    def has(self, table: str, name: str) -> bool:
        """Whether a file of a table is there."""
        return self.path(table, name).is_file()

    def save_manifest(self, content: dict[str, Any]) -> None:
        """Write ``manifest.json``: the last file of a run, listing what the store holds."""
        files = {table: len(self.names(table)) for table in TABLES}
        write_atomically(self.directory / "manifest.json", _json({"files": files, **content}))
