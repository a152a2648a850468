"""How a study ran, from planted schedules: sessions, pauses, busy fractions, pace, the figure and its section."""

import dataclasses
import importlib
import itertools
from datetime import UTC, datetime, timedelta

import pytest
import vl_convert

import analysis
from analysis.report.figures import charts
from analysis.report.sections import answered
from analysis.run.timeline import lasting, occupancy, pace, timeline, utilisation
from esa_ray.schema import STATUSES
from tests.analysis.conftest import with_tables, write_study
from tests.analysis.synthetic import save_table

figures = importlib.import_module("analysis.report.figures.timeline")
BEGAN = datetime(2026, 1, 5, 8, tzinfo=UTC)
DAY = 86_400
_number = itertools.count()


def after(seconds):
    return BEGAN + timedelta(seconds=seconds)


def cell(worker, begin, seconds, **columns):
    """A cell that began so many seconds after ``BEGAN`` and took ``seconds``; it scored 800 tokens.

    Ids, by which tables are sorted, don't follow the time.
    """
    return {
        "cell_id": f"{next(_number) * 7919 % 100_003:05}", "study": "rows", "metric": "grad_x_weight",
        "mode": "global", "k": 10, "seed": 1, "group": "super", "perturbation": "zero", "repeat": 0, "status": "ok",
        "tokens": [100] * 8, "nll": [300.0] * 8, "hits": [40] * 8, "n_weights": 10, "n_changed": 10, "delta_norm": 1.0,
        "seconds": float(seconds), "worker": worker, "created": after(begin + seconds),
    } | columns  # fmt: skip


def study_of(directory, cells, *, expected=None, baseline=None):
    study = with_tables(directory)
    if cells:
        save_table(directory, "cells", cells)
    if baseline:
        save_table(directory, "baselines", [baseline])
    return dataclasses.replace(study, record=study.record | ({"cells": expected} if expected else {}))


#: Two hosts. On a, process 900 idles from 20 to 30, and 20 is killed at 8 and comes back as 77 at 14. A day later two
#: processes go on for 25 s; of them b/5 writes two cells that overlap from 5 to 10.
SCHEDULE = [
    ("a/900", 0, 10), ("a/900", 10, 10), ("a/900", 30, 10), ("a/20", 1, 7), ("a/77", 14, 6), ("a/77", 20, 10),
    ("b/5", DAY + 40, 10), ("b/5", DAY + 45, 10), ("b/5", DAY + 60, 5), ("a/3", DAY + 40, 20),
]  # fmt: skip
#: A cell that killed its process: the driver writes its row when all else has ended.
BURIED = cell(None, 0, 0) | {
    "status": "error",
    "tokens": None,
    "nll": None,
    "seconds": None,
    "created": after(DAY + 5000),
}
INTACT = cell("a/900", -1000, 50) | {"cell_id": None}


@pytest.fixture
def planted(tmp_path):
    rows = [cell(*what) for what in SCHEDULE]
    return study_of(tmp_path / "planted", [*rows[::-1], BURIED], expected=30, baseline=INTACT)


def test_busy_fractions_are_those_computed_by_hand(planted):
    found = utilisation(planted)
    assert (found.cells, found.untimed, found.processes, found.at_once) == (10, 1, 5, 2)
    assert (found.pause, found.computing, found.running) == (100.0, 98.0, 65.0)
    assert (found.first, found.last) == (BEGAN, after(DAY + 65))
    # Session 1: 30 + 7 + 16 of 2 · 40 s, session 2: 20 + 20 of 2 · 25 s.
    assert found.sessions["busy_seconds"].to_list() == pytest.approx([53, 40])
    assert found.sessions["busy"].to_list() == pytest.approx([53 / 80, 40 / 50])
    assert found.busy == pytest.approx(93 / 130)
    assert found.cells_per_second == pytest.approx(10 / 65)
    assert found.tokens_per_second == pytest.approx(8000 / 65)


