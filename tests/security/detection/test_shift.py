"""Tails and shift of sensitivity against scipy, closed forms and dense gradients."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kurtosis, spearmanr

from esa_ray.models.addressing import catalogue
from esa_ray.security.detection import scopes, shift, tails
from esa_ray.security.detection.sensitivity import Sensitivity, Shape
from tests.tiny import random_windows, tiny, window_gradients

WINDOWS = random_windows(3, 8)


def shape_of(values) -> Shape:
    found = Shape()
    for some in torch.as_tensor(np.asarray(values, dtype=np.float32)).split(1000):
        found.add(some)
    return found


def sorted_gini(x) -> float:
    x, n = np.sort(np.asarray(x, dtype=np.float64)), len(x)
    return float((2 * np.arange(1, n + 1) - n - 1) @ x / (n * x.sum()))


def test_hills_index_and_the_share_of_the_top_are_those_of_an_exact_pareto():
    n, alpha = 200_000, 1.5
    values = (np.arange(1, n + 1) / n) ** (-1 / alpha)
    found = shape_of(values).told()
    assert found["hill"] == pytest.approx(alpha, rel=0.01)
    assert found["top_share"] == pytest.approx(values[:200].sum() / values.sum(), rel=2**-7)


def test_the_tail_is_told_as_scipy_and_numpy_tell_it():
    values = np.random.default_rng(0).lognormal(-20, 2, 30_000).astype(np.float32)
    found, exact = shape_of(values).told(), np.sort(values.astype(np.float64))
    assert found["log_kurtosis"] == pytest.approx(math.log(kurtosis(exact, fisher=False)), abs=1e-9)
    assert found["gini"] == pytest.approx(sorted_gini(exact), abs=2**-8)
    assert found["top_share"] == pytest.approx(exact[-30:].sum() / exact.sum(), rel=2**-7)


def test_scores_without_a_tail_tell_nothing():
    assert all(math.isnan(value) for value in Shape().told().values())
    assert all(math.isnan(value) for value in shape_of(np.zeros(50)).told().values())
    assert math.isnan(shape_of(np.full(50, 3.0)).told()["log_kurtosis"])


@pytest.mark.parametrize(
    ("family", "attention", "ffn"),
    [("phi3", "self_attn", "mlp"), ("gpt2", ".attn.", "mlp.c"), ("mixtral", "self_attn", "mlp")],
)
def test_tails_are_those_of_dense_gradients_of_the_scopes_weights(family, attention, ffn):
    model = tiny(family)
    of = catalogue(model)
    found = tails.alone(Sensitivity.of(model, of, WINDOWS, 2))
    names = [tensor.name for tensor in of.tensors]
    dense = dict(zip(names, window_gradients(model, names, WINDOWS), strict=True))
    weights = {name: values.detach().double().numpy() for name, values in model.named_parameters()}
    tokens = WINDOWS[:, 1:].size
    scores = {
        "gxw": {n: np.abs(dense[n] * weights[n]).sum(0).ravel() / tokens for n in names},
        "fisher": {n: (dense[n] ** 2).sum(0).ravel() / tokens for n in names},
    }
    for metric, each in scores.items():
        for scope, word in {"model": "", "attention": attention, "ffn": ffn}.items():
            mine = np.concatenate([v for n, v in each.items() if word in n])
            told = {s: found[f"tails.{metric}.{scope}.{s}"] for s in ("log_kurtosis", "gini", "top_share")}
            assert told["log_kurtosis"] == pytest.approx(math.log(kurtosis(mine, fisher=False)), abs=1e-3)
            assert told["gini"] == pytest.approx(sorted_gini(mine), abs=0.01)
            top = np.sort(mine)[-math.ceil(len(mine) / 1000) :].sum() / mine.sum()
            assert told["top_share"] == pytest.approx(top, rel=0.02)


def test_what_became_of_ranks_is_as_scipy_and_numpy_tell_it():
    draw = np.random.default_rng(0)
    before = draw.lognormal(size=5000).round(2)  # with ties
    now, moved = before * draw.lognormal(0, 0.3, 5000), draw.lognormal(size=5000)
    weight = draw.normal(size=5000)
    found = shift.shifted(now, before, moved, weight)
    assert found["spearman"] == pytest.approx(spearmanr(now, before).statistic)
    assert found["moved_spearman"] == pytest.approx(spearmanr(moved, before).statistic)
    assert found["moved_norm"] == pytest.approx(math.log(np.linalg.norm(moved) / np.linalg.norm(weight)))
    assert found["moved_few"] == pytest.approx((np.sort(moved)[-5:] ** 2).sum() / (moved**2).sum())


def test_a_weight_that_rose_from_the_bottom_to_the_top_is_found():
    before = np.arange(1.0, 1001)
    now = before.copy()
    now[0] = 2000
    found = shift.shifted(now, before, np.zeros(1000), np.ones(1000))
    assert found["largest_rise"] == pytest.approx(999 / 1000)
    assert found["top_overlap"] == pytest.approx(9 / 10)
    assert math.isnan(found["moved_norm"])
    assert math.isnan(found["moved_unneeded"])


def test_what_moved_where_nothing_is_needed_is_found():
    before, moved = np.arange(1.0, 1001), np.full(1000, 1.0)
    moved[:10] = 30
    found = shift.shifted(before, before, moved, np.ones(1000))
    assert found["moved_unneeded"] == pytest.approx(9000 / 9990)
    assert found["moved_few"] == pytest.approx(900 / 9990)
    assert found["spearman"] == 1


def test_what_moved_where_no_text_comes_is_told_apart():
    before, moved = np.concatenate([np.zeros(5), np.arange(1.0, 201)]), np.full(205, 1.0)
    moved[:5], moved[5:7] = 4, 3  # the 1% that is least needed of what is reached
    found = shift.shifted(before, before, moved, np.ones(205))
    assert found["moved_unreached"] == pytest.approx(80 / (80 + 18 + 198))
    assert found["moved_unneeded"] == pytest.approx(18 / (18 + 198))


def test_equals_at_the_border_share_what_moved():
    assert shift.lowest(np.zeros(100), np.arange(100.0), 1) == pytest.approx(49.5)
    assert shift.lowest(np.array([3.0, 1, 2]), np.array([10.0, 20, 40]), 2) == 60


@pytest.mark.parametrize("compared", [1 << 20, 1000])
def test_shift_of_a_model_is_that_of_its_weights_as_they_stand(monkeypatch, compared):
    monkeypatch.setattr(scopes, "COMPARED", compared)
    old, new = tiny(seed=0), tiny(seed=0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=draw)
    of = catalogue(new)
    before, now = (Sensitivity.of(m, catalogue(m), WINDOWS, 2) for m in (old, new))
    found = shift.compared(of, now, before, dict(old.named_parameters()))
    names = [tensor.name for tensor in of.tensors]
    apart = -(-sum(tensor.size for tensor in of.tensors) // compared)
    assert apart == (1 if compared > 1000 else 6)

    def dense(model):
        weights = [dict(model.named_parameters())[n].detach().double().numpy() for n in names]
        gradients = window_gradients(model, names, WINDOWS)
        return [np.abs(g * w).sum(0).ravel()[::apart] for g, w in zip(gradients, weights, strict=True)], [
            w.ravel()[::apart] for w in weights
        ]

    (s_new, w_new), (s_old, w_old) = dense(new), dense(old)
    for scope, word in {"model": "", "attention": "self_attn", "ffn": "mlp"}.items():
        pick = [i for i, name in enumerate(names) if word in name]
        a, b, w, v = (np.concatenate([each[i] for i in pick]) for each in (s_new, s_old, w_new, w_old))
        assert found[f"shift.{scope}.spearman"] == pytest.approx(spearmanr(a, b).statistic, abs=1e-4)
        expected = math.log(np.linalg.norm(w - v) / np.linalg.norm(v))
        assert found[f"shift.{scope}.moved_norm"] == pytest.approx(expected, abs=1e-5)
        assert found[f"shift.{scope}.moved_spearman"] == pytest.approx(spearmanr(np.abs(w - v), b).statistic, abs=1e-3)
