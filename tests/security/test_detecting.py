"""Detection from Python: a verdict by the detector's own formula, its caveats, and the model as it was."""

import math

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.security.detecting import Detection, backdoor_detection
from esa_ray.security.detection import Feature, feature_names, features
from esa_ray.spec import DataSpec
from esa_ray.spec.detector import Calibration, Detector
from tests.tiny import state_bits

WINDOWS = np.arange(40).reshape(5, 8) % 16
TOLD = Calibration(
    bases=("llama-0.3m",), insertions=("training",), negatives=("clean",), poisoned=30, others=30, auroc=0.9,
    auroc_low=0.8, auroc_high=0.97, recall=0.8, false_alarms=0.05,
    data=DataSpec(calibration_windows=32), seed=1337,
)  # fmt: skip


def detector(**changes):
    """Two features, of which the first speaks for a backdoor and the second against it."""
    plain = {
        "with_reference": False, "features": ("a", "b"), "means": (1.0, 0.0), "scales": (2.0, 1.0),
        "coefficients": (4.0, -1.0), "intercept": 0.5, "threshold": 0.6, "calibration": TOLD,
    }  # fmt: skip
    return Detector.model_validate(plain | changes)


def found(a, b, judge=None):
    return Detection([Feature("a", "tails", a, False), Feature("b", "tails", b, False)], (4, 8), judge or detector())


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=16, n_positions=8)).eval()


@pytest.fixture
def other():
    torch.manual_seed(1)
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=16, n_positions=8)).eval()


def test_the_verdict_is_that_of_the_logistic_formula():
    # 0.5 + 4·(2 − 1)/2 − 1·3 = −0.5; and with b = 0 it is 2.5.
    low, high = found(2.0, 3.0), found(2.0, 0.0)
    assert low.probability == pytest.approx(1 / (1 + math.exp(0.5)))
    assert (low.flagged, high.flagged) == (False, True)
    assert (low.verdict, high.verdict) == ("nothing suspicious", "suspicious")
    assert low.contributions == {"b": -3.0, "a": 2.0}
    assert [*low.contributions] == ["b", "a"]


def test_a_share_of_models_with_this_verdict_is_bayes():
    (rare, one), (half, two) = found(9.0, 0.0).chances([0.01, 0.5])
    assert (rare, half) == (0.01, 0.5)
    assert one == pytest.approx(0.01 * 0.8 / (0.01 * 0.8 + 0.99 * 0.05))
    assert two == pytest.approx(0.8 / 0.85)
    ((_, missed),) = found(0.0, 9.0).chances([0.01])
    assert missed == pytest.approx(0.01 * 0.2 / (0.01 * 0.2 + 0.99 * 0.95))


def test_values_like_none_of_the_population_are_named():
    assert found(1.0 + 2 * 5.0, -5.0).unlike == []
    assert found(11.1, -5.0).unlike == ["a"]
    assert found(math.nan, math.inf).unlike == ["a", "b"]


def test_features_are_those_of_the_model_and_it_is_left_as_it_was(model, other):
    before, beside = state_bits(model), state_bits(other)
    alone = backdoor_detection(model, windows=WINDOWS)
    both = backdoor_detection(model, other, windows=WINDOWS)
    assert (state_bits(model), state_bits(other)) == (before, beside)
    assert [*alone.values] == [*feature_names(False)]
    assert [*both.values] == [*feature_names(True)]
    wanted = features(
        model, catalogue(model), WINDOWS, reference={name: p.detach() for name, p in other.named_parameters()}
    )
    assert np.array_equal([both.values[f.name] for f in wanted], [f.value for f in wanted], equal_nan=True)
    assert (alone.flagged, alone.verdict, alone.probability, alone.contributions, alone.unlike) == (
        None,
        None,
        None,
        {},
        [],
    )
    assert (alone.windows, alone.chances([0.1])) == ((5, 8), [])


def test_a_detector_judges_by_what_is_measured_and_by_its_file_alike(model, tmp_path):
    name = "tails.gxw.model.gini"
    value = backdoor_detection(model, windows=WINDOWS).values[name]
    judge = detector(features=(name,), means=(value - 1,), scales=(1.0,), coefficients=(3.0,), intercept=0.0)
    (tmp_path / "detector.json").write_text(judge.model_dump_json())
    for given in (judge, tmp_path / "detector.json", str(tmp_path / "detector.json")):
        found = backdoor_detection(model, windows=WINDOWS, detector=given)
        assert found.probability == pytest.approx(1 / (1 + math.exp(-3)))
        assert found.flagged


def test_what_a_detector_cannot_be_used_for_is_refused(model, other, tmp_path):
    (tmp_path / "no.json").write_text("{}")
    for given, baseline, said in (
        (detector(with_reference=True), None, "compares a model with the one before it was trained on"),
        (detector(), other, "judges a model by itself; leave the reference out"),
        (detector(), None, "goes by a, which isn't measured here"),
        (tmp_path / "no.json", None, r"no.json is no detector; give results of esa backdoors"),
        (tmp_path / "none.json", None, "none.json can't be read"),
        (None, model, "sensitivity_baseline is the model itself"),
    ):
        with pytest.raises(EsaError, match=said):
            backdoor_detection(model, baseline, windows=WINDOWS, detector=given)
    with pytest.raises(EsaError, match="needs windows=, or a tokenizer="):
        backdoor_detection(model)
