"""Section on how the study ran."""

from __future__ import annotations

from datetime import datetime

from analysis.report import figures, wording
from analysis.report.parts import Figure, Section, Table
from analysis.report.questions import question
from analysis.run.hardware import mixed_hardware
from analysis.run.timeline import Utilisation, lasting, utilisation
from analysis.study import Study


@question("run", figures.timeline)
def ran(study: Study) -> Section | None:
    """Which processes computed when, how busy they were, and when none computed."""
    found = utilisation(study)
    if found.workers.is_empty() or found.cells < 2:
        return None
    answer = " ".join(filter(None, [_work(found), _pauses(found), _untimed(found), mixed_words(study)]))
    return Section(
        "ran", "How the study ran", answer,
        "A cell ends when its row is written and begins its wall time earlier, by its host's clock. A pause is more "
        f"than {lasting(found.pause)} in which no process computed a cell: the run was stopped, or loaded a model, "
        "scored or measured single weights, none of which leaves times. Pauses count as no process's idle time. Busy: "
        "the time in which processes computed cells, out of what the most at once in each session between pauses "
        "could have; of a single process, out of the time from its first cell to its last. A process that was killed "
        "and started again is two.",
        [Figure("timeline", "When each process computed, and when none did; numbers in the tables below",
                "When each process computed, in running time: pauses are cut out and marked.")],
        [_sessions(found), _processes(found)],
    )  # fmt: skip


def _counted(n: int, one: str, many: str | None = None) -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def _work(found: Utilisation) -> str:
    processes = _counted(found.workers.height, "process", "processes")
    hosts = _counted(found.hosts.height, "host") if found.hosts.height > 1 else "one host"
    words = f"{_counted(found.cells, 'cell')} took {lasting(found.computing)} of computing, in {lasting(found.running)}"
    words += f" on {processes} of {hosts}"
    if found.at_once and found.at_once < found.workers.height:
        words += f", at most {found.at_once} at once"
    if found.busy is not None:
        words += f", {wording.percent(found.busy)} busy"
    speeds = [
        f"{wording.significant(speed)} {what}"
        for speed, what in ((found.cells_per_second, "cells"), (found.tokens_per_second, "tokens"))
        if speed
    ]
    return words + (f": {' and '.join(speeds)} a second." if speeds else ".")


def _pauses(found: Utilisation) -> str:
    gaps = found.gaps
    if gaps.is_empty():
        return "There was no pause."
    total, stopped = lasting(float(gaps["seconds"].sum())), int(gaps["restarted"].fill_null(False).sum())
    if gaps.height == 1:
        after = "only new processes went on, as when a run is stopped and started again"
        same = "" if gaps["restarted"][0] is None else "; then a process from before it went on"
        return f"It paused once, for {total}" + (f"; then {after}." if stopped else f"{same}.")
    words = f"It paused {gaps.height} times, for {total} in all"
    if stopped:
        words += f"; after {stopped} of these only new processes went on, as when a run is stopped and started again"
    return words + "."


def _untimed(found: Utilisation) -> str:
    if not found.untimed:
        return ""
    return f"{_counted(found.untimed, 'cell')} without times {'is' if found.untimed == 1 else 'are'} left out."


def elsewhere(study: Study) -> str:
    """:func:`mixed_words` for another section, where none on cells says them."""
    return mixed_words(study) if study.cells.is_empty() else ""


def mixed_words(study: Study) -> str:
    """What was computed where the intact model rounds otherwise; nothing where nothing was."""
    found = mixed_hardware(study)
    if found is None:
        return ""
    counts = (
        (found.cells, "cell"), (found.ablations, "ablation"), (found.compressions, "compression"),
        (found.faults, "fault packet"), (found.attacks, "attack"),
    )  # fmt: skip
    words = " and ".join(_counted(n, one) for n, one in counts if n)
    return (
        f"The hardware was mixed: {words} {'was' if sum(n for n, _ in counts) == 1 else 'were'} computed on "
        f"{' and '.join(found.cards)}, where the intact model's loss is not to the bit that of the baseline "
        f"(from {found.reference}), but up to {wording.significant(found.largest)} nats per token away. "
        "Each is compared with the intact loss of its own process."
    )


def _when(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def _sessions(found: Utilisation) -> Table:
    pauses = ["–", *(lasting(seconds) for seconds in found.gaps["seconds"])]
    rows = [
        [pause, _when(s["start"]), lasting(s["seconds"]), f"{s['cells']:,}", _or_dash(s["processes"]),
         _or_dash(s["at_once"]), wording.percent(s["busy"])]
        for pause, s in zip(pauses, found.sessions.iter_rows(named=True), strict=True)
    ]  # fmt: skip
    columns = ["pause before", "<began (UTC)", "lasted", "cells", "processes", "at once", "busy"]
    return Table(columns, rows if len(rows) > 1 else [], "Sessions")


def _or_dash(n: int | None) -> str:
    return "–" if n is None else str(n)


def _processes(found: Utilisation) -> Table:
    rows = [
        [w["host"], str(w["process"]), f"{w['cells']:,}", wording.percent(w["busy"]),
         wording.significant(w["cells_per_second"]), wording.significant(w["tokens_per_second"]),
         _when(w["first"]), _when(w["last"])]
        for w in found.workers.iter_rows(named=True)
    ]  # fmt: skip
    columns = [
        "<host",
        "process",
        "cells",
        "busy",
        "cells/s",
        "tokens/s",
        "<first cell began (UTC)",
        "<last ended (UTC)",
    ]
    return Table(columns, rows, "Processes")
