"""The weights that an arm is confined to: against the definition of the score, and the controls of a ranking."""

import numpy as np
import pytest
import torch

from esa_ray.applications.calibrated import Calibrated
from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.scoring.chosen import chosen
from esa_ray.scoring.gather import score_tensors
from esa_ray.scoring.ranking import rank
from esa_ray.security.attack import confined
from esa_ray.spec import ScoreSpec
from esa_ray.spec.security import AttackSpec
from tests.security.attack.nets import SEARCH, attacked, net, unmoved
from tests.tiny import summed_nll

MATRICES = ("attention", "ffn")


def sets(arm, model=None, seed=7, **how):
    model = model or net(2)
    return confined(AttackSpec(arm=arm, **how), Calibrated(model, catalogue(model), SEARCH), seed)


def test_the_super_set_holds_the_largest_sums_of_each_windows_gradient_times_the_weight():
    model = net(2)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for window in SEARCH:
        model.zero_grad()
        summed_nll(model, window).backward()
        for name, p in model.named_parameters():
            sums[name] += (p.grad * p).abs().detach()
    every = sorted(((float(v), n, i) for n, s in sums.items() for i, v in enumerate(s.flatten())), reverse=True)[:25]
    expected = {}
    for _, name, flat in every:
        expected.setdefault(name, []).append(flat)
    found = sets("guided-super", model.requires_grad_(False), k=25)
    assert {name: flat.tolist() for name, flat in found.items()} == expected


@pytest.mark.parametrize(("arm", "group"), [("guided-random", "random_k"), ("guided-matched", "matched_k")])
@pytest.mark.parametrize("draw", [0, 2])
def test_controls_are_those_of_a_ranking_of_the_same_depth(arm, group, draw):
    model = net(2)
    spec = ScoreSpec(metric="grad_x_weight_abs", mode="global", components=MATRICES)
    tensors = catalogue(model).select(spec.components)
    ranking = rank(score_tensors(model, tensors, SEARCH, [spec.metric]), spec, 30, ["super", group], seed=7, draws=3)
    found = sets(arm, model, k=30, draw=draw, components=MATRICES)
    theirs = chosen(ranking, group, 30, draw=draw)
    assert {n: sorted(f.tolist()) for n, f in found.items()} == {n: sorted(f.tolist()) for n, f in theirs.items()}


def test_a_control_has_as_many_weights_of_each_tensor_and_none_of_the_super_set():
    supers, controls = (sets(arm, k=40, components=MATRICES) for arm in ("guided-super", "guided-matched"))
    assert {n: len(f) for n, f in supers.items()} == {n: len(f) for n, f in controls.items()}
    assert not any(np.isin(supers[name], controls[name]).any() for name in supers)


@pytest.mark.parametrize("arm", ["guided-super", "guided-random", "guided-matched", "random-super"])
def test_a_confined_arm_flips_none_but_its_weights(arm):
    model = net(2)
    spec = AttackSpec(arm=arm, dtype="int8", k=12, budget=15, components=MATRICES)
    within = sets(arm, model, seed=0, k=12, components=MATRICES)
    rows = attacked(model, spec, report=unmoved)[1:]
    weights = catalogue(model)
    assert len(rows) == 15
    assert all(weights[r["tensor"]].index(r["row"], r["col"]) in within[r["tensor"]] for r in rows)


@pytest.mark.parametrize("arm", ["guided", "random", "data-free"])
def test_an_arm_that_is_not_confined_has_no_set(arm):
    assert sets(arm) is None


def test_a_set_of_all_weights_is_refused():
    with pytest.raises(EsaError, match="--topk 64 leaves none of the 64 weights of o out; lower it"):
        sets("guided-super", net(), k=64, components=("o",))


def test_an_ensemble_of_scores_chooses_too():
    assert sum(map(len, sets("guided-super", k=20, score="magnitude+grad_x_weight_abs").values())) == 20
