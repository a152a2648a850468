"""A mixed model of planted effects over kinds, groups and windows."""

import numpy as np
import pytest
from scipy import stats

from analysis.damage.mixed import mixed_effects
from analysis.damage.paired import window_level
from analysis.statistics.crossed import signed_log
from tests.analysis.cells import TOKENS, cell, study_of, the

W = 16
BASE = np.linspace(280.0, 320.0, W)


def written(directory, y):
    """Cells whose signed-log ΔNLL are ``y[kind, group, window]``, the groups super and random_k."""
    rows = []
    for i, kind in enumerate(y):
        for group, values in zip(("super", "random_k"), kind, strict=True):
            raw = np.sign(values) * 1e-3 * np.expm1(np.abs(values))
            rows.append(cell(raw, base=BASE, group=group, perturbation="bit_flip", variant=f"class {i}"))
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
