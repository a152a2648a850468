"""Names that papers and checkpoints use, against the values that the checkpoints hold under them."""

import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.models.naming import find_weight
from esa_ray.scoring.gather import score_tensors
from esa_ray.scoring.listing import listing
from esa_ray.spec import WeightList, WeightName
from tests.tiny import FAMILIES, HEAD, HEADS, INNER, KV_HEADS, random_windows, tiny


def value(found, name: str, row: int, col: int, expert: int | None = None) -> float:
    tensor, flat = find_weight(found, WeightName(tensor=name, row=row, col=col, expert=expert))
    return float(tensor.flat_weights()[flat])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_name_of_a_saved_file_is_the_weight_that_the_file_holds_under_it(tmp_path, family):
    """transformers saves Mixtral's experts one by one, under the names of the first release."""
    model = tiny(family)
    model.save_pretrained(tmp_path)
    found, rng = catalogue(model), np.random.default_rng(0)
    stored = {
        k: v for k, v in load_file(tmp_path / "model.safetensors").items() if k.endswith("weight") and v.dim() == 2
    }
    assert stored
    assert family != "mixtral" or any(".experts.1.w2" in name for name in stored)
    for name, matrix in stored.items():
        place = tuple(int(rng.integers(n)) for n in matrix.shape)
        row, col = place[::-1] if family == "gpt2" and "h." in name else place  # Conv1D stores (in, out)
        for spelled in (name, name.removesuffix(".weight"), name.upper(), f"language_model.{name}"):
            assert value(found, spelled, row, col) == float(matrix[place]), spelled


@pytest.mark.parametrize("prefix", ["", "model.", "transformer.", "model.language_model.", "base_model.model.model."])
def test_any_prefix_before_the_block_is_understood(prefix):
    model = tiny("llama")
    wanted = float(model.model.layers[1].mlp.down_proj.weight[5, 7])
    assert value(catalogue(model), f"{prefix}layers.1.mlp.down_proj", 5, 7) == wanted


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma"])
def test_the_papers_triple_is_the_down_projection_of_that_block(family):
    model = tiny(family)
    wanted = float(model.model.layers[1].mlp.down_proj.weight[5, 7])
    assert value(catalogue(model), "model.layers.1.mlp.down_proj.weight", 5, 7) == wanted


def test_the_papers_triple_is_found_under_other_names_and_in_transposed_storage():
    gpt2, neox = tiny("gpt2"), tiny("gpt_neox")
    name = "model.layers.1.mlp.down_proj.weight"
    assert value(catalogue(gpt2), name, 5, 7) == float(gpt2.transformer.h[1].mlp.c_proj.weight[7, 5])
    assert value(catalogue(neox), name, 5, 7) == float(neox.gpt_neox.layers[1].mlp.dense_4h_to_h.weight[5, 7])


def test_projections_that_a_model_fuses_are_found_by_their_own_rows():
    model = tiny("phi3")
    found, block = catalogue(model), model.model.layers[0]
    q, k, v = block.self_attn.qkv_proj.weight.split([HEADS * HEAD, KV_HEADS * HEAD, KV_HEADS * HEAD])
    gate, up = block.mlp.gate_up_proj.weight.split([INNER, INNER])
    for name, matrix in {"q_proj": q, "k_proj": k, "v_proj": v}.items():
        assert value(found, f"model.layers.0.self_attn.{name}.weight", 3, 5) == float(matrix[3, 5])
    for name, matrix in {"gate_proj": gate, "up_proj": up}.items():
        assert value(found, f"model.layers.0.mlp.{name}", 3, 5) == float(matrix[3, 5])
    with pytest.raises(EsaError, match=rf"has no row {KV_HEADS * HEAD}: .* it is {KV_HEADS * HEAD} × 16"):
        value(found, "model.layers.0.self_attn.k_proj.weight", KV_HEADS * HEAD, 0)


def test_projections_that_are_interleaved_by_head_are_found_by_their_own_rows():
    model = tiny("gpt_neox")
    fused = model.gpt_neox.layers[0].attention.query_key_value.weight.view(HEADS, 3, HEAD, -1)
    for i, name in enumerate(("q_proj", "k_proj", "v_proj")):
        own = fused[:, i].reshape(HEADS * HEAD, -1)
        for row in range(len(own)):
            assert value(catalogue(model), f"layers.0.attention.{name}", row, 2) == float(own[row, 2])


