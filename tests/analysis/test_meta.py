"""Meta-analysis against hand computation, coverage by simulation, and a mixed model of planted effects."""

import itertools
import json

import numpy as np
import polars as pl
import pytest

from analysis.damage import meta
from analysis.damage.across import ACROSS, across_studies
from analysis.damage.meta import Evidence, combined, evidence, meta_analysis
from analysis.damage.mixed import MIXED, mixed_effects
from analysis.damage.paired import window_level
from analysis.report.sections.pooled import kinds_together
from analysis.statistics.crossed import signed_log
from tests.analysis.cells import SEEDS, TOKENS, cell, study_of, the

W = 16
BASE = np.linspace(280.0, 320.0, W)


def kinds(effects, *, spread=0.2, shared=0.8, seed=0, control="random_k", base=BASE, **columns):
    """Cells of variants of bit_flip whose set costs ``effects[i]`` more than the control, windows shared by all."""
    rng, rows = np.random.default_rng(seed), []
    window = rng.standard_normal(len(base))
    for i, effect in enumerate(effects):
        own = np.sqrt(shared) * window + np.sqrt(1 - shared) * rng.standard_normal(len(base))
        for number in SEEDS:
            what = {"perturbation": "bit_flip", "strength": 0.1, "variant": f"class {i}", "seed": number} | columns
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


def test_each_k_by_itself_as_sets_of_another_k_are_no_further_kinds(tmp_path):
    rows = kinds([0.2, 0.4, 0.3]) + kinds([0.6, 0.8, 0.7], k=10, seed=1)
    study = study_of(tmp_path / "s", rows, base=BASE)
    table = meta_analysis(study)
    assert table["k"].to_list() == [3, 10]
    assert table["kinds"].to_list() == [3, 3]
    assert the(table, k=3)["mean"] < the(table, k=10)["mean"]
    assert kinds_together(study).answer.startswith("Over 3 kinds of damage the set of k=10 costs more")


def strengths_of(doses, *, rng, control="random_k", lost=(), **columns):
    """Cells of one kind at several strengths, which costs ``doses[strength]`` more than the control, half as uneven."""
    rows, own = [], {s: rng.standard_normal(W) for s in doses}
    for (strength, effect), number in itertools.product(doses.items(), SEEDS):
        what = {"base": BASE, "strength": strength, "seed": number} | columns
        rows.append(cell(None if strength in lost else effect * (1 + 0.5 * own[strength]), **what))
        rows.append(cell(np.zeros(W), group=control, **what))
    return rows, own


def test_strengths_of_one_kind_are_one_effect(tmp_path):
    rng = np.random.default_rng(0)
    doses = {0.1 * i: 0.1 * i for i in range(1, 7)}
    rows, own = strengths_of(doses, rng=rng, perturbation="gauss_noise")
    alone = study_of(tmp_path / "alone", rows, base=BASE)
    row = the(meta_analysis(alone))
    assert (row["kinds"], row["strengths"], row["pooled"]) == (1, 6, None)
    assert kinds_together(alone) is None
    assert the(mixed_effects(alone))["kinds"] == 1
    further, _ = strengths_of({0.5: 0.2, 2.0: 0.3}, rng=rng, perturbation="scale")
    lost, _ = strengths_of({0.5: 0.2, 0.9: 9.0}, rng=rng, lost=(0.9,), perturbation="bit_flip", variant="sign")
    study = study_of(tmp_path / "s", rows + further + lost, base=BASE)
    row = the(meta_analysis(study))
    # scale by less and by more than 1 are two kinds
    assert (row["kinds"], row["strengths"], row["strengths_left_out"], row["left_out"]) == (4, 9, 1, 0)
    assert row["diverged"] == len(SEEDS)
    mean = np.mean([cost * (1 + 0.5 * own[s]) for s, cost in doses.items()], axis=0)
    # The kind's effect is that of its mean over strengths, window by window.
    only = [x for x in meta.strengths(study) if x.what["perturbation"] == "gauss_noise"]
    assert meta.averaged([x.series for x in only]) == pytest.approx(mean)
    mixed = the(mixed_effects(study))
    assert (mixed["kinds"], mixed["left_out"]) == (4, 0)
    table, _ = window_level(study.cells, {"nll": BASE, "tokens": np.full(W, TOKENS)})
    values = table.filter((pl.col("kind") == "gauss_noise") & (pl.col("group") == "super"))["y"].to_numpy()
    assert values == pytest.approx(signed_log(mean))


