import numpy as np
import pytest
import torch

from esa_ray.models.addressing import catalogue
from esa_ray.scoring.gather import score_tensors
from esa_ray.scoring.memory import activation_bytes, peak_bytes
from esa_ray.scoring.ranking import rank
from esa_ray.scoring.sample_sizes import SampleSizes, sizes
from esa_ray.spec import ScoreSpec
from tests.tiny import random_windows, tiny

SPECS = [
    ScoreSpec(metric="grad_x_weight"),
    ScoreSpec(metric="grad_squared", mode="global"),
    ScoreSpec(metric="act_mag", mode="per_tensor"),
    ScoreSpec(metric="super_activation"),
]


@pytest.mark.parametrize("family", ["llama", "mixtral"])
@pytest.mark.parametrize("apart", [False, True])
def test_the_sets_of_n_windows_are_those_that_n_windows_alone_would_give(family, apart):
    model, windows = tiny(family), random_windows(8)
    tensors = catalogue(model).select(("q", "k", "v", "o", "gate", "up", "down"))
    growth = SampleSizes(SPECS, 5, len(windows))
    metrics = [s.metric for s in SPECS]
    budget = None
    if apart:
        one = [t for t in tensors if t.layer == 0]
        budget = peak_bytes(one, 2, activation_bytes(model, tensors, torch.as_tensor(windows[:4])))
    score_tensors(model, tensors, windows, metrics, watch=growth, watch_at=growth.at, budget=budget)
    for spec in SPECS:
        rows = growth.table(spec, seed=3, model="m").to_pylist()
        assert {r["windows"] for r in rows} == {2, 4, 8}
        for n in (2, 4, 8):
            alone = rank(score_tensors(model, tensors, windows[:n], [spec.metric]), spec, 5, ["super"], seed=3)
            wanted = {(r["tensor"], r["flat"], r["rank"]) for r in alone.to_pylist()}
            assert {(r["tensor"], r["flat"], r["rank"]) for r in rows if r["windows"] == n} == wanted


def test_sizes_halve_down_to_two_and_end_with_all():
    assert sizes(16) == (2, 4, 8, 16)
    assert sizes(200) == (12, 25, 50, 100, 200)
    assert sizes(1) == (1,)


def test_estimates_ensembles_and_data_free_scores_are_left_out():
    left = [ScoreSpec(metric=m) for m in ("hutchinson_abs", "magnitude", "grad_x_weight+act_mag")]
    assert SampleSizes(left, 5, 16).at == ()
    for spec in left:
        assert len(SampleSizes([*left, *SPECS], 5, 16).table(spec, seed=0)) == 0
    assert np.all(np.diff(SampleSizes(SPECS, 5, 16).at) > 0)
