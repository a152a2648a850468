"""Which weights an arm trains, against rankings that are spelled out."""

import numpy as np
import pytest
import torch

from esa_ray.applications import calibrated
from esa_ray.applications.calibrated import Calibrated
from esa_ray.applications.tuning.choosing import Eligible, trained_by
from esa_ray.models.addressing import catalogue
from esa_ray.randomness import stream_key, uniform
from tests.applications.hooked import inputs_of, matrix
from tests.applications.tuning.loops import SEED, SOURCE, TRAIN, asked
from tests.tiny import tiny, window_gradients

FRACTION = 0.03


def chosen(model, spec, seed=SEED):
    weights = catalogue(model)
    source, target = Calibrated(model, weights, SOURCE), Calibrated(model, weights, TRAIN)
    eligible = Eligible(weights, spec.components)
    found = trained_by(spec, seed, eligible, source, target)
    return {t.name: np.arange(t.size) if at is None else at.numpy() for t, at in found.items()}


def names_of(model, components=("attention", "ffn")):
    return [t.name for t in catalogue(model).select(asked(components=components).components)]


def first(scores: dict[str, np.ndarray], n: int) -> dict[str, list[int]]:
    """The n largest, by score, then tensor in the model's order, then flat index."""
    every = [(at, flat, s) for at, each in enumerate(scores.values()) for flat, s in enumerate(each.ravel())]
    ranked = sorted((-float(s), at, flat) for at, flat, s in every)
    names, found = list(scores), dict[str, list[int]]()
    for _, at, flat in ranked[:n]:
        found.setdefault(names[at], []).append(flat)
    return {name: sorted(flat) for name, flat in found.items()}


def as_lists(found):
    return {name: flat.tolist() for name, flat in found.items()}


def weights_of(model, names):
    return {name: model.get_parameter(name).double().numpy() for name in names}


SCORED = {
    "critical-source": lambda g, w: np.abs(g * w).sum(0),
    "bottom": lambda g, w: -np.abs(g * w).sum(0),
    "critical-target": lambda g, w: (g**2).sum(0),
    "magnitude": lambda g, w: np.abs(w),
}


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "mixtral"])
@pytest.mark.parametrize("arm", SCORED)
def test_an_arm_trains_the_first_of_all_its_weights_by_its_score(family, arm):
    model = tiny(family)
    names = names_of(model)
    windows = TRAIN if arm == "critical-target" else SOURCE
    gradients, weights = window_gradients(model, names, windows), weights_of(model, names)
    scores = {name: SCORED[arm](g, weights[name]) for name, g in zip(names, gradients, strict=True)}
    n = int(FRACTION * sum(each.size for each in scores.values()))
    found = as_lists(chosen(model, asked(arm=arm, fraction=FRACTION)))
    if arm == "bottom" and family == "mixtral":  # scores that are 0 in float32 aren't in float64
        assert sum(map(len, found.values())) == n
        worst = max(-scores[name].ravel()[flat].min() for name, flat in found.items())
        assert worst <= np.sort(np.concatenate([-s.ravel() for s in scores.values()]))[n] * (1 + 1e-4)
    else:
        assert found == first(scores, n)


@pytest.mark.parametrize("arm", ["magnitude", "bottom"])
def test_of_equal_scores_the_first_is_trained(arm):
    model = tiny("llama")
    for name in names_of(model):
        parameter = model.get_parameter(name)
        parameter.data.copy_(0.25 * torch.randint(0, 3, parameter.shape, generator=torch.Generator().manual_seed(1)))
    sign = -1 if arm == "bottom" else 1
    scores = {name: sign * np.abs(w) for name, w in weights_of(model, names_of(model)).items()}
    n = int(0.2 * sum(each.size for each in scores.values()))
    assert as_lists(chosen(model, asked(arm=arm, score="magnitude", fraction=0.2))) == first(scores, n)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_scores_of_activations_choose_too(family):
    model = tiny(family)
    inputs = inputs_of(model, SOURCE, "")
    scores = {}
    for name in names_of(model):
        wanda_OI = matrix(model, name, None).double().abs() * inputs[name, None].square().sum(0).sqrt()
        scores[name] = (wanda_OI.T if family == "gpt2" else wanda_OI).numpy()
    n = int(FRACTION * sum(each.size for each in scores.values()))
    assert as_lists(chosen(model, asked(arm="critical-source", score="act_mag", fraction=FRACTION))) == first(scores, n)


