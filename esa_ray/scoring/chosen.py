"""From a stored ranking to the weights that a cell damages, and what is known of them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from esa_ray.errors import EsaError
from esa_ray.perturb.known import Known
from esa_ray.spec import Subset

#: Columns of a ranking that tell which weights are in a set, and in which blocks.
SET_COLUMNS = ("group", "control_draw", "rank", "layer", "score")
#: Parts whose members are counted over the whole set.
OVERALL = ("single", "pair")


class EmptySubsetError(RuntimeError):
    """A part of a set that holds no weights, so its damage can't be measured."""


def picked(ranking: pa.Table, group: str, k: int, part: Subset | None = None, draw: int = 0) -> pa.Table:
    """The rows of a ranking that a set consists of: the first k of every pool of a group, or a part of these.

    ``draw`` is which of the sets of a drawn control.

    Raises
    ------
    EmptySubsetError
        If the part holds no weights.
    EsaError
        If a restored fraction of k is no whole weight.
    """
    wanted = (pc.field("group") == group) & (pc.field("rank") <= k)
    if "control_draw" in ranking.column_names:  # older versions drew one set
        wanted &= pc.coalesce(pc.field("control_draw"), pc.scalar(0)) == draw
    if part is not None and part.kind not in OVERALL:
        wanted = wanted & _within(part, k)
    mine = ranking.filter(wanted)
    if part is not None and part.kind in OVERALL:
        mine = _overall(mine, part)
    if part is not None and not len(mine):
        raise EmptySubsetError(f"no weights of the set are its part {part.label}")
    return mine


def _overall(whole: pa.Table, part: Subset) -> pa.Table:
    """The members at a part's places in a whole set: by score whatever the pool, of equal ones by rank."""
    places = [int(part.value) - 1, *([part.other - 1] if part.other is not None else [])]
    if places[-1] >= len(whole):
        return whole.slice(0, 0)
    order = pc.sort_indices(whole, sort_keys=[("score", "descending"), ("rank", "ascending")])
    return whole.take(order.take(pa.array(sorted(places))))


def _within(part: Subset, k: int) -> pc.Expression:
    if part.kind == "layer":
        return pc.field("layer") == int(part.value)
    if part.kind == "only":
        return pc.field("rank") == int(part.value)
    spared = round(part.value * k)
    if not 0 < spared < k:
        raise EsaError(f"{part.value:g} of k={k} is no whole weight; restore another fraction, or raise --topk")
    return pc.field("rank") > spared if part.kind == "all_but_first" else pc.field("rank") <= k - spared


def chosen(ranking: pa.Table, group: str, k: int, part: Subset | None = None, draw: int = 0) -> dict[str, np.ndarray]:
    """The first k weights of every pool of a group, or a part of them, as flat indices by tensor."""
    return {name: flat for name, (flat, _) in _by_tensor(picked(ranking, group, k, part, draw)).items()}


def chosen_and_known(
    ranking: pa.Table, group: str, k: int, part: Subset | None = None, draw: int = 0
) -> tuple[dict[str, np.ndarray], dict[str, Known]]:
    """The same, with the scores and gradients of the weights in the same order."""
    whole = picked(ranking, group, k, draw=draw)
    score, weight = _floats(whole["score"]), _floats(whole["weight"])
    per_score = None
    if score is not None and weight is not None and (norm := float(np.linalg.norm(score))) > 0:
        per_score = float(np.linalg.norm(weight)) / norm
    found = _by_tensor(picked(ranking, group, k, part, draw), per_score)
    return {n: flat for n, (flat, _) in found.items()}, {n: facts for n, (_, facts) in found.items()}


def _by_tensor(rows: pa.Table, weight_per_score: float | None = None) -> dict[str, tuple[np.ndarray, Known]]:
    tensors, flat = np.array(rows["tensor"].to_pylist()), rows["flat"].to_numpy()
    facts = {name: _floats(rows[name]) for name in ("score", "gradient") if name in rows.column_names}
    found = {}
    for name in dict.fromkeys(tensors.tolist()):
        mine = tensors == name
        known = {n: None if v is None else v[mine] for n, v in facts.items()}
        found[str(name)] = (flat[mine], Known(**known, weight_per_score=weight_per_score))
    return found


def _floats(column: pa.ChunkedArray) -> np.ndarray | None:
    return None if column.null_count == len(column) else column.to_numpy()


def first_block(ranking: pa.Table, group: str, k: int, part: Subset | None = None, draw: int = 0) -> int:
    """The earliest block that a set touches; −1 if it touches weights outside the blocks."""
    layers = picked(ranking, group, k, part, draw)["layer"]
    return -1 if layers.null_count or not len(layers) else int(pc.min(layers).as_py())
