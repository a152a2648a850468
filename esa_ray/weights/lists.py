"""Lists of weights from files and from other studies."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from esa_ray.errors import EsaError
from esa_ray.models.naming import PROJECTIONS
from esa_ray.scoring.chosen import picked
from esa_ray.spec import LISTED, WeightList, WeightName
from esa_ray.storage.store import Store, ranking_name
from esa_ray.weights.rows import READ, Row, is_empty, rows_of, unit, whole

#: What (layer, row, col) alone is a weight of.
DOWN = "mlp.down_proj.weight"


def read_weights(path: str | Path) -> WeightList:
    """A list of weights from a CSV, JSON, JSONL or Parquet file, or the super weights that another study found.

    A file has a row a weight, in the order of their ranks, with the columns ``tensor`` (the parameter's name, or its
    module's), ``row`` (output), ``col`` (input) and, for experts held in one tensor, ``expert``; other columns are left
    alone, headers may be in any case, and a CSV's fields parted by commas, semicolons, tabs or bars. Where every row
    leaves ``col`` empty it lists whole rows, where every row leaves ``row`` empty whole columns.
    Instead of ``tensor`` it may have ``layer``: then (layer, row, col) is a
    weight of that block's down-projection, as papers on super weights write it. Which names a model understands says
    :mod:`esa_ray.models.naming`.
    Of a file of a study's ``rankings/`` it takes the super (or listed) weights by rank, and not the controls. Of a
    study's directory it is the set of its first score and seed at its largest k: the way to damage one model at the
    weights of another of the same shape.

    Raises
    ------
    EsaError
        If it can't be read, lacks a column, or a row names no weight or one that stands there already; the sentence
        names file and line.

    Example
    -------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "two.csv"
    >>> _ = file.write_text("tensor,row,col\\nmodel.layers.0.mlp.down_proj.weight,5,7\\nlm_head.weight,0,1\\n")
    >>> read_weights(file).k
    2
    """
    path = Path(os.path.expanduser(path))
    rows = _of_study(path) if path.is_dir() else _treated(rows_of(path), path)
    weights: dict[WeightName, int] = {}
    lines = _lines(path, [row for _, row in rows])
    for number, row in rows:
        weight = _weight(row, f"--weights {path}, {unit(path)} {number}", lines)
        if weight in weights:
            raise EsaError(
                f"--weights {path}, {unit(path)} {number} lists {weight.tensor} {weight.place}, which "
                f"stands twice: first in {unit(path)} {weights[weight]}; take one out"
            )
        weights[weight] = number
    if not weights:
        raise EsaError(f"--weights {path} lists no weights; write one a {unit(path)}: its tensor, row and col")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().stem).strip("-._") or "weights"
    return WeightList(name=name[:80], weights=tuple(weights))


def _lines(path: Path, rows: list[dict[str, Any]]) -> str | None:
    """The column, row or col, that every row of a file leaves empty: then it lists whole columns, or whole rows."""
    empty = [name for name in ("row", "col") if rows and all(is_empty(row.get(name)) for row in rows)]
    if len(empty) == 2:
        ranked = f" (a ranking of {rows[0]['unit']}s)" if rows[0].get("unit") in ("neuron", "head") else ""
        raise EsaError(f"--weights {path} names neither rows nor columns{ranked}; list weights, rows or columns")
    return empty[0] if empty else None


def _weight(row: dict[str, Any], where: str, lines: str | None) -> WeightName:
    """The weight that a row of a file names, or without ``lines``, row or col, the whole column or row.

    ``where`` is how a sentence about it begins.
    """
    found: dict[str, Any] = {lines: None} if lines else {}
    for column in ("layer", "row", "col", "expert"):
        value = row.get(column)
        if is_empty(value):
            if column in ("row", "col") and column != lines:
                raise EsaError(f"{where} leaves {column!r} empty; write a number, or take the weight out")
        elif (number := whole(value)) is None:
            raise EsaError(f"{where} has {value!r:.40} in {column!r}, which is no whole number from 0 on; mend it")
        else:
            found[column] = number
    tensor, layer = row.get("tensor", DOWN), found.pop("layer", None)
    needed = "tensor" if "tensor" in row else "layer"
    if is_empty(row[needed]):
        raise EsaError(f"{where} leaves {needed!r} empty; name it, or take the weight out")
    if not isinstance(tensor, str) or not re.search(r"[^\W\d]", tensor):
        raise EsaError(f"{where} has {tensor!r:.40} in 'tensor', which is no parameter's name; write its name")
    return WeightName(tensor=_full(tensor, layer), **found)


def _full(name: str, layer: int | None) -> str:
    """A projection's name with its block in it where it tells none by itself, and of its module's name its weight.

    So every tensor has one spelling, and one list is one question.
    """
    full = name.strip()
    if full.removesuffix(".weight").rpartition(".")[2] not in PROJECTIONS:
        return full
    if layer is not None and not re.search(r"\d", full):
        full = f"model.layers.{layer}.{full}"
    # What holds all experts in one tensor is called like a module.
    named = full.endswith(".weight") or "." not in full or re.search(r"experts\.\w*$", full)
    return full if named else f"{full}.weight"


def _treated(rows: list[Row], path: Path) -> list[Row]:
    """Of rows of rankings, the weights in question by rank; any others as they are."""
    if not rows or not {"group", "rank"} <= set(rows[0][1]):
        return rows
    mine = [(number, row) for number, row in rows if row["group"] in ("super", LISTED)]
    if not mine:
        raise EsaError(f"--weights {path} holds rankings without super weights")
    return sorted(mine, key=lambda numbered: _place(numbered[1]))


def _place(row: dict[str, Any]) -> tuple[int, int, str, int]:
    rank, layer, flat = (whole(row.get(name)) for name in ("rank", "layer", "flat"))
    # A tensor outside of the blocks has no layer, and stands behind all that have one.
    return rank or 0, 2**63 if layer is None else layer, str(row.get("tensor")), flat or 0


def _of_study(path: Path) -> list[Row]:
    store = Store(path)
    study: dict[str, Any] | None = store.load_study()
    if study is None:
        raise EsaError(f"--weights {path} holds no study (no study.json); name a file of weights, or a run's --out-dir")
    try:
        score, seed, k = study["spec"]["scores"][0], study["spec"]["seeds"][0], max(study["spec"]["topk"])
    except (KeyError, IndexError, ValueError):
        raise EsaError(f"--weights {path} holds a study without scores: {json.dumps(study['spec'])[:60]}") from None
    name = ranking_name(score["metric"], score["mode"], seed)
    if name not in store.names("rankings"):
        raise EsaError(f"--weights {path}: that study has no ranking yet; run it first")
    table = picked(store.read("rankings", name), "super", k)
    rows = table.select([c for c in READ if c in table.column_names]).to_pylist()
    return sorted(enumerate(rows, 1), key=lambda numbered: _place(numbered[1]))
