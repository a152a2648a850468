"""Effects, comparisons and agreement against numbers known beforehand."""

import json
import math

import numpy as np
import polars as pl
import pytest
from scipy import stats

import analysis
from analysis.damage import windows
from analysis.scores.distribution import gaussian_product_tail
from analysis.scores.stability import chance_jaccard
from analysis.statistics.crossed import crossed_p, signed_log
from esa_ray.storage.store import Store
from tests.analysis.cells import cell, study_of
from tests.analysis.conftest import TOKENS, stored_spec, write_study


def test_effects_are_the_planted_ones(tmp_path):
    study = analysis.load(write_study(tmp_path, shift={"super": 2.0, "random_k": 0.01}))
    base = study.baselines.row(0, named=True)
    ppl = math.exp(sum(base["nll"]) / (len(base["nll"]) * TOKENS))
    rows = {r["group"]: r for r in analysis.effects(study).iter_rows(named=True)}
    assert rows["super"]["delta_nll"] == pytest.approx(2.0)
    assert rows["super"]["delta_ppl"] == pytest.approx(ppl * (math.exp(2) - 1))
    assert rows["random_k"]["delta_nll"] == pytest.approx(0.01)
    assert rows["random_k"]["accuracy"] == pytest.approx(0.4)


def test_comparisons_pair_seeds_and_windows(made):
    table = analysis.comparisons(analysis.load(made))
    row = table.filter(pl.col("control") == "random_k").row(0, named=True)
    assert row["difference"] == pytest.approx(1.99, abs=0.002)
    assert row["p_windows"] == pytest.approx(2 / 2**8)  # all eight agree: only all-plus and all-minus are as extreme
    assert row["p"] < 1e-4  # three seeds, two degrees of freedom
    smaller, larger = sorted(table["p"])
    assert sorted(table["p_holm"]) == pytest.approx(sorted([min(2 * smaller, larger), larger]), rel=1e-9, abs=0)
    assert not row["sequential"]
    assert row["windows"] == 8
    assert row["seeds_agree"] == 3


def rewrite(directory, seed, group, **columns):
    """Store a cell again with other columns; returns the study."""
    row = analysis.load(directory).cells.filter((pl.col("seed") == seed) & (pl.col("group") == group)).to_dicts()[0]
    Store(directory).write("cells", row["cell_id"], [row | columns])
    return analysis.load(directory)


def test_cells_that_stopped_early_are_cut_to_the_windows_that_all_have(made):
    cell = analysis.load(made).cells.filter((pl.col("seed") == 2) & (pl.col("group") == "super")).to_dicts()[0]
    short = {name: cell[name][:6] for name in ("nll", "tokens", "hits")}
    study = rewrite(made, 2, "super", **short)
    base = np.array(study.baselines["nll"][0])
    cells = {(s, g): np.array(nll) for s, g, nll in study.cells.select("seed", "group", "nll").iter_rows()}
    row = analysis.comparisons(study).filter(pl.col("control") == "random_k").row(0, named=True)
    d = np.array([(cells[s, "super"][:6] - cells[s, "random_k"][:6]) / TOKENS for s in (1, 2, 3)])
    assert row["difference"] == pytest.approx(d.mean())
    assert (row["windows"], row["sequential"]) == (6, True)
    # Six signs agree: 2^6 B(6.5, 0.5)/π = 2^6 · (11·9·7·5·3·1)/(12·10·8·6·4·2)
    assert row["p"] == pytest.approx(1 / (64 * 10395 / 46080))
    assert row["p_windows"] == pytest.approx(2 / 2**6)
    effects = {r["group"]: r for r in analysis.effects(study).iter_rows(named=True)}
    assert (effects["super"]["windows"], effects["random_k"]["windows"]) == (6, 8)
    expected = np.mean([(cells[s, "super"][:6] - base[:6]).mean() for s in (1, 2, 3)]) / TOKENS
    assert effects["super"]["delta_nll"] == pytest.approx(expected)
    verdict = {v.id: v for v in analysis.verdicts(study)}["P3.7c"]
    assert verdict.status == "open"
    assert "can't reach" in verdict.evidence
    assert "stopped early" in analysis.write_report(study).read_text()


