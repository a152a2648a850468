"""Attacks on models whose weights are fused, transposed, stacked by experts or tied, and of which a part is stored."""

import accelerate
import pytest
import torch

from esa_ray.spec.security import AttackSpec
from tests.security.attack.nets import SEARCH, attacked, place, unmoved
from tests.tiny import state_bits, tiny


@pytest.mark.parametrize("arm", ["guided", "guided-matched", "random", "data-free"])
@pytest.mark.parametrize("family", ["phi3", "gpt2", "mixtral", "gpt_neox"])
def test_only_stored_components_are_flipped_where_tensors_hold_others_too(family, arm):
    model, stored = tiny(family), {"phi3": ("q", "up"), "mixtral": ("up", "down")}.get(family, ("k", "down"))
    before = state_bits(model)
    spec = AttackSpec(arm=arm, dtype="int8", components=stored, budget=4, k=6, tries=6)
    rows = attacked(model, spec, report=unmoved)[1:]
    assert len(rows) == 4
    assert {row["component"] for row in rows} <= set(stored)
    assert len({(*place(row), row["expert"]) for row in rows}) == 4
    assert state_bits(model) == before


def test_a_tied_embedding_is_attacked_where_it_is_used_twice():
    model = tiny("gemma")  # its head is its embedding
    rows = attacked(model, AttackSpec(dtype="int8", components=("embed",), budget=2), report=unmoved)[1:]
    assert {row["tensor"] for row in rows} == {"model.embed_tokens.weight"}
    assert rows[0]["selected_nll"] < rows[1]["selected_nll"]


def test_experts_are_named():
    rows = attacked(tiny("mixtral"), AttackSpec(arm="data-free", components=("down",), budget=12), report=unmoved)[1:]
    assert {row["expert"] for row in rows} <= {0, 1, 2}


@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_offloaded_weights_are_attacked_as_resident_ones(tmp_path, family, where):
    spec = AttackSpec(dtype="int8", components=("up", "o"), budget=3)
    away = tiny(family)
    if where == "disk":
        away = accelerate.disk_offload(away, str(tmp_path), execution_device=torch.device("cpu"))
    else:
        away = accelerate.cpu_offload(away, execution_device=torch.device("cpu"))
    before = away(torch.from_numpy(SEARCH)).logits
    expected, found = (attacked(model, spec, report=unmoved) for model in (tiny(family), away))
    assert [place(row) for row in found[1:]] == [place(row) for row in expected[1:]]
    assert [row["selected_nll"] for row in found[1:]] == pytest.approx([row["selected_nll"] for row in expected[1:]])
    assert torch.equal(away(torch.from_numpy(SEARCH)).logits, before)