def test_a_process_is_judged_by_its_own_life(planted):
    rows = utilisation(planted).workers.to_dicts()
    assert [(w["host"], w["process"], w["worker"]) for w in rows] == [
        ("a", 1, "a/900"), ("a", 2, "a/20"), ("a", 3, "a/77"), ("a", 4, "a/3"), ("b", 1, "b/5"),
    ]  # fmt: skip
    assert [w["cells"] for w in rows] == [3, 1, 2, 1, 3]
    assert [w["seconds"] for w in rows] == pytest.approx([40, 7, 16, 20, 25])
    assert [w["busy"] for w in rows] == pytest.approx([30 / 40, 1, 1, 1, 20 / 25])
    assert rows[4]["cells_per_second"] == pytest.approx(3 / 25)
    assert rows[0]["tokens_per_second"] == pytest.approx(2400 / 40)
    assert (rows[4]["first"], rows[4]["last"]) == (after(DAY + 40), after(DAY + 65))


def test_a_restarted_process_counts_again_on_its_host(planted):
    hosts = utilisation(planted).hosts
    assert hosts.sort("host").rows() == [("a", 4, 7), ("b", 1, 3)]
    assert utilisation(planted).sessions["processes"].to_list() == [3, 2]


def test_an_interruption_is_a_pause_and_no_idle_time(planted):
    gap = utilisation(planted).gaps.row(0, named=True)
    assert utilisation(planted).gaps.height == 1
    assert gap == {"start": after(40), "end": after(DAY + 40), "seconds": float(DAY), "restarted": True}
    assert utilisation(planted).sessions["seconds"].to_list() == pytest.approx([40, 25])


def test_the_timeline_holds_every_cell_in_running_time(planted):
    rows = timeline(planted)
    assert rows.height == 12
    known = rows.drop_nulls("session").sort("worker", "start")
    at = dict(known.group_by("worker").agg("at").iter_rows())
    assert at["a/900"] == pytest.approx([0, 10, 30])
    assert at["b/5"] == pytest.approx([40, 45, 60])  # the day is cut out
    assert (known["until"] - known["at"]).to_list() == pytest.approx(known["seconds"].to_list())
    assert known.filter(worker="b/5")["start"].to_list()[0] == after(DAY + 40)
    assert set(known.filter(host="b")["session"]) == {2}
    assert known["tokens"].unique().to_list() == [800]
    assert known["what"][0] == "super zero, k=10, seed 1"
    intact = rows.filter("intact").row(0, named=True)
    assert (intact["what"], intact["start"], intact["session"]) == ("intact model", after(-1000), None)
    lost = rows.filter(status="error").row(0, named=True)
    assert (lost["start"], lost["session"], lost["tokens"], lost["end"]) == (None, None, 0, after(DAY + 5000))


@pytest.mark.parametrize(
    ("length", "idle", "pauses"), [(1, 10, 0), (1, 10.01, 1), (0.01, 4.99, 0), (0.01, 5.01, 1), (60, 599, 0)]
)
def test_what_is_a_pause(tmp_path, length, idle, pauses):
    # Ten median cells, and five seconds, are not yet one; and while any process computes there is none.
    found = utilisation(study_of(tmp_path, [cell("a/1", 0, length), cell("a/1", length + idle, length)]))
    assert (found.gaps.height, found.sessions.height) == (pauses, pauses + 1)
    assert found.running == pytest.approx(2 * length + (0 if pauses else idle))


def test_no_pause_while_another_process_computes(tmp_path):
    # The long cell covers the hole between the short ones, though another began and ended after it began.
    rows = [cell("a/2", 0, 100), cell("a/1", 1, 1), *(cell("a/1", 90 + i, 1) for i in range(9))]
    found = utilisation(study_of(tmp_path, rows))
    assert found.gaps.is_empty()
    assert found.busy == pytest.approx(110 / 200)


def test_cells_that_overlap_count_once(tmp_path):
    rows = [cell("a/1", 0, 10), cell("a/1", 1, 1), cell("a/1", 5, 3), cell("a/1", 12, 8)]
    study = study_of(tmp_path, rows)
    assert utilisation(study).busy == pytest.approx(18 / 20)
    assert occupancy(study, 4)["busy"].to_list() == pytest.approx([1, 1, 3 / 5, 1])
    assert occupancy(study, 1)["busy"].to_list() == pytest.approx([18 / 20])