def test_divergence_and_loops_are_sums_over_sums_where_they_were_measured(made):
    effects = analysis.effects(analysis.load(made))
    assert effects["kl"].null_count() == effects["loop_rate"].null_count() == len(effects)
    assert "KL(intact" not in analysis.write_report(analysis.load(made)).read_text()
    for seed in (1, 2, 3):
        study = rewrite(made, seed, "super", kl=[10.0 * seed] * 8, loops=[1, 0, 0, int(seed == 3)])
    row = analysis.effects(study).filter(pl.col("group") == "super").row(0, named=True)
    assert row["kl"] == pytest.approx(20.0 / TOKENS)
    assert row["loop_rate"] == pytest.approx(4 / 12)
    html = analysis.write_report(study).read_text()
    assert "KL(intact" in html
    assert "33.3%" in html


def test_a_diverged_cell_is_counted_and_never_averaged_in(tmp_path):
    study = analysis.load(write_study(tmp_path, shift={"super": 2.0, "random_k": 0.0}, diverged={("super", 2)}))
    row = analysis.effects(study).filter(pl.col("group") == "super").row(0, named=True)
    assert (row["diverged"], row["seeds"]) == (1, 3)
    assert row["delta_nll"] == pytest.approx(2.0)
    assert len(row["by_seed"]) == 2
    test = analysis.comparisons(study).row(0, named=True)
    assert (test["seeds"], test["left_out"]) == (2, 1)


def test_where_every_cell_diverged_there_is_a_row_and_no_number(tmp_path):
    lost = {("super", s) for s in (1, 2, 3)}
    study = analysis.load(write_study(tmp_path, shift={"super": 2.0, "random_k": 0.0}, diverged=lost))
    assert analysis.effects(study).filter(pl.col("group") == "super")["delta_nll"].to_list() == [None]
    assert analysis.comparisons(study)["p"].to_list() == [None]
    assert "no finite loss" in analysis.write_report(study).read_text()


def test_jaccard_of_known_sets(made):
    study = analysis.load(made)
    # Each pair of seeds shares weight 0 in both layers: 2 shared of 2·2 + 2·2 − 2 = 6.
    assert analysis.jaccard(study)["jaccard"].to_list() == pytest.approx([1 / 3] * 3)
    assert analysis.jaccard(study)["chance"][0] == pytest.approx(2 * (4 / 50) / (8 - 2 * (4 / 50)))


def test_the_chance_level_is_what_random_sets_give():
    rng = np.random.default_rng(0)
    values = []
    for _ in range(4000):
        a, b = (set(rng.choice(60, 12, replace=False)) for _ in range(2))
        values.append((len(a & b), len(a | b)))
    shared, union = np.mean(values, axis=0)
    assert chance_jaccard(12, [60]) == pytest.approx(shared / union, rel=0.03)


def test_the_gaussian_reference_is_what_simulation_gives():
    z = np.abs(stats.norm.rvs(size=(2, 4_000_000), random_state=0).prod(axis=0))
    z.sort()
    assert gaussian_product_tail() == pytest.approx(z[-40_000:].mean() / np.median(z), rel=0.01)


def test_consensus_ranks_by_seeds_then_score(made):
    top = analysis.consensus(analysis.load(made))
    assert top["seeds"].to_list()[:2] == [3, 3]
    assert top["flat"].to_list()[:2] == [0, 0]
    assert set(top["seeds"].to_list()[2:]) == {1}


def test_progress_counts_from_the_store_alone(made):
    counts = analysis.progress(analysis.load(made))
    grids = ["rankings", "baseline", "single_weights", "blocks", "protocols", "tasks"]
    grids += ["compressions", "tunings", "faults", "attacks", "backdoors", "mitigations"]
    grids += ["roles", "mediations", "attention", "facts"]
    assert counts == {
        "cells": 9,
        "ok": 9,
        "diverged": 0,
        "empty": 0,
        "error": 0,
        "missing": 0,
        "rankings": 3,
        **dict.fromkeys((f"{name} missing" for name in grids), 0),
    }
    (made / "cells" / "super1.parquet").unlink()
    assert analysis.progress(analysis.load(made))["missing"] == 1