def test_an_experts_own_matrix_is_its_slice_of_the_fused_one():
    model = tiny("mixtral")
    found, experts = catalogue(model), model.model.layers[0].mlp.experts
    assert value(found, "model.layers.0.mlp.experts.1.down_proj.weight", 5, 7) == float(experts.down_proj[1, 5, 7])
    assert value(found, "model.layers.0.mlp.experts.2.gate_proj", 3, 7) == float(experts.gate_up_proj[2, 3, 7])
    assert value(found, "model.layers.0.mlp.experts.2.up_proj", 3, 7) == float(experts.gate_up_proj[2, INNER + 3, 7])
    assert value(found, "model.layers.0.block_sparse_moe.experts.2.w3", 3, 7) == float(
        experts.gate_up_proj[2, INNER + 3, 7]
    )
    with pytest.raises(EsaError, match=r"no expert 9.*3 experts of 16 × 24"):
        value(found, "model.layers.0.mlp.experts.9.down_proj", 0, 0)
    with pytest.raises(EsaError, match="contradict"):
        value(found, "model.layers.0.mlp.experts.1.down_proj", 0, 0, expert=2)


def test_what_can_mean_two_matrices_is_refused():
    with pytest.raises(EsaError, match="no weights named"):  # every expert has a down-projection
        value(catalogue(tiny("mixtral")), "model.layers.0.mlp.down_proj", 0, 0)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.layers.1.mlp.dwon_proj", r"nearest are model\.layers\.1\.mlp\.down_proj\.weight, "),
        ("model.layer.0.self_attn.qproj.weight", r"nearest are model\.layers\.0\.self_attn\.q_proj\.weight, "),
        ("lmhead", r"nearest are lm_head\.weight, "),
        ("model.layers.7.mlp.down_proj", "its blocks are 0 to 1"),
    ],
)
def test_a_wrong_name_is_told_the_nearest_right_ones(name, words):
    with pytest.raises(EsaError, match=words) as error:
        value(catalogue(tiny("llama")), name, 0, 0)
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("row", "col", "words"), [(99, 0, "no row 99.*0 to 15.*16 × 24"), (0, 24, "no col 24.*0 to 23")]
)
def test_a_place_beyond_a_matrix_tells_its_shape(row, col, words):
    with pytest.raises(EsaError, match=words):
        value(catalogue(tiny("llama")), "model.layers.0.mlp.down_proj", row, col)


def test_two_names_of_one_weight_are_refused():
    model = tiny("llama")
    found = catalogue(model)
    names = ("model.layers.1.mlp.down_proj.weight", "layers.1.mlp.down_proj")
    twice = WeightList(name="twice", weights=tuple(WeightName(tensor=n, row=5, col=7) for n in names))
    scores = score_tensors(model, found.select(("down",)), random_windows(2), ["magnitude"])
    with pytest.raises(EsaError, match=rf"names a weight of {re.escape(names[0])} twice"):
        listing(scores, found, twice, (), seed=0)


def test_a_listing_names_the_models_own_tensor_whatever_the_list_called_it():
    model = tiny("mixtral")
    found = catalogue(model)
    weights = (WeightName(tensor="layers.0.block_sparse_moe.experts.1.w2", row=5, col=7),)
    scores = score_tensors(model, found.select(("down",)), random_windows(2), ["magnitude"])
    row = listing(scores, found, WeightList(name="one", weights=weights), (), seed=0).to_pylist()[0]
    assert (row["tensor"], row["expert"], row["row"], row["col"]) == ("model.layers.0.mlp.experts.down_proj", 1, 5, 7)
    assert row["weight"] == float(model.model.layers[0].mlp.experts.down_proj[1, 5, 7])


def test_a_tied_head_is_the_embedding():
    model = tiny("llama", tied=True)
    assert value(catalogue(model), "lm_head.weight", 3, 5) == float(model.model.embed_tokens.weight[3, 5])
    assert torch.is_tensor(model.lm_head.weight)
