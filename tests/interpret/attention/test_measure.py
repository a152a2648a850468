"""What damage does to attention, against transformers' own outputs of a plain forward pass."""

import numpy as np
import pytest
import torch

from esa_ray import EsaError, PerturbSpec, catalogue, perturbed
from esa_ray.interpret.attention import Attending, attended
from esa_ray.schema import TABLES
from tests.families import build
from tests.interpret.attention.dense import Dense

WINDOWS = np.random.default_rng(0).integers(0, 48, (5, 16))
FAMILIES = ["llama", "gpt2", "gpt_neox", "phi3", "gemma", "mixtral", "gemma2", "qwen2"]
COLUMNS = [f"{name}{end}" for name in ("sink", "entropy", "previous", "spike") for end in ("", "_intact")]
ZERO = PerturbSpec(kind="zero")


def _damage(model, layer):
    """A weight of a block, the largest of its last matrix."""
    weights = catalogue(model)
    tensor = [t for t in weights.tensors if t.layer == layer and any(p.component == "down" for p in t.parts)][-1]
    flat = torch.cat([slot.parameter.detach().flatten() for slot in tensor.slots]).abs()
    return weights, {tensor.name: np.array([int(flat[: tensor.size].argmax())])}


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_what_transformers_own_attention_shows(family):
    model = build(family)
    before = Dense.of(model, WINDOWS)
    intact = Attending(model, WINDOWS, batch_size=2)
    weights, there = _damage(model, layer=0)
    with perturbed(weights, there, ZERO, seed=0):
        after, rows = Dense.of(model, WINDOWS), attended(intact)
    assert [row["block"] for row in rows] == list(range(len(rows)))
    for row in rows:
        for name in ("sink", "entropy", "previous", "spike", "spike_channel", "spike_first"):
            assert row[name] == pytest.approx(after.of_block(name, row["block"]), rel=2e-4, abs=1e-6), name
            assert row[f"{name}_intact"] == pytest.approx(before.of_block(name, row["block"]), rel=2e-4, abs=1e-6), name
        assert row["delta_nll"] == pytest.approx(after.nll - before.nll, abs=2e-5)
        assert row["delta_z"] == pytest.approx(after.moved(before), rel=2e-3)
    assert rows[-1]["entropy"] != rows[-1]["entropy_intact"]


def test_an_intact_model_changes_nothing_to_the_bit():
    intact = Attending(build("llama"), WINDOWS, batch_size=2)
    for start in (None, 0, 1):
        for row in attended(intact, start):
            assert all(row[name] == row[f"{name}_intact"] for name in ("sink", "elsewhere", "entropy", "spike"))
            assert (row["delta_z"], row["delta_nll"], row["status"]) == (0.0, [0.0] * 5, "ok")


@pytest.mark.parametrize("hold", [None, 1])
def test_blocks_before_the_damage_are_as_intact_and_a_resumed_pass_is_the_whole_one(hold):
    model = build("gemma3")
    intact = Attending(model, WINDOWS, batch_size=3, hold=hold)
    weights, there = _damage(model, layer=2)
    start = intact.prepare(weights[next(iter(there))])
    assert start == 2
    with perturbed(weights, there, ZERO, seed=0):
        resumed, whole = attended(intact, start), attended(intact)
    for row, same in zip(resumed, whole, strict=True):
        assert row["sink"] == pytest.approx(same["sink"], abs=1e-7)
        assert row["delta_nll"] == pytest.approx(same["delta_nll"], abs=1e-6)
        if row["block"] < 2:
            assert row["entropy"] == row["entropy_intact"]
            assert row["spike"] == row["spike_intact"]


def test_rows_have_the_columns_of_the_table():
    intact = Attending(build("llama"), WINDOWS)
    (row, _) = attended(intact)
    assert set(row) <= set(TABLES["attention"].names)
    assert set(COLUMNS) < set(row)


def test_attention_is_what_the_config_says_afterwards():
    model = build("llama")
    before = model.config._attn_implementation
    attended(Attending(model, WINDOWS))
    assert model.config._attn_implementation == before


def test_a_loss_that_is_no_number_is_divergence():
    model = build("llama")
    intact = Attending(model, WINDOWS)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    assert {row["status"] for row in attended(intact)} == {"diverged"}


def test_a_model_without_attention_is_refused():
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=48, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(EsaError, match="patterns, keys and values can't be seen"):
        Attending(model.eval(), WINDOWS)


def test_few_windows_run_together_where_patterns_are_large(monkeypatch):
    monkeypatch.setattr("esa_ray.interpret.attention.measure.PATTERN_BYTES", 2 * 4 * 2 * 4 * 16**2)
    model = build("llama")
    few = Attending(model, WINDOWS, batch_size=5)
    assert [len(logits) for logits in few._logits] == [2, 2, 1]
    for block, mine in Attending(model, WINDOWS, batch_size=2).intact.blocks.items():
        assert torch.equal(mine.looks.sink, few.intact.blocks[block].looks.sink)
