"""Meta-analysis against hand computation, coverage by simulation, and a mixed model of planted effects."""

import json

import numpy as np
import polars as pl
import pytest
from scipy import stats

from analysis import meta
from analysis.crossed import signed_log
from analysis.meta import Evidence, across_studies, combined, evidence, meta_analysis, mixed_effects
from analysis.paired import window_level
from analysis.sections.sets import kinds_together
from tests.analysis.test_interaction import SEEDS, TOKENS, cell, study_of, the

W = 16
BASE = np.linspace(280.0, 320.0, W)


def kinds(effects, *, spread=0.2, shared=0.8, seed=0, control="random_k", base=BASE, **columns):
    """Cells of scale by 1 + i/10 whose set costs ``effects[i]`` more than the control, with windows shared by kinds."""
    rng, rows = np.random.default_rng(seed), []
    window = rng.standard_normal(len(base))
    for i, effect in enumerate(effects):
        own = np.sqrt(shared) * window + np.sqrt(1 - shared) * rng.standard_normal(len(base))
        for number in SEEDS:
            what = {"perturbation": "scale", "strength": 1.1 + i / 10, "seed": number} | columns
            rows.append(cell(effect + spread * own, base=base, **what))
            rows.append(cell(np.zeros(len(base)), base=base, group=control, **what))
    return rows


def independent(g, v, windows=1000):
    """Evidence of effects that are independent."""
    g, v = np.array(g), np.array(v)
    boots = np.random.default_rng(0).normal(g, np.sqrt(v), (500, len(g)))
    return Evidence(g, np.diag(v), boots, windows)


def test_random_effects_are_der_simonian_and_lairds_by_hand():
    g, v = [0.1, 0.5, 1.2, 0.9], [0.04, 0.02, 0.05, 0.1]
    w = [1 / x for x in v]  # 25, 50, 20, 10
    fixed = sum(a * b for a, b in zip(w, g, strict=True)) / 105
    q = sum(a * (b - fixed) ** 2 for a, b in zip(w, g, strict=True))
    tau2 = (q - 3) / (105 - (625 + 2500 + 400 + 100) / 105)
    star = [1 / (x + tau2) for x in v]
    pooled = sum(a * b for a, b in zip(star, g, strict=True)) / sum(star)
    hartung_knapp = sum(a * (b - pooled) ** 2 for a, b in zip(star, g, strict=True)) / (3 * sum(star))
    half = 3.182446305284263 * max(hartung_knapp, 1 / sum(star)) ** 0.5  # Student's t, 3 degrees, 97.5%
    row = combined(independent(g, v))
    assert row["tau2"] == pytest.approx(tau2)
    assert row["i2"] == pytest.approx((q - 3) / q)
    assert (row["pooled"], row["low"], row["high"]) == pytest.approx((pooled, pooled - half, pooled + half))
    # Without covariances the joint estimates are the same, and so is the prediction interval's variance.
    assert (row["joint_tau2"], row["joint_i2"]) == pytest.approx((tau2, (q - 3) / q))
    assert row["mean"] == pytest.approx(0.675)
    reach = 4.302652729749464 * (tau2 * 1.25 + sum(v) / 16) ** 0.5  # 2 degrees
    assert (row["predicted_low"], row["predicted_high"]) == pytest.approx((0.675 - reach, 0.675 + reach))
    assert row["correlation"] == 0


def test_effects_that_vary_less_than_chance_have_no_heterogeneity():
    row = combined(independent([0.5, 0.51, 0.49], [0.1, 0.2, 0.1]))
    assert (row["tau2"], row["i2"], row["joint_tau2"], row["joint_i2"]) == (0, 0, 0, 0)
    assert row["pooled"] == pytest.approx((10 * 0.5 + 5 * 0.51 + 10 * 0.49) / 25)
    # Never narrower than with the plain standard error, 1/√25.
    assert row["high"] - row["pooled"] == pytest.approx(4.302652729749464 / 5)