def test_a_process_that_begins_where_another_ends_is_not_beside_it(tmp_path):
    found = utilisation(study_of(tmp_path, [cell("a/1", 0, 1), cell("a/2", 1, 1)]))
    assert (found.at_once, found.busy, found.processes) == (1, 1, 2)


def test_a_process_that_lives_on_was_not_restarted(tmp_path):
    rows = [cell("a/1", 0, 1), cell("a/2", 0, 1), cell("a/1", 100, 1), cell("a/3", 300, 1), cell("a/2", 500, 1)]
    found = utilisation(study_of(tmp_path, rows))
    # a/1 stayed over the first pause, a/2 over all three.
    assert found.gaps["restarted"].to_list() == [False, False, False]
    rows = [cell("a/1", 0, 1), cell("a/2", 100, 1)]
    assert utilisation(study_of(tmp_path / "new", rows)).gaps["restarted"].to_list() == [True]


def test_the_pace_is_that_of_the_latest_session(planted):
    # Rows at 10, 15, 20 and 25 s of the second session: 3 intervals in 15 s; 30 − 11 cells are missing.
    assert pace(planted, after(DAY + 5030)) == {
        "cells_per_second": 0.2, "seconds_since_row": 30.0, "seconds_left": 95.0,
    }  # fmt: skip
    assert pace(planted, after(0))["seconds_since_row"] == 0  # another host's clock may be late
    assert pace(planted)["seconds_since_row"] > 0


def test_the_pace_is_that_of_the_last_200_cells(tmp_path):
    # Rows at 0.1, 0.2, … 10 s, at 15 s, and at 20, 21, … 218 s: the last 200 are 199 intervals in 203 s.
    rows = [cell("a/1", i / 10, 0.1) for i in range(100)] + [cell("a/1", 14, 1)]
    rows += [cell("a/1", 19 + i, 1) for i in range(199)]
    found = pace(study_of(tmp_path, rows, expected=310), after(218))
    assert found == {"cells_per_second": 0.98, "seconds_since_row": 0.0, "seconds_left": round(10 * 203 / 199, 1)}


def test_the_pace_goes_by_when_cells_ended(tmp_path):
    # They end at 11, 13, 22 and 30 s, the first to begin last.
    rows = [cell(f"a/{i}", i, length) for i, length in enumerate((30, 10, 20, 10))]
    assert pace(study_of(tmp_path, rows))["cells_per_second"] == pytest.approx(3 / 19, rel=2e-3)


def test_a_finished_study_has_nothing_left(tmp_path):
    found = pace(study_of(tmp_path, [cell("a/1", 3 * i, 3) for i in range(4)], expected=4), after(12))
    assert found == {"cells_per_second": 0.333, "seconds_since_row": 0.0, "seconds_left": 0.0}


@pytest.mark.parametrize(
    "rows",
    [
        [("a/1", 0, 1), ("a/1", 1, 1)],
        [("a/1", 0, 1), ("a/2", 0, 1), ("a/3", 0, 1)],
        [*(("a/1", i, 1) for i in range(9)), ("a/1", DAY, 1), ("a/1", DAY + 1, 1)],
    ],
    ids=["two", "at-one-time", "two-since-a-pause"],
)
def test_there_is_no_pace_to_speak_of(tmp_path, rows):
    cells = [cell(*row) for row in rows]
    last = max(row["created"] for row in cells)
    found = pace(study_of(tmp_path, cells, expected=50), last + timedelta(seconds=7))
    assert found == {"cells_per_second": None, "seconds_since_row": 7.0, "seconds_left": None}


def test_no_cells_have_neither_pace_nor_busy_fraction(tmp_path):
    study = study_of(tmp_path, [])
    assert set(pace(study).values()) == {None}
    found = utilisation(study)
    assert (found.cells, found.running, found.busy, found.first, found.processes) == (0, 0, None, None, None)
    assert found.sessions.is_empty()
    assert timeline(study).is_empty()
    assert occupancy(study, 10).is_empty()
    assert figures.timeline(study) is None
    begun = study_of(tmp_path / "begun", [], baseline=INTACT)
    assert pace(begun, after(0))["seconds_since_row"] == 950
    assert utilisation(begun).cells == 0


