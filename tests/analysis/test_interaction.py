"""Sets against the sum of their members, with planted damages."""

import itertools

import numpy as np
import polars as pl
import pytest

import analysis
from analysis.damage.interaction import INTERACTION, interaction
from analysis.report.figures import sets as figures
from analysis.report.sections.sets import together
from tests.analysis.conftest import with_tables
from tests.analysis.synthetic import save_table

TOKENS, WINDOWS, SEEDS = 100, 8, (1, 2, 3)
BASE = np.linspace(280.0, 320.0, WINDOWS)
_number = itertools.count()


def cell(delta, base=BASE, **columns):
    """A row whose NLL exceeds the baseline's by ``delta`` nats per token in each window; None: it diverged."""
    lost = delta is None
    nll = np.full(len(base), np.nan) if lost else base[: len(np.atleast_1d(delta))] + TOKENS * np.asarray(delta)
    return {
        "cell_id": f"c{next(_number)}", "study": "rows", "model": "m", "dtype": "fp32", "data": "d",
        "metric": "grad_x_weight", "mode": "global", "k": 3, "seed": 1, "group": "super", "part": None,
        "part_value": None, "repeat": 0, "perturbation": "zero", "strength": None, "variant": None, "n_weights": 3,
        "status": "diverged" if lost else "ok", "tokens": [TOKENS] * len(nll), "hits": [40] * len(nll),
        "nll": nll.tolist(),
    } | columns  # fmt: skip


def study_of(directory, cells, base=BASE, rankings=None, score_stats=None, **spec):
    """A study that holds just these cells, and a baseline."""
    with_tables(directory, rankings=rankings, score_stats=score_stats, **spec)
    intact = {"study": "rows", "model": "m", "status": "ok", "tokens": [TOKENS] * len(base), "hits": [40] * len(base)}
    save_table(directory, "baselines", [intact | {"nll": base.tolist()}])
    if cells:
        save_table(directory, "cells", cells)
    return analysis.load(directory)


def noise(rng, size=0.01, windows=WINDOWS):
    return size * rng.standard_normal(windows)


def planted(joint, singles, *, seeds=SEEDS, size=0.01, **columns):
    """Cells of a set and of its members, their ΔNLL with noise in each window."""
    rng, rows = np.random.default_rng(0), []
    columns = {"k": len(singles), "n_weights": len(singles)} | columns
    for seed in seeds:
        rows.append(cell(joint + noise(rng, size), seed=seed, **columns))
        for i, alone in enumerate(singles):
            only = columns | {"part": "only", "part_value": i + 1.0, "n_weights": 1, "seed": seed}
            rows.append(cell(alone + noise(rng, size), **only))
    return rows


def the(table, **where):
    rows = table.filter(pl.lit(True), *(pl.col(name).eq_missing(pl.lit(value)) for name, value in where.items()))
    assert len(rows) == 1
    return rows.row(0, named=True)


def test_weights_that_are_inert_alone_and_break_it_together(tmp_path):
    row = the(interaction(study_of(tmp_path / "s", planted(5.0, [0.0] * 6, metric="listed", group="listed"))))
    assert (row["members"], row["seeds"], row["diverged"], row["windows"]) == (6, 3, 0, WINDOWS)
    assert row["joint"] == pytest.approx(5, abs=0.02)
    assert row["singles"] == pytest.approx(0, abs=0.03)
    assert row["low"] < 5 < row["high"]
    assert row["superadditive"]
    assert not row["subadditive"]
    assert row["p"] < 1e-3
    assert row["p_holm"] == row["p"]  # a family of one


def test_damage_that_adds_up_is_no_interaction(tmp_path):
    row = the(interaction(study_of(tmp_path / "s", planted(1.75, [1.0, 0.5, 0.25]))))
    assert row["interaction"] == pytest.approx(0, abs=0.02)
    assert row["low"] < 0 < row["high"]
    assert not row["superadditive"]
    assert not row["subadditive"]
    assert (row["largest_member"], row["largest_single"]) == (1, pytest.approx(1, abs=0.01))
    assert row["by_member"] == pytest.approx([1, 0.5, 0.25], abs=0.01)


def test_members_that_are_each_fatal_are_subadditive(tmp_path):
    row = the(interaction(study_of(tmp_path / "s", planted(8.0, [7.0, 7.5, 6.0]))))
    assert row["subadditive"]
    assert row["interaction"] == pytest.approx(8 - 20.5, abs=0.03)


