"""Lists of weights from files and from other studies."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from pydantic import ValidationError

from esa_ray.errors import EsaError, first_line
from esa_ray.models.naming import PROJECTIONS
from esa_ray.scoring.chosen import picked
from esa_ray.spec import LISTED, WeightList, explain
from esa_ray.storage.store import Store, ranking_name

_READERS = {
    ".csv": pyarrow.csv.read_csv,
    ".jsonl": pyarrow.json.read_json,
    ".ndjson": pyarrow.json.read_json,
    ".parquet": pq.read_table,
}
COLUMNS = ("tensor", "row", "col", "expert")
#: Our columns → what others call them.
SYNONYMS = {
    "tensor": ("module", "name", "param", "parameter", "weight_name"),
    "layer": ("block", "layer_idx"),
    "row": ("out", "output", "row_idx"),
    "col": ("in", "input", "column", "col_idx"),
}
#: What (layer, row, col) alone is a weight of.
DOWN = "mlp.down_proj.weight"


def read_weights(path: str | Path) -> WeightList:
    """A list of weights from a CSV, JSONL or Parquet file, or the super weights that another study found.

    A file has a row a weight, in the order of their ranks, with the columns ``tensor`` (the parameter's name, or its
    module's), ``row`` (output), ``col`` (input) and, for experts held in one tensor, ``expert``; other columns are left
    alone, and headers may be in any case. Instead of ``tensor`` it may have ``layer``: then (layer, row, col) is a
    weight of that block's down-projection, as papers on super weights write it. Which names a model understands says
    :mod:`esa_ray.models.naming`.
    Of a file of a study's ``rankings/`` it takes the super (or listed) weights by rank, and not the controls. Of a
    study's directory it is the set of its first score and seed at its largest k: the way to damage one model at the
    weights of another of the same shape.

    Raises
    ------
    EsaError
        If it can't be read, or lacks a column.

    Example
    -------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "two.csv"
    >>> _ = file.write_text("tensor,row,col\\nmodel.layers.0.mlp.down_proj.weight,5,7\\nlm_head.weight,0,1\\n")
    >>> read_weights(file).k
    2
    """
    path = Path(os.path.expanduser(path))
    table = _of_study(path) if path.is_dir() else _with_names(_of_file(path))
    if missing := [c for c in COLUMNS[:3] if c not in table.column_names]:
        raise EsaError(
            f"--weights {path} has no column {missing[0]!r}; it needs tensor (or layer), row and col (and expert)"
        )
    if empty := [c for c in COLUMNS[:3] if table[c].null_count]:
        raise EsaError(f"--weights {path} leaves {empty[0]!r} empty in {table[empty[0]].null_count} rows")
    rows = table.select([c for c in COLUMNS if c in table.column_names]).to_pylist()
    weights = [{c: v for c, v in row.items() if v is not None} for row in rows]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().stem).strip("-._") or "weights"
    try:
        return WeightList.model_validate({"name": name[:80], "weights": weights})
    except ValidationError as error:
        raise EsaError(f"--weights {path}: {explain(error)}") from None


def _with_names(table: pa.Table) -> pa.Table:
    """The same with our columns' names, and every tensor under one spelling, so that one list is one question."""
    found = table.rename_columns(_headers(table.column_names))
    if not {"tensor", "layer"} & set(found.column_names):
        return found
    layers = found["layer"].to_pylist() if "layer" in found.column_names else [None] * len(found)
    names = found["tensor"].to_pylist() if "tensor" in found.column_names else [DOWN] * len(found)
    full = [_full(name, layer) for name, layer in zip(names, layers, strict=True)]
    rest = found.drop_columns([c for c in ("tensor",) if c in found.column_names])
    return rest.append_column("tensor", pa.array(full, pa.string()))


def _headers(names: list[str]) -> list[str]:
    """Headers in our spelling: in lower case, and a synonym where our own word isn't there."""
    plain = [name.strip().lower() for name in names]
    free = {ours: [p for p in plain if p in SYNONYMS[ours]] for ours in SYNONYMS if ours not in plain}
    renamed = {theirs[0]: ours for ours, theirs in free.items() if theirs}
    made = [renamed.get(p, p) for p in plain]
    return made if len(set(made)) == len(made) else names


def _full(name: Any, layer: Any) -> str | None:
    """A projection's name with its block in it where it tells none by itself, and of its module's name its weight."""
    if name is None:
        return None
    full = str(name)
    if full.removesuffix(".weight").rpartition(".")[2] not in PROJECTIONS:
        return full
    if layer is not None and not re.search(r"\d", full):
        full = f"model.layers.{layer}.{full}"
    # What holds all experts in one tensor is called like a module.
    named = full.endswith(".weight") or "." not in full or re.search(r"experts\.\w*$", full)
    return full if named else f"{full}.weight"


def _treated(table: pa.Table, path: Path) -> pa.Table:
    """Of a table of rankings, the weights in question; any other table as it is."""
    if not {"group", "rank"} <= set(table.column_names):
        return table
    mine = table.filter(pc.field("group").isin(["super", LISTED]))
    if not len(mine):
        raise EsaError(f"--weights {path} holds rankings without super weights")
    return _in_order(mine)


def _in_order(rows: pa.Table) -> pa.Table:
    return rows.sort_by([("rank", "ascending"), ("layer", "ascending"), ("tensor", "ascending"), ("flat", "ascending")])


def _of_file(path: Path) -> pa.Table:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise EsaError(f"--weights {path} is no .csv, .jsonl or .parquet file, nor a study's directory")
    try:
        return _treated(reader(path), path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise EsaError(f"--weights {path} can't be read: {first_line(error)}") from None


def _of_study(path: Path) -> pa.Table:
    store = Store(path)
    study: dict[str, Any] | None = store.load_study()
    if study is None:
        raise EsaError(f"--weights {path} holds no study (no study.json)")
    try:
        score, seed, k = study["spec"]["scores"][0], study["spec"]["seeds"][0], max(study["spec"]["topk"])
    except (KeyError, IndexError, ValueError):
        raise EsaError(f"--weights {path} holds a study without scores: {json.dumps(study['spec'])[:60]}") from None
    name = ranking_name(score["metric"], score["mode"], seed)
    if name not in store.names("rankings"):
        raise EsaError(f"--weights {path}: that study has no ranking yet; run it first")
    return _in_order(picked(store.read("rankings", name), "super", k))
