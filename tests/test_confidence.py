"""Confidence of the next token, against scikit-learn and the definition."""

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve

from analysis.run.protocols import expected_calibration_error
from esa_ray.evaluation import BINS, Confidence, confident, evaluate
from tests.tiny import random_windows, tiny


def test_bins_are_those_of_scikit_learn():
    model, windows = tiny("llama"), random_windows(40, 12)
    with torch.no_grad():  # a peaked head, so that confidences are spread
        model.lm_head.weight.mul_(30)
    outcome, found = confident(model, windows, batch_size=7)
    assert outcome == evaluate(model, windows)
    with torch.no_grad():
        p = model(torch.from_numpy(windows)).logits[:, :-1].double().softmax(-1)
    top, choice = p.max(-1)
    right = (choice == torch.from_numpy(windows)[:, 1:]).numpy().ravel()
    accuracy, confidence = calibration_curve(right, top.numpy().ravel(), n_bins=BINS)
    filled = np.array(found.counts) > 0
    assert np.array(found.hits)[filled] / np.array(found.counts)[filled] == pytest.approx(accuracy)
    assert np.array(found.sums)[filled] / np.array(found.counts)[filled] == pytest.approx(confidence, rel=1e-4)
    assert sum(found.counts) == 40 * 11
    shares = np.array(found.counts)[filled] / sum(found.counts)
    ece = expected_calibration_error(*map(np.array, (found.counts, found.sums, found.hits)))
    assert ece == pytest.approx((shares * abs(accuracy - confidence)).sum(), abs=1e-5)


def test_tokens_without_finite_logits_are_counted_and_stand_in_no_bin():
    found = Confidence()
    logits = torch.zeros(2, 2, 5)
    logits[0, 1, 2], logits[1, 1, 0] = float("nan"), float("inf")
    found.add(logits, torch.zeros(2, 2, dtype=torch.long))
    assert found.nonfinite == 2
    assert sum(found.counts) == 2


def test_a_calibrated_model_has_no_error_and_a_boastful_one_has():
    draw = np.random.default_rng(0)
    p = draw.uniform(0, 1, 200_000)
    at = (p * BINS).astype(int)
    counts, sums = np.bincount(at, minlength=BINS), np.bincount(at, p, BINS)
    right = np.bincount(at, draw.uniform(size=len(p)) < p, BINS)
    assert expected_calibration_error(counts, sums, right) < 0.01
    boast = np.bincount(at, draw.uniform(size=len(p)) < p / 2, BINS)
    assert expected_calibration_error(counts, sums, boast) == pytest.approx(0.25, abs=0.01)