def test_a_smaller_set_is_compared_with_the_first_members(tmp_path):
    rows = planted(1.75, [1.0, 0.5, 0.25], size=0.0)
    rows += [cell(np.full(WINDOWS, 3.0), seed=s, k=2, n_weights=2) for s in SEEDS]
    table = interaction(study_of(tmp_path / "s", rows))
    assert the(table, k=2)["singles"] == pytest.approx(1.5)
    assert the(table, k=2)["interaction"] == pytest.approx(1.5)
    assert the(table, k=3)["interaction"] == pytest.approx(0, abs=1e-9)


def test_pairs_are_within_a_window_and_a_seed(tmp_path):
    # Windows and seeds differ by far more than the interaction, in the set and in its members alike.
    rows = []
    for seed in SEEDS:
        level = np.linspace(1, 20, WINDOWS) * seed
        rows += [cell(2 * level + 0.1 + 0.001 * np.cos(np.arange(WINDOWS)), seed=seed, k=2, n_weights=2)]
        rows += [cell(level, seed=seed, k=2, n_weights=1, part="only", part_value=i) for i in (1.0, 2.0)]
    row = the(interaction(study_of(tmp_path / "s", rows)))
    assert row["superadditive"]
    assert row["high"] - row["low"] < 0.01


def test_seeds_without_a_sum_are_left_out_and_counted(tmp_path):
    rows = planted(3.0, [1.0, 0.5])
    rows[4] |= cell(None) | {name: rows[4][name] for name in ("seed", "k", "part", "part_value")}  # seed 2, member 1
    row = the(interaction(study_of(tmp_path / "s", rows)))
    assert (row["seeds"], row["left_out"], row["diverged"]) == (2, 1, 1)
    assert row["joint"] == pytest.approx(3, abs=0.02)
    missing = [r for r in planted(3.0, [1.0, 0.5]) if r["part_value"] != 2]
    row = the(interaction(study_of(tmp_path / "missing", missing)))
    assert (row["seeds"], row["left_out"], row["interaction"], row["p"]) == (0, 3, None, None)


def test_a_cell_that_stopped_early_is_compared_over_the_windows_that_it_has(tmp_path):
    rows = [cell(np.arange(5.0), k=2, n_weights=2)]
    rows += [cell(np.full(WINDOWS, 0.5), k=2, part="only", part_value=i) for i in (1.0, 2.0)]
    row = the(interaction(study_of(tmp_path / "s", rows)))
    assert (row["windows"], row["joint"], row["singles"]) == (5, pytest.approx(2), pytest.approx(1))


def test_groups_and_kinds_stay_apart_and_holm_counts_them(tmp_path):
    rows = planted(2.0, [0.1, 0.1]) + planted(0.2, [0.1, 0.1], group="random_k")
    rows += planted(4.0, [0.1, 0.1], perturbation="scale", strength=0.5)
    table = interaction(study_of(tmp_path / "s", rows))
    assert len(table) == 3
    assert the(table, group="random_k")["interaction"] == pytest.approx(0, abs=0.02)
    assert the(table, perturbation="scale")["interaction"] == pytest.approx(3.8, abs=0.03)
    smallest = table.sort("p").row(0, named=True)
    assert smallest["p_holm"] == pytest.approx(3 * smallest["p"])


def test_the_section_says_what_was_planted(tmp_path):
    rows = planted(5.0, [0.0] * 6, metric="listed", mode="theirs", group="listed") + planted(2.0, [1.0, 1.0])
    study = study_of(tmp_path / "s", rows)
    section = together(study)
    assert "zero of k=2 costs +2.00 nats per token at once, not surely different from the +2.00" in section.answer
    assert "Of 2 sets and kinds of damage, 1 cost more together, 0 less, and 1 can't be told." in section.answer
    assert [row[0] for row in section.tables[0].rows] == ["k=2", "list theirs"]
    assert figures.together(study).to_dict()["width"] == "container"
    lost = study_of(tmp_path / "lost", [cell(None), cell(None, part="only", part_value=1.0)])
    assert "Nothing can be said" in together(lost).answer
    assert figures.together(lost) is None


def test_without_single_members_there_are_no_rows_but_all_columns(tmp_path):
    for name, cells in (("none", []), ("whole", [cell(np.ones(WINDOWS))])):
        table = interaction(study_of(tmp_path / name, cells))
        assert table.is_empty()
        assert dict(table.schema) == INTERACTION
        assert together(analysis.load(tmp_path / name)) is None
