"""What a study lacks: the pieces of work whose results its store doesn't hold yet."""

from __future__ import annotations

import math
from collections import Counter
from functools import cache, lru_cache
from itertools import product
from typing import Any

from esa_ray.errors import EsaError
from esa_ray.grid import Cell, Resolved, cell_id, cells
from esa_ray.models.sources import Source
from esa_ray.scoring.chosen import SET_COLUMNS, EmptyPartError, first_block
from esa_ray.spec import LISTED, Part, StudySpec
from esa_ray.store import CENSUS_PACKET, Store, ablation_name, fidelity_name, protocol_name, ranking_name, samples_name
from esa_ray.tasks import answers_name


def resolution(store: Store, spec: StudySpec, source: Source, text: str) -> Resolved | None:
    """What an earlier run of this study resolved, if model and text are still the same.

    Raises
    ------
    EsaError
        If the place holds another study, or model or text have changed.
    """
    stored = store.claim(spec)
    if stored is None:
        return None
    found = Resolved(source.fingerprint, stored["dtype"], text)
    for what, flag in (("model", "--model"), ("text", "--data")):
        if getattr(found, what) != stored[what]:
            if not store.answered(store.load_study() or {"spec": {}}):
                return None  # mended before anything was measured on it
            raise EsaError(
                f"{store.place} was made with another {what} under the same name ({flag}); "
                "bring that one back, or choose another --out-dir"
            )
    return found


def check_opening(store: Store, found: dict[str, Any]) -> None:
    """Refuse to go on with a study whose windows began otherwise, by the rule of an earlier version.

    Raises
    ------
    EsaError
        If what was found now (:meth:`Worker.describe`) differs from what the store says.
    """
    stored = (store.load_study() or {}).get("resolved") or {}
    if stored.get("bos", found["bos"]) != found["bos"]:
        now = " and ".join(found["opening"]) or "text alone"
        raise EsaError(
            f"{store.place} was measured on windows that began otherwise (by its tokenizer they begin with {now}); "
            "choose another --out-dir"
        )


def missing_cells(store: Store, spec: StudySpec, resolved: Resolved, *, failed: bool = True) -> list[Cell]:
    """Cells without a result, or without ``failed`` those without a row.

    Of a search, which needs only some of its candidates, none are missing once it is done.
    """
    if spec.search and store.searched():
        return []
    done = {i for i, status in store.cell_statuses().items() if status != "error" or not failed}
    return [cell for cell in cells(spec) if cell_id(cell, spec.data, resolved) not in done]


def statuses(store: Store, spec: StudySpec, resolved: Resolved) -> Counter[str]:
    """How many of the study's cells have which status; cells that it doesn't ask for are left out."""
    wanted = {cell_id(cell, spec.data, resolved) for cell in cells(spec)}
    return Counter(s for i, s in store.cell_statuses().items() if i in wanted)


def by_first_block(store: Store, todo: list[Cell]) -> list[Cell]:
    """Cells that touch the same block first stand together: they resume from the same hidden states."""
    read = lru_cache(maxsize=16)(lambda name: store.read("rankings", name, [*SET_COLUMNS]))

    @cache
    def block(name: str, group: str, k: int, part: Part | None) -> int:
        try:
            return first_block(read(name), group, k, part)
        except EmptyPartError:
            return -1  # the cell itself will say so in its row

    def key(cell: Cell) -> int:
        return block(ranking_name(*cell.chosen_by, cell.seed), cell.group, cell.k, cell.part)

    return sorted(todo, key=key)


def missing_seeds(store: Store, spec: StudySpec) -> list[int]:
    """Seeds of which a ranking, its statistics or the census' sample isn't stored."""
    tables = ["rankings", "score_stats", *(["sample_sizes"] if "weights" in spec.analyses else [])]
    listed = set(store.names("rankings"))
    have = set.intersection(*(set(store.names(table)) for table in tables))
    missing = [
        seed
        for seed in spec.seeds
        if not have.issuperset(ranking_name(s.metric, s.mode, seed) for s in spec.scores)
        or not listed.issuperset(ranking_name(LISTED, w.name, seed) for w in spec.lists)
    ]
    unsampled = spec.fidelity and not store.has("samples", samples_name(spec.seeds[0]))
    return [seed for seed in spec.seeds if seed in missing or (unsampled and seed == spec.seeds[0])]


def missing_packets(store: Store, spec: StudySpec) -> list[int]:
    """Packets of the census that aren't stored; all of one are counted before its weights are drawn."""
    if not spec.fidelity:
        return []
    seed, have = spec.seeds[0], set(store.names("fidelity"))
    drawn = store.has("samples", samples_name(seed))
    n = len(store.read("samples", samples_name(seed))) if drawn else spec.fidelity
    return [part for part in range(math.ceil(n / CENSUS_PACKET)) if fidelity_name(seed, part) not in have]


def missing_blocks(store: Store, spec: StudySpec) -> list[int]:
    """Blocks whose sub-layers are to be silenced and aren't yet; none are known before the model was loaded once."""
    record = store.load_study() if "architecture" in spec.analyses else None
    if record is None:
        return []
    have = set(store.names("ablations"))
    return [n for n in range(record["resolved"]["layers"]) if ablation_name(n) not in have]


def missing_protocols(store: Store, spec: StudySpec) -> list[tuple[tuple[str, ...], int, int]]:
    """(protocols, context, seed) of measurements of the intact model that aren't stored.

    Protocols that read as many windows of a length read the same ones, and are measured together.
    """
    have = set(store.names("protocols")) if spec.protocols else set()
    found: dict[tuple[int, int, int], list[str]] = {}
    for protocol in spec.protocols:
        for context, seed in product(protocol.contexts, spec.seeds):
            if protocol_name(protocol.name, context, seed) not in have:
                found.setdefault((context, seed, protocol.windows), []).append(protocol.name)
    return [(tuple(names), context, seed) for (context, seed, _), names in found.items()]


def missing_tasks(store: Store, spec: StudySpec) -> list[str]:
    """Protocols whose zero-shot tasks aren't stored.

    Raises
    ------
    EsaError
        If the answers there are to other tasks: a file has changed.
    """
    asked = [p for p in spec.protocols if p.tasks]
    have = set(store.names("tasks")) if asked else set()
    missing = [p for p in asked if answers_name(p) not in have]
    for protocol in missing:
        if any(name.partition("-")[0] == protocol.name for name in have):
            raise EsaError(
                f"{store.place} has answers to other tasks under the same names (--tasks); bring those files back, or "
                "choose another --out-dir"
            )
    return [p.name for p in missing]


def lacks(store: Store, spec: StudySpec, resolved: Resolved) -> bool:
    """Whether anything is left to compute, or to mend."""
    return bool(
        store.unreadable()
        or missing_cells(store, spec, resolved)
        or missing_seeds(store, spec)
        or missing_packets(store, spec)
        or missing_blocks(store, spec)
        or missing_protocols(store, spec)
        or missing_tasks(store, spec)
        or not store.has("baselines", "baseline")
    )
