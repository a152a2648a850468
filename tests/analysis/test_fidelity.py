"""The single-weight sample against scipy, planted effects and predictions, and coverage by simulation."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

import analysis
from analysis.fidelity import tables as fidelity
from analysis.fidelity.single_weights import SingleWeights, noise_floor_of, single_weight_samples
from analysis.fidelity.tables import in_top, theil_sen
from analysis.statistics.inference import weighted_spearman
from tests.analysis.conftest import with_tables

WINDOWS, TOKENS = 8, 50


def rows_of(n=200, *, slope=0.5, wobble=0.1, noise=1e-7, curvature=0.0, seed=0, inclusion=None):
    """n edits whose ΔNLL is ``slope`` × the first-order prediction, signs both ways, and one null edit each."""
    rng, rows = np.random.default_rng(seed), []
    size = np.exp(rng.uniform(-14, -2, n)) * rng.choice([-1, 1], n)
    for i in range(n):
        common = {
            "model": "m", "seed": 1, "metric": "grad_x_weight", "stratum": f"{i % 4}", "component": "q",
            "inclusion": inclusion[i] if inclusion is not None else 0.1, "tensor": "t", "layer": 0, "flat": i,
            "row": 0, "col": i, "weight": 1.0, "metrics": ["grad_x_weight", "magnitude"],
            "scores": [abs(size[i]), float(rng.random())],
        }  # fmt: skip
        effect = slope * size[i] * np.exp(wobble * rng.normal(size=WINDOWS))
        for edit, delta, predicted in (("zero", effect, size[i]), ("null_edit", 0.0, 1e-12)):
            measured = TOKENS * (delta + noise * rng.normal(size=WINDOWS))
            rows.append(common | {
                "edit": edit, "delta_nll": measured.tolist(), "tokens": [TOKENS] * WINDOWS,
                "first_order": predicted, "second_order": predicted * (1 + curvature),
            })  # fmt: skip
    return rows


@pytest.fixture
def planted(tmp_path):
    return with_tables(tmp_path / "planted", fidelity=rows_of(wobble=0.7))


def one(table, **where):
    rows = table.filter([pl.col(name) == value for name, value in where.items()])
    assert len(rows) == 1
    return rows.row(0, named=True)


def test_correlations_are_scipys_in_the_sample_and_weighted_for_all_weights(planted):
    sample = next(single_weight_samples(planted))
    y = np.abs(sample.delta.sum(axis=1) / sample.tokens.sum(axis=1))
    found = analysis.fidelity_correlations(planted)
    row = one(found, metric="grad_x_weight", outcome="|ΔNLL|", speaks_of="sample")
    assert row["spearman"] == pytest.approx(stats.spearmanr(sample.scores[:, 0], y).statistic)
    assert row["low"] <= row["spearman"] <= row["high"]
    signed = one(found, metric="first_order", outcome="ΔNLL", speaks_of="sample")
    assert signed["spearman"] > 0.98
    assert abs(one(found, metric="magnitude", outcome="|ΔNLL|", speaks_of="all weights")["spearman"]) < 0.3
    # Half the predictions are negative, so a score, which has no sign, can't foretell a signed change.
    assert abs(one(found, metric="grad_x_weight", outcome="ΔNLL", speaks_of="sample")["spearman"]) < 0.3


def test_all_weights_count_as_often_as_they_were_not_sampled(tmp_path):
    inclusion = np.where(np.arange(200) % 4 == 0, 1.0, 0.05)
    study = with_tables(tmp_path / "s", fidelity=rows_of(wobble=2.0, inclusion=inclusion))
    sample = next(single_weight_samples(study))
    row = one(analysis.fidelity_correlations(study), metric="grad_x_weight", outcome="|ΔNLL|", speaks_of="all weights")
    repeats = (20 / (20 * sample.inclusion)).round().astype(int)
    y = np.abs(sample.measured())
    assert row["spearman"] == pytest.approx(
        stats.spearmanr(np.repeat(sample.scores[:, 0], repeats), np.repeat(y, repeats)).statistic
    )


def test_precision_finds_the_most_damaging(planted):
    found = analysis.precision_at(planted)
    # Only half of the largest scores raise the loss; a signed prediction knows which.
    assert one(found, metric="first_order", m=30)["precision"] > 0.9
    assert 0.2 < one(found, metric="grad_x_weight", m=30)["precision"] < 0.8
    assert one(found, metric="grad_x_weight", m=30)["chance"] == pytest.approx(30 / 200)
    assert set(found["m"]) == {10, 30}


def test_ties_at_the_edge_share_the_last_places():
    assert in_top(np.array([5.0, 4, 3, 2, 1]), 2).tolist() == [1, 1, 0, 0, 0]
    assert in_top(np.ones(5), 2).tolist() == [0.4] * 5
    assert in_top(np.array([9.0, 0, 0, 0, 0]), 2).tolist() == [1, 0.25, 0.25, 0.25, 0.25]


def test_precision_is_what_counting_gives(planted):
    sample = next(single_weight_samples(planted))
    worst = set(np.argsort(-sample.measured())[:10])
    top = set(np.argsort(-sample.scores[:, 0])[:10])
    assert one(analysis.precision_at(planted), metric="grad_x_weight", m=10)["precision"] == len(worst & top) / 10


def test_the_median_line_is_scipys_and_shrugs_off_outliers():
    rng = np.random.default_rng(0)
    x = rng.normal(size=80)
    y = 0.7 * x + 0.2 + 0.05 * rng.normal(size=80)
    expected = stats.theilslopes(y, x)
    assert theil_sen(x, y, rng) == pytest.approx((expected.slope, np.median(y - expected.slope * x)))
    y[:15] = 1e3
    assert theil_sen(x, y, rng)[0] == pytest.approx(0.7, abs=0.1)


@pytest.mark.parametrize("slope", [0.5, 1.0, -1.0])
def test_calibration_recovers_the_planted_slope(tmp_path, slope):
    study = with_tables(tmp_path / "s", fidelity=rows_of(slope=slope, curvature=1.0))
    first = one(analysis.calibration(study), order="first_order")
    assert first["low"] <= slope <= first["high"]
    assert first["slope"] == pytest.approx(slope, rel=0.05)
    assert first["intercept"] == pytest.approx(0, abs=1e-5)
    assert one(analysis.calibration(study), order="second_order")["slope"] == pytest.approx(slope / 2, rel=0.05)
    deciles = analysis.calibration_deciles(study).filter((pl.col("order") == "first_order") & pl.col("above_floor"))
    assert len(deciles) >= 8
    assert deciles["ratio"].to_numpy() == pytest.approx(slope, rel=0.15)
    # The smallest tenth above the floor still feels some of the noise.
    assert ((deciles["same_sign"] >= 0.9) if slope > 0 else (deciles["same_sign"] <= 0.1)).all()


def test_what_is_below_the_noise_is_neither_fitted_nor_counted(tmp_path):
    study = with_tables(tmp_path / "s", fidelity=rows_of(noise=1e-4))
    sample = next(single_weight_samples(study))
    floor, nulls = noise_floor_of(study, sample)
    rows = study.fidelity.filter(pl.col("edit") == "null_edit")
    values = [abs(sum(d) / sum(t)) for d, t in rows.select("delta_nll", "tokens").iter_rows()]
    assert (floor, nulls) == (pytest.approx(np.quantile(values, 0.95)), 200)
    row = analysis.above_noise(study).row(0, named=True)
    assert row["share_sample"] == pytest.approx(np.mean(np.abs(sample.measured()) > floor))
    assert row["low"] <= row["share_all"] <= row["high"]
    fitted = one(analysis.calibration(study), order="first_order")
    assert fitted["n"] == int((np.abs(sample.predicted["first_order"]) > floor).sum()) < 200
    assert fitted["slope"] == pytest.approx(0.5, rel=0.1)
    assert not analysis.calibration_deciles(study)["above_floor"].all()


def test_a_single_weight_sample_without_predictions_or_null_edits_says_what_it_can(tmp_path):
    rows = [r | {"first_order": None, "second_order": None} for r in rows_of(40) if r["edit"] == "zero"]
    study = with_tables(tmp_path / "s", fidelity=rows)
    assert set(analysis.fidelity_correlations(study)["metric"]) == {"grad_x_weight", "magnitude"}
    assert analysis.calibration(study).is_empty()
    assert analysis.calibration_deciles(study).is_empty()
    assert analysis.above_noise(study)["floor"].to_list() == [None]
    analysis.charts(study)


def test_a_score_that_is_not_defined_for_some_weights_is_judged_on_the_rest(tmp_path):
    rows = rows_of(60)
    for row in rows:
        if row["flat"] % 3 == 0:
            row |= {"scores": [row["scores"][0], None], "second_order": None}
    study = with_tables(tmp_path / "s", fidelity=rows)
    sample = next(single_weight_samples(study))
    known = np.isfinite(sample.scores[:, 1])
    found = analysis.fidelity_correlations(study)
    row = one(found, metric="magnitude", outcome="|ΔNLL|", speaks_of="sample")
    y = np.abs(sample.measured())
    assert row["n"] == known.sum() == 40
    assert row["spearman"] == pytest.approx(stats.spearmanr(sample.scores[known, 1], y[known]).statistic)
    assert one(found, metric="second_order", outcome="ΔNLL", speaks_of="sample")["n"] == 40
    assert one(analysis.calibration(study), order="second_order")["slope"] == pytest.approx(0.5, rel=0.1)
    deciles = analysis.calibration_deciles(study).filter(pl.col("order") == "second_order")
    assert deciles["n"].sum() == 40
    assert analysis.precision_at(study)["precision"].is_finite().all()
    assert len(deciles) == 10


def test_a_diverged_edit_is_counted_and_left_out(tmp_path):
    rows = rows_of(40)
    rows[0] = rows[0] | {"delta_nll": [float("nan")] * WINDOWS}
    found = analysis.fidelity_correlations(with_tables(tmp_path / "s", fidelity=rows))
    assert set(found["n"]) == {39}
    assert set(found["diverged"]) == {1}


def test_a_stratum_that_was_taken_whole_is_not_resampled():
    inclusion = np.repeat([1.0, 0.2], 10)
    sample = SingleWeights(
        1, "s", "zero", np.ones((20, 2)), np.ones((20, 2)), ["s"], np.ones((20, 1)), inclusion, np.repeat([0, 1], 10),
        {}, ["q"] * 20, [0] * 20, 0,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    draws = np.array([sample.draw_weights(rng) for _ in range(200)])
    assert (draws[:, :10] == 1).all()
    assert (draws[:, 10:].sum(axis=1) == 10).all()
    assert draws[:, 10:].mean() == pytest.approx(1)
    assert draws[:, 10:].max() > 2


@pytest.mark.parametrize(("scatter", "noise"), [(1.0, 0.0), (1.0, 1.0), (0.0, 0.0)])
def test_the_interval_of_a_stratified_correlation_covers_that_of_all_weights(monkeypatch, scatter, noise):
    # The truth is what so many windows would measure of all weights: their noise lowers it.
    monkeypatch.setattr(fidelity, "RESAMPLES", 100)
    rng, covered, runs = np.random.default_rng(3), 0, 50
    score = np.exp(1.5 * rng.normal(size=8000))
    effect = score * np.exp(scatter * rng.normal(size=8000))

    def measure(at):
        shape = (len(at), 8)
        return effect[at][:, None] * np.exp(0.5 * rng.normal(size=shape) - 0.125) + noise * rng.normal(size=shape)

    rho = np.mean([weighted_spearman(score, measure(np.arange(8000)).mean(axis=1)) for _ in range(3)])
    stratum = np.searchsorted(np.quantile(score, [0.5, 0.9, 0.99]), score)
    for _ in range(runs):
        taken = [rng.choice(np.flatnonzero(stratum == s), 40, replace=False) for s in range(4)]
        at, inclusion = np.concatenate(taken), np.repeat([40 / (stratum == s).sum() for s in range(4)], 40)
        sample = SingleWeights(
            1, "s", "zero", measure(at), np.ones((160, 8)), ["s"], score[at][:, None], inclusion, stratum[at], {},
            ["q"] * 160, [0] * 160, 0,
        )  # fmt: skip
        row = next(
            r for r in fidelity._correlations(sample) if (r["outcome"], r["speaks_of"]) == ("ΔNLL", "all weights")
        )
        covered += row["low"] <= rho <= row["high"]
    assert covered >= stats.binom.ppf(0.005, runs, 0.92)


def test_studies_without_a_single_weight_sample_have_empty_tables(made):
    study = analysis.load(made)
    for table in ("fidelity_correlations", "precision_at", "calibration", "calibration_deciles", "above_noise"):
        assert getattr(analysis, table)(study).is_empty()
    assert analysis.score_correlations(study).is_empty()
