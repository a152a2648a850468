"""Effect sizes, their cross-fitting and ratios against closed forms, planted differences and simulations."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

import analysis
from analysis.damage.discrimination import (
    auc,
    cross_fit,
    discrimination,
    effect_interval,
    effect_size,
    hierarchy_ratios,
)
from analysis.damage.power import power
from analysis.report.sections import answered
from analysis.statistics.paired import hedges_g
from tests.analysis.planted import damaged, wobble

GROUPS = ("super", "random_k", "bottom_k")


def one(table, **where):
    rows = table.filter([pl.col(name) == value for name, value in where.items()])
    assert len(rows) == 1
    return rows.row(0, named=True)


def test_effect_size_is_that_of_the_comparisons():
    d = np.random.default_rng(0).normal(1, 2, size=(3, 9))
    assert effect_size(d.mean(axis=0)) == pytest.approx(hedges_g(d)[0])
    assert effect_size(np.full(6, -0.3)) == -np.inf


def test_the_interval_of_an_effect_size_inverts_the_noncentral_t():
    for g, n in ((0.4, 8), (2.0, 16), (-1.0, 5)):
        t = g / (1 - 3 / (4 * (n - 1) - 1)) * np.sqrt(n)
        found = effect_interval(g, n)
        assert stats.nct.cdf(t, n - 1, found.low * np.sqrt(n)) == pytest.approx(0.975, abs=1e-3)
        assert stats.nct.cdf(t, n - 1, found.high * np.sqrt(n)) == pytest.approx(0.025, abs=1e-3)
    assert np.isfinite(effect_interval(1e5, 8).high)


def test_choosing_is_not_rewarded():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 6, 16))
    naive, fair = np.mean([[effect_size(d).max(), cross_fit(d).g] for d in x], axis=0)
    assert naive > 0.3
    assert abs(fair) < 0.06


@pytest.mark.parametrize(("strengths", "windows", "delta"), [(1, 8, 1.0), (1, 16, 0.0), (4, 16, 1.0), (8, 12, 0.0)])
def test_cross_fitted_intervals_cover(strengths, windows, delta):
    rng = np.random.default_rng(2)
    found = [cross_fit(delta + rng.normal(size=(strengths, windows))) for _ in range(300)]
    covered = np.mean([f.interval.low <= delta <= f.interval.high for f in found])
    assert 0.95 - 3 * np.sqrt(0.95 * 0.05 / 300) <= covered <= 0.995


def test_auc_is_the_share_of_pairs():
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 5, 12).astype(float), rng.integers(0, 4, 9).astype(float)
    assert auc(a, b) == pytest.approx(np.mean([(x > y) + 0.5 * (x == y) for x in a for y in b]))


def noisy_study(directory, **options):
    """sign_flip costs a lot but unevenly, zero little but evenly, gauss_noise is best at 0.2 and worthless at 0.1."""
    rng = np.random.default_rng(4)
    size = {("sign_flip", 1.0): (2.0, 2.0), ("zero", None): (0.5, 0.05), ("gauss_noise", 0.1): (0.0, 0.1),
            ("gauss_noise", 0.2): (0.4, 0.1)}  # fmt: skip

    def delta(group, damage, seed):
        if group != "super":
            return 0.001 * np.linspace(-1, 1, 16)
        mean, spread = size[damage[:2]]
        return mean + spread * np.linspace(-1.5, 1.5, 16) + 0.001 * rng.normal(size=16)

    return damaged(directory, list(size), delta, windows=16, **options)


def test_kinds_are_ranked_by_evenness_and_the_best_strength_is_found(tmp_path):
    study = noisy_study(tmp_path)
    table = discrimination(study)
    assert [r["kind"] for r in table.sort("rank").iter_rows(named=True)] == ["zero", "gauss_noise", "sign_flip"]
    assert table["rank"].sort().to_list() == [1, 2, 3]
    row = one(table, kind="gauss_noise")
    assert (row["strengths"], row["best_strength"]) == ([0.1, 0.2], 0.2)
    comparison = one(analysis.comparisons(study), damage="gauss_noise-0.2")
    assert row["gs"][1] == pytest.approx(comparison["g"])
    assert row["auc"] == 1
    assert row["low"] < row["g"] < row["high"]
    assert one(table, kind="sign_flip")["auc"] < 1  # its cheapest windows cost nothing


def test_diverged_pairs_and_too_few_windows_are_told(tmp_path):
    def delta(group, damage, seed):
        return None if group == "super" and damage[1] == 1.0 else np.linspace(0, 1, 4) * (group == "super")

    study = damaged(tmp_path, [("gauss_noise", 0.1), ("gauss_noise", 1.0), ("sign_flip", 1.0)], delta, windows=4)
    row = one(discrimination(study), kind="gauss_noise")
    assert (row["g"], row["left_out"]) == (None, 1)
    assert "too few" in row["why_not"]
    assert "diverged" in one(discrimination(study), kind="sign_flip")["why_not"]
    even = damaged(tmp_path / "even", [("zero", None)], lambda group, *_: np.full(8, 1.0 * (group == "super")))
    assert "no spread" in discrimination(even)["why_not"][0]


def test_ratios_are_the_planted_ones_or_a_reason(tmp_path):
    rng = np.random.default_rng(5)
    factors = wobble(rng)
    planted = {"super": 2.0, "random_k": 0.1, "bottom_k": 0.0}

    def delta(group, damage, seed):
        return planted[group] * factors[seed] + 0.001 * rng.normal(size=8)

    table = hierarchy_ratios(damaged(tmp_path, [("zero", None)], delta, groups=GROUPS))
    row = one(table, upper="super", lower="random_k")
    assert row["ratio"] == pytest.approx(20, rel=0.02)
    assert row["low"] <= 20 <= row["high"]
    assert one(table, upper="random_k", lower="bottom_k")["why_not"] == "ΔNLL of bottom_k can't be told from 0"


def test_ratios_are_of_seeds_that_both_groups_have(tmp_path):
    scale = {1: 1.0, 2: 1.0, 3: 0.1}  # of the strong seeds the super sets diverge

    def delta(group, damage, seed):
        if group == "super" and seed < 3:
            return None
        return (4.0 if group == "super" else 1.0) * scale[seed] * np.linspace(0.9, 1.1, 8)

    row = one(hierarchy_ratios(damaged(tmp_path, [("zero", None)], delta)), upper="super")
    assert (row["seeds"], row["left_out"]) == (1, 2)
    assert row["ratio"] == pytest.approx(4)
    assert row["low"] <= 4 <= row["high"]
    apart = damaged(
        tmp_path / "apart", [("zero", None)], lambda g, d, s: None if (g == "super") == (s < 3) else np.ones(8)
    )
    row = one(hierarchy_ratios(apart), upper="super")
    assert (row["ratio"], row["seeds"], row["left_out"]) == (None, 0, 3)
    assert row["why_not"] == "no seed has a finite loss of both groups"


def test_intervals_of_ratios_cover_what_was_planted(tmp_path):
    rng = np.random.default_rng(6)
    damages = [("gauss_noise", float(i)) for i in range(1, 81)]
    shared = {i: wobble(rng, by_seed=0.1, by_window=0.3, residual=0.1) for _, i in damages}
    own = {i: wobble(rng, by_seed=0.1, by_window=0.1, residual=0.1) for _, i in damages}

    def delta(group, damage, seed):
        return (2.0 if group == "super" else 0.5 * own[damage[1]][seed]) * shared[damage[1]][seed]

    table = hierarchy_ratios(damaged(tmp_path, damages, delta))
    covered = ((table["low"] <= 4) & (table["high"] >= 4)).mean()
    assert len(table) == 80
    assert covered >= stats.binom.ppf(0.005, 80, 0.95) / 80


def test_studies_without_controls_have_empty_tables(tmp_path, made):
    study = damaged(tmp_path / "alone", [("zero", None)], lambda *_: np.ones(8), groups=("super",))
    assert discrimination(study).is_empty()
    assert hierarchy_ratios(study).is_empty()
    assert discrimination(study).schema == discrimination(analysis.load(made)).schema


def test_the_section_names_the_best_kind_and_what_could_be_found(tmp_path):
    study = noisy_study(tmp_path)
    section = next(s for s in answered(study, {"kinds"}) if s.id == "discrimination")
    assert section.answer.startswith("zero tells k=10 from random_k best: g = ")
    assert "sign_flip worst" in section.answer
    assert "No ratio is told: in none of 4 pairs" in section.answer
    assert f"would be found in {(power(study)['detectable'] <= power(study)['effect']).sum()} of 4" in section.answer
    assert [len(t.rows) for t in section.tables] == [3, 4, 4]
    assert all(len(row) == len(t.columns) for t in section.tables for row in t.rows)
    html = analysis.write_report(study).read_text()
    assert 'id="chart-kinds"' in html
    lone = damaged(tmp_path / "lone", [("zero", None)], lambda g, *_: np.linspace(0, 1, 8) * (g == "super"))
    assert "discrimination" not in {s.id for s in answered(lone, set())}
    assert "kinds" not in analysis.charts(lone)