def test_studies_share_strengths_of_a_kind_and_kinds(tmp_path):
    rng, two = np.random.default_rng(0), []
    for name, doses in (("base", (0.1, 0.2, 0.3)), ("instruct", (0.1, 0.2))):
        rows, _ = strengths_of(dict.fromkeys(doses, 0.3), rng=rng, perturbation="gauss_noise")
        other, _ = strengths_of({0.5: 0.2}, rng=rng, perturbation="quantize")
        two.append(renamed(study_of(tmp_path / name, rows + other, base=BASE), name, "t"))
    table = across_studies(two)
    assert table["damage"].to_list() == [
        "gauss_noise-0.1",
        "gauss_noise-0.2",
        "gauss_noise",
        "quantize-0.5",
        "all kinds",
    ]
    assert table["strengths"].to_list() == [1, 1, 2, 1, 3]
    assert table["kinds"].to_list() == [1, 1, 1, 1, 2]
    every, kind, other = (the(table, damage=d)["effects"] for d in ("all kinds", "gauss_noise", "quantize-0.5"))
    assert every == pytest.approx(np.mean([kind, other], axis=0).tolist())


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
    return type(study)(study.location, record)


def test_two_models_on_the_same_windows_are_a_pair(tmp_path):
    rng = np.random.default_rng(0)
    window = rng.standard_normal(W)
    pair = {}
    for name, effects in (("base", [0.2, 0.4]), ("instruct", [0.3, 0.5])):
        rows = []
        for effect, strength in zip(effects, (1.1, 0.9), strict=True):
            series = effect + 0.2 * (window + 0.1 * rng.standard_normal(W))
            what = {"perturbation": "scale", "strength": strength, "base": BASE}
            rows += [cell(series, **what), cell(np.zeros(W), group="random_k", **what)]
        pair[name] = study_of(tmp_path / name, rows, base=BASE)
    same = across_studies([renamed(s, n, "t") for n, s in pair.items()])
    row = the(same, strength=1.1)
    assert (row["studies"], row["same_windows"], row["kinds"]) == (["base", "instruct"], True, 1)
    assert row["difference"] == pytest.approx(row["effects"][1] - row["effects"][0])
    assert row["difference_low"] > 0  # 0.5 sd of a window, measured on the same ones
    assert row["correlation"] > 0.8
    every = the(same, damage="all kinds")
    assert (every["kinds"], every["k"], every["perturbation"]) == (2, 3, None)
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
        assert dict(table.schema) == ACROSS


def test_the_section_says_what_was_planted(tmp_path):
    study = study_of(tmp_path / "s", kinds([0.2, 0.4, 0.6, 0.8]), base=BASE)
    section = kinds_together(study)
    row = the(meta_analysis(study))
    assert "Over 4 kinds of damage the set of k=3 costs more than random_k" in section.answer
    assert f"{row['mean']:.2f} [{row['mean_low']:.2f}, {row['mean_high']:.2f}]" in section.answer
    assert [len(t.rows) for t in section.tables] == [1, 1]
    same = kinds_together(study_of(tmp_path / "same", kinds([0.0] * 4, seed=5), base=BASE))
    assert "not surely other than random_k" in same.answer
    assert kinds_together(study_of(tmp_path / "two", kinds([0.2, 0.4]), base=BASE)) is None


def test_without_controls_there_are_no_rows_but_all_columns(tmp_path):
    for name, cells in (("none", []), ("alone", [cell(np.ones(W), base=BASE)])):
        study = study_of(tmp_path / name, cells, base=BASE)
        for table, schema in ((meta_analysis(study), meta.META), (mixed_effects(study), MIXED)):
            assert table.is_empty()
            assert dict(table.schema) == schema
