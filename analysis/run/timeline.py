"""How a study ran, from its store alone: when which process computed which cell, pauses, busy fractions, and pace.

Legend of times: a cell ends when its row is written (``created``) and begins its wall time (``seconds``) earlier, both
by the clock of its own host. A *pause* is a time in which no process computed a cell, longer than ``PAUSE_CELLS``
median cells and than ``SHORTEST_PAUSE``: the run was stopped, or a model was loaded, or it scored. A *session* is what
lies between two pauses. *Running time* is the time in sessions.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from analysis.names import chosen, label
from analysis.run.applied import GRIDS
from analysis.study import Study

#: A pause is longer than so many median cells …
PAUSE_CELLS = 10
#: … and than so many seconds.
SHORTEST_PAUSE = 5.0
#: Cells that the pace is taken from: enough to be steady, few enough to follow a change.
LATEST = 200
#: Fewer cells have no pace.
FEWEST = 3

_TIME = pl.Datetime("us", "UTC")
SESSIONS: dict[str, Any] = {
    "session": pl.Int64, "start": _TIME, "end": _TIME, "seconds": pl.Float64, "cells": pl.Int64, "tokens": pl.Int64,
    "processes": pl.Int64, "at_once": pl.Int64, "busy_seconds": pl.Float64, "busy": pl.Float64,
}  # fmt: skip
GAPS: dict[str, Any] = {"start": _TIME, "end": _TIME, "seconds": pl.Float64, "restarted": pl.Boolean}
WORKERS: dict[str, Any] = {
    "host": pl.String, "process": pl.Int64, "worker": pl.String, "cells": pl.Int64, "tokens": pl.Int64, "first": _TIME,
    "last": _TIME, "seconds": pl.Float64, "busy_seconds": pl.Float64, "busy": pl.Float64,
    "cells_per_second": pl.Float64, "tokens_per_second": pl.Float64,
}  # fmt: skip
OCCUPANCY: dict[str, Any] = {
    "host": pl.String, "process": pl.Int64, "worker": pl.String, "at": pl.Float64, "until": pl.Float64,
    "busy": pl.Float64, "cells": pl.Int64,
}  # fmt: skip


def lasting(seconds: float) -> str:
    """A duration in the unit that reads best.

    >>> lasting(4.25), lasting(600), lasting(66_000), lasting(400_000)
    ('4.2 s', '10 min', '18.3 h', '4.6 days')
    """
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        # Two days are days, two minutes are minutes; what is less stays in the smaller unit.
        if seconds >= 2 * size:
            return f"{seconds / size:.1f}".removesuffix(".0") + f" {unit}"
    return f"{seconds:.1f}".removesuffix(".0") + " s"


def timeline(study: Study) -> pl.DataFrame:
    """When and where each cell was computed.

    Returns
    -------
    pl.DataFrame
        One row a cell and one for the intact model (``intact``), by time: ``cell_id, what`` (the damage in words),
        ``intact, status, seconds, tokens`` (scored in all windows; 0 of a cell that changed no weight, and so took no
        pass), ``worker`` (host/pid), ``host, process`` (its
        number on that host, from 1, by its first cell), ``start = created − seconds``, ``end = created`` (UTC),
        ``session`` (from 1), and ``at, until``: start and end in seconds of running time since the first cell began,
        pauses cut out. Null is what isn't known: times of cells that killed their process and so have no ``seconds``,
        processes in studies of older versions, and the session of the intact model, which counts in no figure of
        time: models are scored between it and the first cell, and scoring leaves no times.

    Example
    -------
    >>> timeline(load("results/quickstart")).filter(pl.col("status") == "error")  # doctest: +SKIP
    """
    cells = _timed(study.cells.with_columns(pl.Series("what", _words(study), dtype=pl.String), intact=pl.lit(False)))
    intact = _timed(study.baselines.with_columns(cell_id=pl.lit(None, pl.String), what=pl.lit("intact model"),
                                                 intact=pl.lit(True)))  # fmt: skip
    cells = _in_sessions(cells.sort("start", "end", "cell_id", nulls_last=True))
    rows = pl.concat([cells, intact], how="diagonal").join(
        _processes(cells), on="worker", how="left", maintain_order="left"
    )
    return rows.sort("start", nulls_last=True, maintain_order=True).select(
        "cell_id", "what", "intact", "status", "seconds", "tokens", "worker",
        pl.col("worker").str.replace("/[^/]*$", "").alias("host"), "process", "start", "end", "session", "at", "until",
    )  # fmt: skip


def _words(study: Study) -> list[str]:
    """What each cell did: ``super sign_flip-1, k=50, seed 3``."""
    names = [
        "metric",
        "mode",
        "k",
        "seed",
        "group",
        "perturbation",
        "strength",
        "variant",
        "part",
        "part_value",
        "control_draw",
    ]
    found = []
    for row in study.cells.select(names).iter_rows(named=True):
        words = f"{row['group']} {label(row)}, {chosen(study, row)}, seed {row['seed']}"
        words += f", set {row['control_draw'] + 1}" if row["control_draw"] else ""
        found.append(words if row["part"] is None else f"{words}, {row['part']} {row['part_value']:g}")
    return found


def _timed(rows: pl.DataFrame) -> pl.DataFrame:
    length = pl.duration(microseconds=(pl.col("seconds") * 1e6).round().cast(pl.Int64))
    passed = (pl.col("n_changed") != 0).fill_null(True) if "n_changed" in rows.columns else pl.lit(True)
    tokens = pl.when(passed).then(pl.col("tokens").list.sum()).fill_null(0).alias("tokens")
    return rows.select(
        "cell_id", "what", "intact", "status", "seconds", "worker", tokens,
        (pl.col("created") - length).alias("start"),
        pl.col("created").alias("end"),
    )  # fmt: skip


def _in_sessions(cells: pl.DataFrame) -> pl.DataFrame:
    """Session, and place in running time, of cells in the order of their starts."""
    first, known = pl.col("start").min(), pl.col("start").is_not_null()
    began, ended = (((pl.col(c) - first).dt.total_microseconds() / 1e6).alias(f"_{c}") for c in ("start", "end"))
    cells = cells.with_columns(pl.when(known).then(began), pl.when(known).then(ended).alias("_end"))
    idle = pl.col("_start") - pl.col("_end").cum_max().shift(1)
    cut = pl.when(idle > _threshold(cells)).then(idle).otherwise(0.0)
    cells = cells.with_columns(
        pl.when(known).then(1 + (cut > 0).cum_sum()).cast(pl.Int64).alias("session"), cut.cum_sum().alias("_cut")
    )
    return cells.with_columns(at=pl.col("_start") - pl.col("_cut"), until=pl.col("_end") - pl.col("_cut"))


def _threshold(cells: pl.DataFrame) -> float:
    """The shortest idle time that is a pause, seconds."""
    median = cells.filter(pl.col("start").is_not_null())["seconds"].median()
    return max(SHORTEST_PAUSE, PAUSE_CELLS * float(median or 0.0))  # type: ignore[arg-type]


def _processes(cells: pl.DataFrame) -> pl.DataFrame:
    """Each process' number on its host, by its first cell."""
    first = cells.drop_nulls(["worker", "start"]).group_by("worker").agg(pl.col("start").min())
    host = pl.col("worker").str.replace("/[^/]*$", "")
    return first.sort("start", "worker").select("worker", pl.int_range(1, pl.len() + 1).over(host).alias("process"))