def test_many_tunings_of_one_text_gather_its_statistics_once(monkeypatch):
    model, passes = tiny("llama"), []
    score = calibrated.score_tensors
    monkeypatch.setattr(calibrated, "score_tensors", lambda *a, **k: passes.append(a[3]) or score(*a, **k))
    weights = catalogue(model)
    eligible, text = Eligible(weights, asked().components), Calibrated(model, weights, SOURCE)
    for how in ({"arm": "critical-source"}, {"arm": "bottom"}, {"arm": "critical-source", "fraction": 0.1}):
        trained_by(asked(**how), SEED, eligible, text, text)
    trained_by(asked(arm="critical-source", score="act_mag+grad_x_weight_abs"), SEED, eligible, text, text)
    assert passes == [["grad_x_weight_abs"], ["act_mag"]]


def test_an_ensemble_chooses_by_the_mean_logarithm_of_its_ranks_in_the_whole_model():
    model = tiny("llama")
    names = names_of(model)
    gradients, weights = window_gradients(model, names, SOURCE), weights_of(model, names)
    members = [
        np.concatenate([np.abs(g * weights[n]).sum(0).ravel() for n, g in zip(names, gradients, strict=True)]),
        np.concatenate([np.abs(weights[n]).ravel() for n in names]),
    ]
    logs = [np.log((1 + np.argsort(np.argsort(-each))) / (len(each) + 1)) for each in members]
    combined, at, scores = -np.mean(logs, axis=0), 0, {}
    for name in names:
        scores[name] = combined[at : at + weights[name].size]
        at += weights[name].size
    spec = asked(arm="critical-source", score="grad_x_weight_abs+magnitude", fraction=FRACTION)
    assert as_lists(chosen(model, spec)) == first(scores, int(FRACTION * at))


def test_a_random_arm_trains_those_with_the_largest_of_a_stream_of_seed_and_draw():
    model = tiny("llama")
    names, n = names_of(model), sum(model.get_parameter(name).numel() for name in names_of(model))
    found = {}
    for seed, draw in ((7, 0), (7, 1), (8, 0)):
        scores = {
            name: uniform(stream_key("tune", seed, draw, name), np.arange(model.get_parameter(name).numel()))
            for name in names
        }
        found[seed, draw] = as_lists(chosen(model, asked(arm="random", fraction=0.1, draw=draw), seed))
        assert found[seed, draw] == first(scores, n // 10)
    assert len({str(each) for each in found.values()}) == 3
    fewer = as_lists(chosen(model, asked(arm="random", fraction=0.05), 7))
    assert all(set(flat) <= set(found[7, 0][name]) for name, flat in fewer.items())


def test_of_a_fused_matrix_only_rows_of_the_components_compete_and_count():
    model = tiny("phi3")
    found = chosen(model, asked(arm="magnitude", fraction=0.5, components=("v",)))
    names = [f"model.layers.{i}.self_attn.qkv_proj.weight" for i in (0, 1)]
    scores = {}
    for name, weights in weights_of(model, names).items():
        scores[name] = np.where(np.arange(32)[:, None] >= 24, np.abs(weights), -1.0)
    assert as_lists(found) == first(scores, 128)


def test_the_fraction_is_read_as_it_is_written():
    found = chosen(tiny("llama"), asked(arm="random", fraction=0.07, components=("k", "v", "q")))
    assert sum(map(len, found.values())) == 71  # 0.07 · 1024 = 71.68
    found = chosen(tiny("llama"), asked(arm="random", fraction=0.29, components=("down", "norm")))
    assert sum(map(len, found.values())) == 245  # 0.29 · 848 = 245.92