def test_effect_sizes_and_their_variances_are_the_formulas():
    x = np.random.default_rng(0).normal(0.3, 1, 12)
    found = evidence([x], ["here"])
    g = (1 - 3 / (4 * 11 - 1)) * x.mean() / x.std(ddof=1)
    assert found.g == pytest.approx([g])
    assert found.covariance[0, 0] == pytest.approx(1 / 12 + g**2 / 24)


def test_series_of_other_lengths_count_their_own_windows():
    x = np.random.default_rng(0).normal(0.3, 1, 40)
    stopped = evidence([x, x[:4]], ["here", "here"])
    assert stopped.g[1] == pytest.approx((1 - 3 / 11) * x[:4].mean() / x[:4].std(ddof=1))
    assert stopped.covariance[1, 1] == pytest.approx(1 / 4 + stopped.g[1] ** 2 / 8)
    assert stopped.windows == 4
    # Another text's four windows are resampled among themselves: all four draws are one window in 1.6% of resamples.
    assert len(evidence([x, x[:4]], ["here", "there"]).boots) > 0.97 * meta.RESAMPLES


def correlated(rng, k, rho, effects):
    z, own = rng.standard_normal(W), rng.standard_normal((k, W))
    return np.asarray(effects)[:, None] + np.sqrt(rho) * z + np.sqrt(1 - rho) * own


def test_the_covariance_is_that_of_effects_over_further_windows():
    rng, effects = np.random.default_rng(0), [0.0, 1.0, 2.0]
    drawn = [evidence(list(correlated(rng, 3, 0.7, effects)), ["here"] * 3, 200) for _ in range(400)]
    true = np.corrcoef(np.array([d.g for d in drawn]).T)[np.triu_indices(3, 1)]
    seen = np.mean([np.corrcoef(d.boots.T) for d in drawn], axis=0)[np.triu_indices(3, 1)]
    assert seen == pytest.approx(true, abs=0.1)
    apart = evidence(list(correlated(rng, 3, 0.7, effects)), ["a", "b", "c"])
    assert np.abs(np.corrcoef(apart.boots.T)[np.triu_indices(3, 1)]).max() < 0.1


@pytest.mark.parametrize(("rho", "level"), [(0.8, 0.0), (0.8, 1.0), (0.0, 1.0)])
def test_the_joint_interval_covers_and_the_independent_one_does_not(rho, level):
    rng, effects = np.random.default_rng(1), level + np.linspace(-0.3, 0.3, 6)
    joint, alone, trials = 0, 0, 250
    for _ in range(trials):
        found = evidence(list(correlated(rng, 6, rho, effects)), ["here"] * 6, 600)
        estimate, low, high = found.mean_interval(np.full(6, 1 / 6))
        joint += low < effects.mean() < high
        half = 1.96 * np.sqrt(np.diag(found.covariance).sum()) / 6
        alone += abs(estimate - effects.mean()) < half
    assert 0.90 <= joint / trials <= 0.98
    if rho:
        assert alone / trials < 0.8


def test_kinds_are_pooled_per_control(tmp_path):
    effects = [0.2, 0.4, 0.6, 0.8]
    rows = kinds(effects) + kinds([0.0] * 4, control="bottom_k", seed=3)[1::2]
    table = meta_analysis(study_of(tmp_path / "s", rows, base=BASE))
    assert table["control"].to_list() == ["random_k", "bottom_k"]
    row = the(table, control="random_k")
    assert (row["kinds"], row["left_out"], row["diverged"], row["windows"], row["k"]) == (4, 0, 0, W, 3)
    # The shared part of every kind is 0.8 of the variance, so most of the sampling error is common.
    assert row["correlation"] > 0.3
    assert row["mean_low"] < np.mean(effects) / 0.2 < row["mean_high"]
    assert row["predicted_low"] < row["mean_low"]
    assert row["joint_tau2"] >= row["tau2"]