@dataclass(frozen=True)
class Utilisation:
    """How well a study's processes were used. What isn't known is None: all of it of no cells.

    Attributes
    ----------
    cells, untimed
        Cells that have times, and those that have none: they killed their process.
    computing
        Σ ``seconds`` of the cells: what one process would have taken, seconds.
    running
        Σ length of the sessions, seconds.
    processes, at_once
        Processes that computed a cell, and the most of them at once in any session.
    busy
        Σ time in which a process computed ÷ Σ over sessions of (its most processes at once × its length). So what a
        session's processes wait for each other at its ends, or lose by a restart, is idle time; what lies between
        sessions is not. Sessions with cells of unknown processes are left out.
    cells_per_second, tokens_per_second
        ÷ ``running``; None where that is 0.
    first, last
        When the first cell began and the last one ended.
    pause
        The shortest time without any cell that is a pause, seconds: max(``SHORTEST_PAUSE``, ``PAUSE_CELLS`` · median
        cell).
    workers
        One row a process: its ``cells, tokens, first, last``, ``seconds`` (Σ over sessions from its first cell's start
        to its last one's end), ``busy_seconds`` (of these, with a cell; where cells overlap, once), ``busy`` (their
        ratio), ``cells_per_second, tokens_per_second`` (÷ ``seconds``).
    sessions
        One row a session: ``start, end, seconds, cells, tokens, processes, at_once, busy_seconds, busy``.
    gaps
        One row a pause: ``start, end, seconds``, and ``restarted``: whether no process computed before and after it.
    hosts
        One row a host: ``host, processes, cells``. A process that was killed and started again counts twice.
    """

    cells: int
    untimed: int
    computing: float
    running: float
    processes: int | None
    at_once: int | None
    busy: float | None
    cells_per_second: float | None
    tokens_per_second: float | None
    first: datetime | None
    last: datetime | None
    pause: float
    workers: pl.DataFrame
    sessions: pl.DataFrame
    gaps: pl.DataFrame
    hosts: pl.DataFrame


