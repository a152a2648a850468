import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from esa_ray.models.addressing import catalogue
from esa_ray.scoring import ensemble as module
from esa_ray.scoring.ensemble import RankEnsemble
from esa_ray.scoring.gather import score_tensors
from esa_ray.scoring.pools import pool_of
from esa_ray.scoring.ranking import rank
from esa_ray.scoring.scores import Reading, Scores
from esa_ray.spec import ScoreSpec
from tests.tiny import random_windows, tiny

MEMBERS = ("grad_x_weight", "act_mag")


def brute_force(scores, spec) -> list[np.ndarray]:
    """The rank product over concatenated pools, by scipy's ranks (ties in the middle)."""
    totals = [np.full(t.size, np.nan) for t in scores.tensors]
    for pool in {pool_of(t, spec.mode) for t in scores.tensors}:
        mine = [i for i, t in enumerate(scores.tensors) if pool_of(t, spec.mode) == pool]
        masks = [
            np.isin(scores.tensors[i].locate(np.arange(scores.tensors[i].size))["component"], spec.components)
            for i in mine
        ]
        combined = 0.0
        for metric in spec.metric.split("+"):
            values = np.concatenate([scores.of(metric, i).numpy()[m] for i, m in zip(mine, masks, strict=True)])
            combined = combined - np.log(rankdata(-values) / (len(values) + 1)) / 2
        ends = np.cumsum([m.sum() for m in masks])[:-1]
        for i, mask, part in zip(mine, masks, np.split(combined, ends), strict=True):
            totals[i][mask] = part
    return totals


@pytest.mark.parametrize("mode", ["per_tensor", "per_layer", "global"])
@pytest.mark.parametrize(("family", "components"), [("llama", ("attention", "ffn")), ("phi3", ("q", "up"))])
def test_an_ensemble_is_the_rank_product_of_its_members(family, components, mode):
    model, windows = tiny(family), random_windows(3)
    tensors = catalogue(model).select(("q", "k", "v", "o", "gate", "up", "down"))
    scores = score_tensors(model, tensors, windows, MEMBERS)
    spec = ScoreSpec(metric="+".join(MEMBERS), mode=mode, components=components)
    ensemble = RankEnsemble(scores, spec)
    for index, wanted in enumerate(brute_force(scores, spec)):
        there = ~np.isnan(wanted)
        if there.any():
            found = ensemble.of(spec.metric, index).numpy()[there]
            np.testing.assert_allclose(found, wanted[there], atol=1e-5)


def test_below_the_exact_top_ranks_come_from_bins(monkeypatch):
    monkeypatch.setattr(module, "EXACT", 20)
    model, windows = tiny("llama"), random_windows(3)
    tensors = catalogue(model).select(("q", "k", "v", "o", "gate", "up", "down"))
    scores = score_tensors(model, tensors, windows, MEMBERS)
    spec = ScoreSpec(metric="+".join(MEMBERS), mode="global")
    ensemble = RankEnsemble(scores, spec)
    found = np.concatenate([ensemble.of(spec.metric, i).numpy() for i in range(len(tensors))])
    wanted = np.concatenate(brute_force(scores, spec))
    assert 0 < np.abs(found - wanted).max() < 0.05
    best = np.argsort(-wanted)[:3]
    np.testing.assert_allclose(found[best], wanted[best], atol=0.02)


def test_what_all_members_put_high_comes_first_and_one_members_favourite_does_not():
    class Fixed(Scores):
        def __init__(self, tensors, values):
            super().__init__(tensors, {}, tokens=1)
            self._values = values

        def reading(self, metric, index):
            return Given(self, metric, index)

    class Given(Reading):
        def __call__(self, flat):
            return self.scores._values[self.metric][self.index][flat]

    tensors = catalogue(tiny("llama")).select(("down",))[:1]
    n = tensors[0].size
    a, b = torch.linspace(1, 2, n), torch.linspace(2, 1, n)
    a[7], b[7] = 1.99, 1.99  # good by both
    a[0] = 1e9  # first by one, whose values would drown the other's; the other puts it... first as well
    b[0] = 1e-9  # ... no: last
    scores = Fixed(tensors, {"grad_x_weight": [a], "act_mag": [b]})
    table = rank(scores, ScoreSpec(metric="grad_x_weight+act_mag", components=("down",)), 1, ["super"], seed=0)
    assert table["flat"].to_pylist() == [7]


def test_the_order_of_members_is_one():
    assert ScoreSpec(metric="act_mag+grad_x_weight") == ScoreSpec(metric="grad_x_weight+act_mag")