def test_each_k_and_all_of_them(tmp_path):
    rows = kinds([0.2, 0.4]) + kinds([0.6, 0.8], k=10, seed=1)
    table = meta_analysis(study_of(tmp_path / "s", rows, base=BASE))
    assert sorted(table["k"].to_list(), key=str) == [10, 3, None]
    assert the(table, k=None)["kinds"] == 4
    assert the(table, k=3)["mean"] < the(table, k=None)["mean"] < the(table, k=10)["mean"]


def test_kinds_without_a_finite_effect_are_counted(tmp_path):
    rows = kinds([0.2, 0.4, 0.6])
    for number in SEEDS:
        rows.append(cell(None, base=BASE, perturbation="bit_flip", strength=0.5, variant="all", seed=number))
        rows.append(cell(np.zeros(W), base=BASE, perturbation="bit_flip", strength=0.5, variant="all", seed=number,
                         group="random_k"))  # fmt: skip
        rows += [cell(np.zeros(W), base=BASE, seed=number, group=g) for g in ("super", "random_k")]  # no spread
    row = the(meta_analysis(study_of(tmp_path / "s", rows, base=BASE)))
    assert (row["kinds"], row["left_out"], row["diverged"]) == (3, 2, 3)
    row = the(meta_analysis(study_of(tmp_path / "one", kinds([0.2]), base=BASE)))
    assert (row["kinds"], row["pooled"]) == (1, None)
    assert "fewer than two kinds" in row["why_not"]


def renamed(study, name, text):
    record = json.loads((study.directory / "study.json").read_text())
    record["spec"]["name"], record["resolved"]["text"] = name, text
    (study.directory / "study.json").write_text(json.dumps(record))
    return type(study)(study.directory, record)


def test_two_models_on_the_same_windows_are_a_pair(tmp_path):
    rng = np.random.default_rng(0)
    window = rng.standard_normal(W)
    pair = {}
    for name, effects in (("base", [0.2, 0.4]), ("instruct", [0.3, 0.5])):
        rows = []
        for i, effect in enumerate(effects):
            series = effect + 0.2 * (window + 0.1 * rng.standard_normal(W))
            what = {"perturbation": "scale", "strength": 1.1 + i / 10, "base": BASE}
            rows += [cell(series, **what), cell(np.zeros(W), group="random_k", **what)]
        pair[name] = study_of(tmp_path / name, rows, base=BASE)
    same = across_studies([renamed(s, n, "t") for n, s in pair.items()])
    row = the(same, strength=1.1)
    assert (row["studies"], row["same_windows"], row["kinds"]) == (["base", "instruct"], True, 1)
    assert row["difference"] == pytest.approx(row["effects"][1] - row["effects"][0])
    assert row["difference_low"] > 0  # 0.5 sd of a window, measured on the same ones
    assert row["correlation"] > 0.8
    every = the(same, damage="all kinds")
    assert (every["kinds"], every["k"], every["perturbation"]) == (2, None, None)
    singles = same.filter(pl.col("kinds") == 1)["effects"].to_list()
    assert every["effects"] == pytest.approx(np.mean(singles, axis=0).tolist())
    apart = the(across_studies([renamed(s, n, n) for n, s in pair.items()]), strength=1.1)
    assert not apart["same_windows"]
    assert apart["effects"] == row["effects"]
    assert apart["difference_low"] < 0 < apart["difference_high"]


def test_one_study_is_no_pair(tmp_path):
    study = study_of(tmp_path / "s", kinds([0.2, 0.4]), base=BASE)
    for studies in ([], [study]):
        table = across_studies(studies)
        assert table.is_empty()
        assert dict(table.schema) == meta.ACROSS


def written(directory, y):
    """Cells whose signed-log ΔNLL are ``y[kind, group, window]``, the groups super and random_k."""
    rows = []
    for i, kind in enumerate(y):
        for group, values in zip(("super", "random_k"), kind, strict=True):
            raw = np.sign(values) * 1e-3 * np.expm1(np.abs(values))
            rows.append(cell(raw, base=BASE, group=group, perturbation="scale", strength=1.1 + i / 10))
    return study_of(directory, rows, base=BASE)