def utilisation(study: Study) -> Utilisation:
    """Busy fractions and speeds by process and over all, and when none computed.

    Example
    -------
    >>> utilisation(load("results/quickstart")).busy  # doctest: +SKIP
    0.97
    """
    rows = timeline(study).filter(~pl.col("intact"))
    cells = rows.filter(pl.col("start").is_not_null())
    spans = _spans(cells)
    sessions, workers = _sessions(cells, spans), _workers(spans)
    running, known = float(sessions["seconds"].sum()), sessions.drop_nulls("busy")
    capacity = float((known["at_once"] * known["seconds"]).sum())
    hosts = workers.group_by("host", maintain_order=True).agg(processes=pl.len().cast(pl.Int64), cells=pl.sum("cells"))
    return Utilisation(
        cells=cells.height, untimed=rows.height - cells.height, computing=float(cells["seconds"].sum()),
        running=running, processes=workers.height or None, at_once=sessions["at_once"].max(),  # type: ignore[arg-type]
        busy=_ratio(float(known["busy_seconds"].sum()), capacity), cells_per_second=_ratio(cells.height, running),
        tokens_per_second=_ratio(int(cells["tokens"].sum()), running),
        first=cells["start"].min(), last=cells["end"].max(),  # type: ignore[arg-type]
        pause=_threshold(cells), workers=workers, sessions=sessions, gaps=_gaps(cells, sessions), hosts=hosts,
    )  # fmt: skip


def _ratio(amount: float, per: float) -> float | None:
    return amount / per if per > 0 else None


def _spans(cells: pl.DataFrame) -> pl.DataFrame:
    """One row a session and process: from its first cell's start to its last one's end, and the time it computed."""
    key = ["session", "worker"]
    # In the order of starts, a cell adds what reaches beyond all that began before it.
    begun = pl.max_horizontal("at", pl.col("until").cum_max().shift(1).over(key))
    return (
        cells.drop_nulls("worker").sort("at", maintain_order=True)
        .with_columns((pl.col("until") - begun).clip(0).alias("busy_seconds"))
        .group_by(*key, "host", "process", maintain_order=True)
        .agg(pl.min("start", "at"), pl.max("end", "until"), pl.sum("tokens", "busy_seconds"),
             cells=pl.len().cast(pl.Int64))
        .with_columns(seconds=pl.col("until") - pl.col("at"))
    )  # fmt: skip


def _workers(spans: pl.DataFrame) -> pl.DataFrame:
    per = pl.when(pl.col("seconds") > 0).then(pl.col("seconds"))
    return (
        spans.group_by("host", "process", "worker")
        .agg(pl.min("start").alias("first"), pl.max("end").alias("last"),
             pl.sum("cells", "tokens", "seconds", "busy_seconds"))
        .sort("host", "process")
        .with_columns(busy=pl.col("busy_seconds") / per, cells_per_second=pl.col("cells") / per,
                      tokens_per_second=pl.col("tokens") / per)
        .select(WORKERS.keys()).cast(pl.Schema(WORKERS))
    )  # fmt: skip


def _at_once(starts: list[float], ends: list[float]) -> int:
    """The most intervals that overlap; one that begins where another ends doesn't."""
    steps = sorted([(at, 1) for at in starts] + [(at, -1) for at in ends])
    return max(int(np.cumsum([step for _, step in steps]).max()), 1)


def _sessions(cells: pl.DataFrame, spans: pl.DataFrame) -> pl.DataFrame:
    rows: list[dict[str, Any]] = []
    for (session,), mine in cells.group_by(["session"], maintain_order=True):
        alive = spans.filter(pl.col("session") == session)
        length = float(mine.select(pl.max("until") - pl.min("at")).item())
        row = {"session": session, "start": mine["start"].min(), "end": mine["end"].max(), "seconds": length,
               "cells": mine.height, "tokens": mine["tokens"].sum()}  # fmt: skip
        if not mine["worker"].has_nulls():
            at_once, computed = (
                _at_once(alive["at"].to_list(), alive["until"].to_list()),
                float(alive["busy_seconds"].sum()),
            )
            row |= {"processes": alive.height, "at_once": at_once, "busy_seconds": computed,
                    "busy": _ratio(computed, at_once * length)}  # fmt: skip
        rows.append(row)
    return pl.DataFrame(rows, schema=SESSIONS)