def test_one_cell_is_no_picture(tmp_path):
    study = study_of(tmp_path, [cell("a/1", 0, 4)])
    found = utilisation(study)
    assert (found.cells, found.busy, found.cells_per_second, found.at_once) == (1, 1, 0.25, 1)
    assert "timeline" not in charts(study)
    assert ran_of(study) is None


def test_cells_that_took_no_time_have_no_speed(tmp_path):
    study = study_of(tmp_path, [cell("a/1", 0, 0, status="empty"), cell("a/1", 0, 0, status="empty")])
    found = utilisation(study)
    assert (found.busy, found.cells_per_second, found.workers["busy"].to_list()) == (None, None, [None])
    assert figures.timeline(study) is None


def test_an_older_study_has_a_pace_and_sessions_but_no_processes(tmp_path):
    cells = [cell(*what) | {"worker": None} for what in SCHEDULE]
    study = study_of(tmp_path, cells, expected=30)
    found = utilisation(study)
    assert (found.busy, found.processes, found.at_once, found.running) == (None, None, None, 65)
    assert found.workers.is_empty()
    assert found.gaps["restarted"].to_list() == [None]
    assert pace(study)["cells_per_second"] == 0.2
    assert figures.timeline(study) is None
    assert ran_of(study) is None


def test_a_study_that_a_newer_version_went_on_with_is_judged_by_what_is_known(tmp_path):
    cells = [cell(worker if begin > DAY else None, begin, length) for worker, begin, length in SCHEDULE]
    found = utilisation(study_of(tmp_path, cells))
    assert found.sessions["busy"].to_list() == [None, pytest.approx(0.8)]
    assert found.busy == pytest.approx(0.8)
    assert found.processes == 2


def test_bins_hold_the_share_of_each_process_life_that_it_computed(tmp_path):
    # a/1 computes the first half of each of 8 s; a/2 lives from 2 to 5 s and computes from 2 to 4.5, twice over.
    rows = [cell("a/1", i, 0.5) for i in range(7)] + [cell("a/1", 7, 1)]
    rows += [cell("a/2", 2, 2), cell("a/2", 3, 1.5), cell("a/2", 4.75, 0.25)]
    found = occupancy(study_of(tmp_path, rows), 2)
    assert found.filter(worker="a/1").select("at", "until", "busy", "cells").rows() == [
        (0, 4, pytest.approx(0.5), 4), (4, 8, pytest.approx(2.5 / 4), 4),
    ]  # fmt: skip
    assert found.filter(worker="a/2").select("at", "until", "busy", "cells").rows() == [
        (2, 4, pytest.approx(1), 0), (4, 5, pytest.approx(0.75), 3),
    ]  # fmt: skip


def test_bins_do_not_span_a_pause(planted):
    found = occupancy(planted, 13)
    assert found.filter(host="b")["at"].min() == pytest.approx(40)
    assert found.filter(worker="a/900")["until"].max() == pytest.approx(40)
    # 8 bins of 5 s, in which process 900 idles for two.
    assert found.filter(worker="a/900")["busy"].to_list() == pytest.approx([1, 1, 1, 1, 0, 0, 1, 1])


def test_colours_and_shapes_tell_every_status():
    assert set(figures.LOOKS) == set(STATUSES)
    for looks in zip(*figures.LOOKS.values(), strict=True):
        assert len(set(looks)) == len(STATUSES)


def parts(chart):
    """Each layer's mark, data and encoding."""
    spec = chart.to_dict()
    for layer in spec["layer"]:
        # What all layers have in common stands above them.
        yield layer["mark"]["type"], layer.get("data", spec.get("data"))["values"], layer["encoding"]