def mixed_data(rng, effect, n=8, by_group=0.6):
    y = rng.normal(3, 1, (n, 1, 1)) + by_group * rng.standard_normal((n, 2, 1)) + 0.3 * rng.standard_normal((1, 1, W))
    return y + 0.2 * rng.standard_normal((n, 2, W)) + effect * np.array([1.0, 0.0])[:, None]


def test_the_mixed_model_is_a_paired_t_test_over_kinds_where_all_is_balanced(tmp_path):
    # With every kind, group and window present, REML's group effect is the mean over kinds of super − control, and
    # its error that of these means over kinds.
    y = mixed_data(np.random.default_rng(0), 2.0)
    row = the(mixed_effects(written(tmp_path / "s", y)))
    change = (y[:, 0] - y[:, 1]).mean(axis=1)
    test = stats.ttest_1samp(change, 0)
    assert (row["group"], row["reference"], row["kinds"], row["windows"]) == ("super", "random_k", 8, W)
    assert row["converged"]
    assert row["coefficient"] == pytest.approx(change.mean(), rel=1e-6)
    assert row["se"] == pytest.approx(change.std(ddof=1) / np.sqrt(8), rel=0.01)
    assert row["p"] == pytest.approx(test.pvalue, rel=0.1)
    interval = test.confidence_interval()
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high), abs=0.02)
    assert row["var_kind_by_group"] == pytest.approx(0.36, abs=0.25)
    assert row["var_residual"] == pytest.approx(0.04, abs=0.01)


def test_too_few_kinds_give_no_mixed_model(tmp_path):
    row = the(mixed_effects(written(tmp_path / "s", mixed_data(np.random.default_rng(0), 1.0, n=2))))
    assert (row["coefficient"], row["converged"]) == (None, None)
    assert row["why_not"] == "2 kinds of damage with both groups; a mixed model needs 3"


def test_the_mixed_model_leaves_out_kinds_that_one_group_lacks(tmp_path):
    study = written(tmp_path / "s", mixed_data(np.random.default_rng(0), 1.0, n=5))
    rows = study.cells.to_dicts()
    rows[0] |= {"status": "diverged"}
    row = the(mixed_effects(study_of(tmp_path / "lost", rows, base=BASE)))
    assert (row["kinds"], row["left_out"]) == (4, 1)
    table, n = window_level(study.cells, {"nll": BASE, "tokens": np.full(W, TOKENS)})
    assert (len(table), n) == (5 * 2 * W, 5)


def test_the_signed_log_keeps_signs_and_zero():
    x = np.array([-10.0, -1e-6, 0.0, 1e-6, 10.0])
    assert np.sign(signed_log(x)).tolist() == [-1, -1, 0, 1, 1]
    assert signed_log(x) == pytest.approx(-signed_log(-x))
    assert signed_log(np.array([1e-6]))[0] == pytest.approx(1e-3, rel=1e-3)


def test_the_section_says_what_was_planted(tmp_path):
    study = study_of(tmp_path / "s", kinds([0.2, 0.4, 0.6, 0.8]), base=BASE)
    section = kinds_together(study)
    row = the(meta_analysis(study))
    assert "Over 4 kinds of damage the set costs more than random_k" in section.answer
    assert f"{row['mean']:.2f} [{row['mean_low']:.2f}, {row['mean_high']:.2f}]" in section.answer
    assert [len(t.rows) for t in section.tables] == [1, 1]
    same = kinds_together(study_of(tmp_path / "same", kinds([0.0] * 4, seed=5), base=BASE))
    assert "not surely other than random_k" in same.answer
    assert kinds_together(study_of(tmp_path / "two", kinds([0.2, 0.4]), base=BASE)) is None


def test_without_controls_there_are_no_rows_but_all_columns(tmp_path):
    for name, cells in (("none", []), ("alone", [cell(np.ones(W), base=BASE)])):
        study = study_of(tmp_path / name, cells, base=BASE)
        for table, schema in ((meta_analysis(study), meta.META), (mixed_effects(study), meta.MIXED)):
            assert table.is_empty()
            assert dict(table.schema) == schema