def test_a_single_weight_sample_that_is_not_measured_is_not_done(tmp_path):
    study = write_study(tmp_path, shift={"super": 1.0})
    record = stored_spec(study)
    record["spec"]["fidelity"] = 40
    (study / "study.json").write_text(json.dumps(record))
    assert analysis.progress(analysis.load(study))["single_weights missing"] == 3  # packets of 16


def test_several_control_sets_of_a_seed_are_one_control_their_mean(tmp_path):
    costs = {1: (0.1, 0.3, 0.2), 2: (0.4, 0.2, 0.0), 3: (0.1, 0.1, 0.4)}
    rows = [cell(np.full(8, 1.0 + seed), seed=seed, delta_norm=1.0) for seed in costs]
    rows += [
        cell(np.full(8, d), seed=seed, group="random_k", control_draw=draw, delta_norm=1.0)
        for seed, sets in costs.items() for draw, d in enumerate(sets)
    ]  # fmt: skip
    study = study_of(tmp_path / "a", rows)
    control = analysis.effects(study).filter(pl.col("group") == "random_k").row(0, named=True)
    assert control["by_seed"] == pytest.approx([0.2, 0.2, 0.2])
    assert control["seeds"] == 3
    test = analysis.comparisons(study).row(0, named=True)
    assert test["difference"] == pytest.approx(3.0 - 0.2)
    # On the scale of the test it is the mean of the sets on that scale, not the scale of their mean.
    scaled = {s: signed_log(np.full(8, 1.0 + s)) - np.mean([signed_log(np.full(8, d)) for d in sets], axis=0)
              for s, sets in costs.items()}  # fmt: skip
    assert test["p"] == pytest.approx(crossed_p(np.array(list(scaled.values()))))
    # A seed one of whose sets diverged has no mean.
    lost = [r | {"status": "diverged"} if (r["seed"], r.get("control_draw")) == (2, 1) else r for r in rows]
    test = analysis.comparisons(study_of(tmp_path / "b", lost)).row(0, named=True)
    assert (test["seeds"], test["left_out"]) == (2, 1)
    assert test["difference"] == pytest.approx(3.0 - 0.2)


@pytest.mark.parametrize("status", ["diverged", "error", "empty"])
def test_a_row_speaks_of_those_seeds_alone_all_of_whose_sets_have_a_loss(tmp_path, status):
    hits = {1: 10, 2: 50}
    rows = [
        cell(np.full(8, 0.1 * seed), seed=seed, group="random_k", control_draw=draw, delta_norm=1.0 * seed,
             hits=[hits[seed]] * 8, status=status if (seed, draw) == (1, 1) else "ok")
        for seed in (1, 2) for draw in (0, 1)
    ]  # fmt: skip
    row = analysis.effects(study_of(tmp_path, rows)).row(0, named=True)
    assert row["delta_nll"] == pytest.approx(0.2)
    assert row["by_seed"] == pytest.approx([0.2])
    assert row["accuracy"] == pytest.approx(0.5)
    assert row["delta_norm"] == 2.0


def test_all_tables_together_read_each_cell_once(tmp_path, monkeypatch):
    study = analysis.load(write_study(tmp_path, shift={"super": 1.0, "random_k": 0.1, "bottom_k": 0.0}, noise=0.01))
    read, plain = [], windows.damage_by_window

    def counted(rows, base):
        read.append(len(rows))
        return plain(rows, base)

    monkeypatch.setattr(windows, "damage_by_window", counted)
    for table in (
        analysis.effects, analysis.comparisons, analysis.power, analysis.dose_response, analysis.discrimination,
        analysis.hierarchy_ratios, analysis.meta_analysis,
    ):  # fmt: skip
        assert isinstance(table(study), pl.DataFrame)
    assert read == [len(study.cells)]