def test_few_cells_are_bars_by_status(tmp_path):
    rows = [cell(*what) for what in SCHEDULE]
    rows[1] |= {"status": "diverged"}
    rows[8] |= {"status": "error", "tokens": None}
    chart = figures.timeline(study_of(tmp_path, rows))
    (bar, bars, looks), (point, points, marks), (rule, rules, _), (text, _, _) = parts(chart)
    assert (bar, point, rule, text) == ("bar", "point", "rule", "text")
    assert looks["x"]["title"] == "seconds of running, 1 pause cut out"
    assert looks["x"]["scale"]["domain"] == [0, 65]
    assert looks["y"]["sort"] == ["a · 1", "a · 2", "a · 3", "a · 4", "b · 1"]
    drawn = sorted((b["process"], b["at"], b["until"], b["status"]) for b in bars)
    assert drawn[:3] == [("a · 1", 0, 10, "ok"), ("a · 1", 10, 20, "diverged"), ("a · 1", 30, 40, "ok")]
    assert drawn[-1] == ("b · 1", 60, 65, "error")
    assert len(drawn) == 10
    assert looks["color"]["scale"]["domain"] == ["ok", "diverged", "error"]
    assert [(p["status"], p["at"], p["process"]) for p in points] == [
        ("diverged", 15, "a · 1"), ("error", 62.5, "b · 1"),
    ]  # fmt: skip
    assert len(set(marks["shape"]["scale"]["range"])) == 3
    assert rules == [{"at": 40, "seconds": DAY, "name": "24 h pause"}]
    assert chart.to_dict()["height"] == 5 * 18


def test_thousands_of_cells_are_a_strip_of_busy_fractions(tmp_path):
    # Process 1 computes half of each second, process 2 all of it, with one error.
    rows = [cell("host/1", i, 0.5) for i in range(1200)] + [cell("host/2", i, 1) for i in range(1200)]
    rows[1500] |= {"status": "error"}
    study = study_of(tmp_path, rows)
    chart = figures.timeline(study)
    (mark, bins, looks), (point, points, _) = parts(chart)
    assert (mark, point, looks["color"]["field"]) == ("bar", "point", "busy")
    assert looks["x"]["title"] == "minutes of running"
    assert len(bins) == 2 * 120
    by_process = {name: [b["busy"] for b in bins if b["process"] == name] for name in ("process 1", "process 2")}
    assert by_process["process 1"][:-1] == pytest.approx([0.5] * 119)
    assert by_process["process 2"] == pytest.approx([1] * 120)
    assert sum(b["cells"] for b in bins) == 2400
    assert [(p["process"], p["at"], p["status"]) for p in points] == [("process 2", 5.00833, "error")]
    assert bins[-1]["until"] == pytest.approx(20)
    assert len(chart.to_json(indent=None)) < 50_000


