"""From drawn sets to p where nothing is to be found: random sets against random sets in a trained model."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from analysis.statistics.crossed import crossed_interval, crossed_p, signed_log
from analysis.statistics.paired import paired_p
from esa_ray.evaluation import evaluate
from esa_ray.models.addressing import catalogue
from esa_ray.perturb.edit import perturbed
from esa_ray.scoring.controls import random_k
from esa_ray.spec import PerturbSpec
from tests.engine.conftest import TEXT

# One process makes the studies for all.
ONE_PROCESS = True  # read by tests/conftest.py

STUDIES, SEEDS, WINDOWS, LENGTH, K = 400, 5, 10, 32, 60
BYTES = np.frombuffer(TEXT.encode(), dtype=np.uint8).astype(np.int64)


def _windows(rng, n: int, length: int) -> np.ndarray:
    return np.stack([BYTES[i : i + length] for i in rng.integers(0, len(BYTES) - length, n)])


def _trained() -> LlamaForCausalLM:
    """Two layers, byte by byte, some seconds: enough that damage does harm.

    In float64, whose rounding differs between machines too little to lead to another model: how often random sets
    differ by chance depends a little on the model, and so did whether these tests passed.
    """
    config = LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).double()
    optimizer, rng = torch.optim.AdamW(model.parameters(), lr=1e-2), np.random.default_rng(0)
    for _ in range(250):
        tokens = torch.as_tensor(_windows(rng, 16, LENGTH + 1))
        loss = model(tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1.0
    return model.float().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def studies():
    """ΔNLL of two random sets, (studies, 2, seeds, windows), nats per token."""
    model, rng = _trained(), np.random.default_rng(1)
    found = catalogue(model)
    tensors = found.select(("q", "v", "gate", "down"))
    left_out = np.arange(K)  # stands for the super weights, which no control may hold
    damage = np.empty((STUDIES, 2, SEEDS, WINDOWS))
    for study in range(STUDIES):
        windows = _windows(rng, WINDOWS, LENGTH)
        intact = np.array(evaluate(model, windows, WINDOWS).nll)
        for seed in range(SEEDS):
            for side in range(2):
                drawn = 2 * (study * SEEDS + seed) + side
                chosen = {t.name: random_k(t, left_out, None, drawn) for t in tensors}
                with perturbed(found, chosen, PerturbSpec(kind="sign_flip"), drawn):
                    nll = np.array(evaluate(model, windows, WINDOWS).nll)
                damage[study, side, seed] = (nll - intact) / (LENGTH - 1)
    return damage


def test_random_against_random_is_significant_five_percent_of_the_time(studies):
    # As `comparisons` tests: on the scale on which damage spreads alike.
    share = np.mean([crossed_p(signed_log(a) - signed_log(b)) < 0.05 for a, b in studies])
    assert 0.03 <= share <= 0.07


def test_intervals_of_a_difference_that_is_none_hold_zero(studies):
    held = np.mean([(i := crossed_interval(a - b)).low <= 0 <= i.high for a, b in studies])
    assert 0.93 <= held <= 0.97


def test_a_p_that_takes_the_sets_as_given_is_far_above_its_level(studies):
    # Two given random sets do differ: this is why the reported p counts the sets as drawn, too.
    assert np.mean([paired_p(a - b) < 0.05 for a, b in studies[:60]]) > 0.2


def test_against_the_mean_of_several_control_sets_it_is_five_percent_too(studies):
    """Three seeds' sets against the mean of two others each, all drawn alike: nothing is to be found."""
    sets = signed_log(studies).reshape(STUDIES, 2 * SEEDS, WINDOWS)
    share = np.mean([crossed_p(s[:3] - (s[3:6] + s[6:9]) / 2) < 0.05 for s in sets])
    assert 0.02 <= share <= 0.07


def test_more_control_sets_find_smaller_differences():
    """Sets that cost alike, controls that differ: the control's share in the variance falls by their number."""
    rng = np.random.default_rng(3)
    treated = 0.8 + 0.1 * rng.normal(size=(500, 3, 1)) + 0.1 * rng.normal(size=(500, 3, WINDOWS))
    controls = 0.5 * rng.normal(size=(500, 3, 5, 1)) + 0.1 * rng.normal(size=(500, 3, 5, WINDOWS))
    one, five = (
        np.mean([crossed_p(t - c[:, :n].mean(axis=1)) < 0.05 for t, c in zip(treated, controls, strict=True)])
        for n in (1, 5)
    )
    assert five > one + 0.3
