"""Scores of a model whose weights are on the CPU or on disk between forwards are those of the whole model."""

import pytest
import torch

from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.scoring.gather import score_tensors
from esa_ray.scoring.memory import activation_bytes, peak_bytes
from esa_ray.scoring.ranking import rank
from esa_ray.spec import ScoreSpec
from tests.models.conftest import WINDOWS, all_bits, pair

__all__ = ["pair"]
MATRICES = ("q", "k", "v", "o", "gate", "up", "down", "router")
METRICS = ("grad_x_weight", "grad_x_weight_abs", "grad_squared", "act_mag", "super_activation", "magnitude")


def test_every_score_is_that_of_the_whole_model(pair):
    whole, away = (score_tensors(m, catalogue(m).select(MATRICES), WINDOWS, METRICS) for m in pair)
    assert [t.name for t in whole.tensors] == [t.name for t in away.tensors]
    assert any(t.offloaded for t in away.tensors)
    for metric in METRICS:
        for index in range(len(whole.tensors)):
            torch.testing.assert_close(away.of(metric, index), whole.of(metric, index), rtol=1e-6, atol=0)


def test_a_block_at_a_time_and_the_same_ranking(pair):
    before = all_bits(pair[1])
    tables = []
    for model in pair:
        tensors = catalogue(model).select(MATRICES)
        first = [t for t in tensors if t.layer == 0]
        budget = peak_bytes(first, 2, activation_bytes(model, tensors, torch.as_tensor(WINDOWS)))
        scores = score_tensors(model, tensors, WINDOWS, METRICS[1:3], budget=budget)
        groups = ["super", "random_k", "matched_k", "bottom_k"]
        tables.append(rank(scores, ScoreSpec(metric="grad_squared"), 7, groups, seed=1).drop_columns("score"))
    assert tables[0].equals(tables[1])
    assert all_bits(pair[1]) == before


def test_what_cannot_be_differentiated_twice_is_refused(pair):
    model = pair[1]
    with pytest.raises(EsaError, match="whole model"):
        score_tensors(model, catalogue(model).select(MATRICES), WINDOWS, ["hutchinson_diag"])