def test_many_processes_do_not_make_many_rectangles(tmp_path):
    rows = [cell(f"host/{p}", 10 * i, 10) for p in range(300) for i in range(7)]
    chart = figures.timeline(study_of(tmp_path, rows))
    ((mark, bins, _),) = parts(chart)
    assert (mark, len(bins)) == ("bar", 300 * (2000 // 300))
    assert chart.to_dict()["height"] <= 1200


def test_every_pause_is_marked_and_those_with_room_are_named(tmp_path):
    # Sessions of 100 s but for one of 1 s: its two pauses lie too close together for both to be named.
    begins, lengths = (0, 1000, 3000, 9000), (100, 1, 100, 100)
    rows = [cell("a/1", begin + i, 1) for begin, length in zip(begins, lengths, strict=True) for i in range(length)]
    chart = figures.timeline(study_of(tmp_path, rows))
    rules = next(data for mark, data, _ in parts(chart) if mark == "rule")
    assert [r["at"] for r in rules] == pytest.approx([100 / 60, 101 / 60, 201 / 60], abs=1e-4)
    assert [r["name"] for r in rules] == ["", "33.3 min pause", "98.3 min pause"]


def test_both_pictures_can_be_drawn(planted, tmp_path):
    dense = study_of(tmp_path / "dense", [cell("a/1", i, 1) for i in range(2001)])
    for study, words in ((planted, "24 h pause"), (dense, "busy fraction")):
        assert words in vl_convert.vegalite_to_svg(charts(study)["timeline"].to_json())


@pytest.mark.parametrize(
    ("hosts", "names"),
    [
        (["solo"], ["process 1"]),
        (["node-1", "node-2"], ["node-1 · 1", "node-2 · 1"]),
        (["ip-10-0-12-34.eu-west-1.compute", "b"], ["b · 1", "ip-10-0-12-34 · 1"]),
        (["cluster-of-the-department-7", "b"], ["b · 1", "…he-department-7 · 1"]),
        (["node.of.this.cluster", "node.of.another.one"], ["node.of.another.one · 1", "node.of.this.cluster · 1"]),
    ],
)  # fmt: skip
def test_rows_are_named_by_host_and_process(tmp_path, hosts, names):
    chart = figures.timeline(study_of(tmp_path, [cell(f"{h}/1", i, 1) for h in hosts for i in range(2)]))
    assert chart.to_dict()["layer"][0]["encoding"]["y"]["sort"] == names


def ran_of(study):
    return next((s for s in answered(study, set(charts(study))) if s.id == "ran"), None)


def test_the_section_says_what_was_computed_by_hand(planted):
    section = ran_of(planted)
    assert section.title == "How the study ran"
    assert section.answer == (
        "10 cells took 98 s of computing, in 65 s on 5 processes of 2 hosts, at most 2 at once, 71.5% busy: 0.154 "
        "cells and 123 tokens a second. It paused once, for 24 h; then only new processes went on, as when a run is "
        "stopped and started again. 1 cell without times is left out."
    )
    assert "more than 100 s in which no process computed" in section.caveat
    assert [f.chart for f in section.figures] == ["timeline"]
    sessions, processes = section.tables
    assert sessions.rows == [
        ["–", "2026-01-05 08:00:00", "40 s", "6", "3", "2", "66.2%"],
        ["24 h", "2026-01-06 08:00:40", "25 s", "4", "2", "2", "80.0%"],
    ]
    assert processes.rows[0] == [
        "a", "1", "3", "75.0%", "0.0750", "60.0", "2026-01-05 08:00:00", "2026-01-05 08:00:40",
    ]  # fmt: skip
    assert all(len(row) == len(table.columns) for table in section.tables for row in table.rows)


def test_the_section_of_an_even_run_is_short(tmp_path):
    section = ran_of(study_of(tmp_path, [cell("a/1", 2 * i, 2) for i in range(60)]))
    assert section.answer == (
        "60 cells took 2 min of computing, in 2 min on 1 process of one host, 100.0% busy: 0.500 cells and 400 tokens "
        "a second. There was no pause."
    )
    assert [t.title for t in section.tables] == ["Processes"]


def test_pauses_are_told_apart(tmp_path):
    lived_on = [cell("a/1", 1000 * i, 10) for i in range(2)]
    assert "for 16.5 min; then a process from before it went on." in ran_of(study_of(tmp_path / "1", lived_on)).answer
    thrice = [*lived_on, cell("a/2", 2000, 10), cell("a/2", 3000, 10)]
    assert "It paused 3 times, for 49.5 min in all; after 1 of these only new" in ran_of(
        study_of(tmp_path / "3", thrice)
    ).answer  # fmt: skip


def report_of(directory, workers):
    """The report of a study whose cells ran on these workers in turn, and the study."""
    write_study(directory, shift={"super": 2.0, "random_k": 0.01}, noise=0.001)
    rows = analysis.load(directory).cells.to_dicts()
    for file in (directory / "cells").iterdir():
        file.unlink()
    rows = [r | {"created": after(i + 1), "worker": workers[i % len(workers)]} for i, r in enumerate(rows)]
    save_table(directory, "cells", rows)
    study = analysis.load(directory)
    analysis.write_report(study)
    return (directory / "report.html").read_text(), study


def test_the_report_ends_with_how_it_ran(tmp_path):
    html, study = report_of(tmp_path, ["one/1", "<b>evil</b>/2"])
    assert html.index('id="limits"') < html.index('<h2 id="ran">How the study ran</h2>') < html.index('id="method"')
    assert 'id="chart-timeline"' in html
    assert '"timeline": {' in html
    assert ran_of(study).answer in html
    assert "<b>evil" not in html.replace("<\\/", "</").split("<script>")[0]
    assert "&lt;b&gt;evil&lt;/b&gt;" in html
    assert "</b>" not in html.split('"timeline": ')[1]


def test_the_report_of_an_older_study_says_nothing_of_it(tmp_path):
    html, study = report_of(tmp_path, [None])
    assert 'id="ran"' not in html
    assert "chart-timeline" not in html
    assert "timeline" not in charts(study)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.26, "0.3 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"), (172_800, "2 days")],
)
def test_durations_read_well(seconds, words):
    assert lasting(seconds) == words