def _gaps(cells: pl.DataFrame, sessions: pl.DataFrame) -> pl.DataFrame:
    bounds, rows = sessions.to_dicts(), []
    last_seen = cells.group_by("worker").agg(pl.min("session").alias("first"), pl.max("session").alias("last"))
    for before, after in pairwise(bounds):
        stayed = last_seen.filter(pl.col("first") <= before["session"], pl.col("last") >= after["session"])
        known = before["processes"] is not None and after["processes"] is not None
        rows.append({
            "start": before["end"], "end": after["start"], "restarted": stayed.is_empty() if known else None,
            "seconds": (after["start"] - before["end"]).total_seconds(),
        })  # fmt: skip
    return pl.DataFrame(rows, schema=GAPS)


def occupancy(study: Study, bins: int) -> pl.DataFrame:
    """Busy fraction of each process in about ``bins`` equal parts of the running time, none of which spans a pause.

    Of a part [``at``, ``until``] of running time, seconds, ``busy`` is the time in which the process computed ÷ its
    length, and ``cells`` are those that ended in it. Parts are cut to the process's life, from its first to its last
    cell of the session: before and after it is not idle.
    """
    cells = timeline(study).drop_nulls(["session", "worker"])
    rows: list[dict[str, Any]] = []
    total = float(utilisation(study).sessions["seconds"].sum())
    for (_,), session in cells.group_by(["session"], maintain_order=True):
        low, high = float(session["at"].min()), float(session["until"].max())  # type: ignore[arg-type]
        edges = np.linspace(low, high, max(1, round(bins * (high - low) / total) if total else 1) + 1)
        for (host, process, worker), mine in session.group_by(["host", "process", "worker"], maintain_order=True):
            begin, end = mine["at"].to_numpy(), mine["until"].to_numpy()
            lived = np.clip(edges, begin.min(), end.max())
            length, busy, ended = np.diff(lived), np.diff(_computed(lived, begin, end)), np.histogram(end, edges)[0]
            rows += [
                {"host": host, "process": process, "worker": worker, "at": lived[i], "until": lived[i + 1],
                 "busy": min(busy[i] / length[i], 1.0), "cells": ended[i]}
                for i in np.flatnonzero(length > 1e-9 * (high - low))
            ]  # fmt: skip
    return pl.DataFrame(rows, schema=OCCUPANCY)


def _computed(times: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """For how long a process had computed by each of these times: the length of the union of its cells until then."""
    order = np.argsort(begin, kind="stable")
    begin, reached = begin[order], np.maximum.accumulate(end[order])
    fresh = np.maximum(begin, np.concatenate([[-np.inf], reached[:-1]]))
    fresh = np.minimum(fresh, reached)  # within what was computed already: nothing
    done = np.cumsum(reached - fresh)
    knots = np.column_stack([fresh, reached]).ravel()
    return np.interp(times, knots, np.column_stack([done - (reached - fresh), done]).ravel())


def pace(study: Study, now: datetime | None = None) -> dict[str, float | None]:
    """How fast a study goes that is running elsewhere, and how long the rest will take at that.

    Over the ``LATEST`` last n cells of the latest session ``cells_per_second = (n − 1)/(t_last − t_first)``, where t is
    when a row was written (three significant digits); ``seconds_since_row`` is the age of the latest row, of a cell, a
    compression, a tuning, a fault, an attack, a model of a population or the intact one; ``seconds_left = missing
    cells/cells_per_second``. None is what can't be said: a speed of fewer than ``FEWEST`` cells, or of no time between
    them.
    """
    cells = timeline(study)
    latest = cells.drop_nulls("session").filter(pl.col("session") == pl.col("session").max()).sort("end").tail(LATEST)
    speed, age = None, None
    if latest.height >= FEWEST:
        between = (latest["end"][-1] - latest["end"][0]).total_seconds()
        speed = _ratio(latest.height - 1, between)
    stamps = [cells["end"].max(), *(study.table(name)["created"].max() for name in GRIDS)]
    if written := max((each for each in stamps if isinstance(each, datetime)), default=None):
        age = round(max(((now or datetime.now(UTC)) - written).total_seconds(), 0.0), 1)
    missing = max(study.expected_cells - study.cells.height, 0)
    return {
        "cells_per_second": None if speed is None else float(f"{speed:.3g}"),
        "seconds_since_row": age,
        "seconds_left": None if speed is None else round(missing / speed, 1),
    }
