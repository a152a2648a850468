"""What mixers' matrices are told to be, against what the models' own code makes of them."""

import inspect
import sys

import pytest
import torch
from torch import nn
from transformers.models.xlstm.modeling_xlstm import xLSTMPreTrainedModel

from benchmarks.mixer_proofs import misread
from esa_ray.models import mixers, telling
from esa_ray.models.addressing import catalogue
from esa_ray.models.components import FusedPart
from esa_ray.spec import BLOCK_COMPONENTS, COMPONENT_GROUPS
from tests.tiny_mixers import MIXERS, tiny_mixer

TOKENS = torch.arange(1, 21).view(2, 10)

# Kinds that a model type has beside the one of its config here.
VARIANTS = [
    ("falcon_h1", {"mamba_rms_norm": True}),
    ("zamba", {"n_mamba_heads": 1}),
    ("qwen3_next", {"linear_num_key_heads": 4}),
    ("mamba2", {"n_groups": 1}),
]


def watchable(kind: str) -> bool:
    """Whether a delta rule is handed each key once, as the proof watches it; older transformers repeat them before."""
    names = ("qwen3_next", "qwen3_5", "qwen3_5_moe", "olmo_hybrid")
    if kind.removesuffix("_text") not in names:
        return True
    rule = sys.modules[type(tiny_mixer(kind)).__module__].torch_chunk_gated_delta_rule
    return "repeat_interleave" in inspect.getsource(rule)


@pytest.mark.parametrize("kind", MIXERS)
def test_a_changed_row_changes_its_channel_of_its_components_variable_and_nothing_else(kind):
    if not watchable(kind):
        pytest.skip("this transformers repeats the keys before it hands them to the delta rule")
    assert misread(tiny_mixer(kind), TOKENS) == []


@pytest.mark.parametrize(("kind", "changes"), VARIANTS, ids=lambda v: v if isinstance(v, str) else next(iter(v)))
def test_variants_are_told_as_well(kind, changes):
    assert misread(tiny_mixer(kind, **changes), TOKENS) == []


def test_a_fused_xlstm_is_told_as_well(monkeypatch):
    monkeypatch.setattr(xLSTMPreTrainedModel, "_init_weights", lambda *_: None)  # transformers' own fails on it
    assert misread(tiny_mixer("xlstm", weight_mode="fused"), TOKENS) == []


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "minimax", "qwen3_next", "lfm2", "zamba"])
def test_the_proof_finds_components_that_are_swapped(kind, monkeypatch):
    right = mixers.mixer_parts

    def swapped(model, name, rows):
        parts = right(model, name, rows)
        if parts and len(parts) > 1:
            first, second, *rest = parts
            return (FusedPart(second.component, first.start, first.run, first.period),
                    FusedPart(first.component, second.start, second.run, second.period), *rest)  # fmt: skip
        return parts

    monkeypatch.setattr(telling, "mixer_parts", swapped)
    assert misread(tiny_mixer(kind), TOKENS)


# Rows counted by hand from the sizes in tests/tiny_mixers.py: (first row, component) where a component begins.
STACKS = {
    ("mamba", "backbone.layers.0.mixer.in_proj.weight"): [(0, "mixer_in"), (24, "mixer_gate")],
    ("mamba", "backbone.layers.0.mixer.x_proj.weight"): [(0, "mixer_dt"), (3, "mixer_b"), (8, "mixer_c")],
    ("bamba", "model.layers.0.mamba.in_proj.weight"): [
        (0, "mixer_gate"), (32, "mixer_in"), (64, "mixer_b"), (74, "mixer_c"), (84, "mixer_dt"),
    ],
    ("zamba", "model.layers.0.mamba.in_proj.weight"): [(n, ("mixer_in", "mixer_gate")[n % 2]) for n in range(64)],
    ("qwen3_next", "model.layers.0.linear_attn.in_proj_qkvz.weight"): [
        (0, "mixer_q"), (3, "mixer_k"), (6, "mixer_v"), (18, "mixer_gate"),
        (30, "mixer_q"), (33, "mixer_k"), (36, "mixer_v"), (48, "mixer_gate"),
    ],
    ("minimax", "model.layers.0.self_attn.qkv_proj.weight"): [
        (4 * n, ("mixer_q", "mixer_k", "mixer_v")[n % 3]) for n in range(12)
    ],
    ("lfm2", "model.layers.0.conv.in_proj.weight"): [(0, "mixer_b"), (16, "mixer_c"), (32, "mixer_in")],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), STACKS)
def test_stacked_rows_are_those_counted_by_hand(kind, name):
    tensor = catalogue(tiny_mixer(kind))[name]
    told = [tensor.parts[i].component for i in tensor.row_part]
    assert [(n, c) for n, c in enumerate(told) if n == 0 or told[n - 1] != c] == STACKS[kind, name]


@pytest.mark.parametrize("kind", MIXERS)
def test_every_parameter_of_a_mixer_is_told_and_index_is_the_inverse_of_locate(kind):
    model = tiny_mixer(kind)
    found = catalogue(model)
    for tensor in found.tensors:
        where = tensor.locate(torch.arange(tensor.size).numpy())
        back = [
            tensor.index(int(r), int(c), e) for r, c, e in zip(where["row"], where["col"], where["expert"], strict=True)
        ]
        assert back == list(range(tensor.size))
    known = [p.component for t in found.tensors for p in t.parts]
    assert set(known) & set(COMPONENT_GROUPS["mixer"])


def test_only_elementwise_factors_of_pure_mixers_are_in_no_group():
    for kind in ("mamba", "mamba2", "rwkv", "xlstm"):
        model = tiny_mixer(kind)
        chosen = {t.name for t in catalogue(model).select(BLOCK_COMPONENTS)}
        matrices = {n for n, p in model.named_parameters() if p.dim() > 1 and p.numel() > max(p.shape)}
        left = {n for n in matrices - chosen if "embed" not in n and "head" not in n}
        assert left == {n for n in matrices if n.endswith("A_log")}


def test_a_mixers_projections_named_as_attentions_are_not_attentions():
    found = catalogue(tiny_mixer("olmo_hybrid"))
    assert found["model.layers.0.linear_attn.q_proj.weight"].parts[0].component == "mixer_q"
    assert found["model.layers.1.self_attn.q_proj.weight"].parts[0].component == "q"


def test_a_stack_of_other_sizes_than_its_module_says_is_other():
    model = tiny_mixer("mamba")
    mixer = model.backbone.layers[1].mixer
    mixer.in_proj = nn.Linear(16, 49, bias=False)
    assert [p.component for p in catalogue(model)["backbone.layers.1.mixer.in_proj.weight"].parts] == ["other"]


def test_a_module_of_the_same_name_that_says_no_sizes_is_other():
    model = tiny_mixer("mamba")
    del model.backbone.layers[1].mixer.ssm_state_size
    told = {t.name.split(".")[-2]: t.parts[0].component for t in catalogue(model).tensors if t.layer == 1}
    assert (told["x_proj"], told["in_proj"]) == ("other", "mixer_in")


def test_shared_blocks_are_one_tensor_of_the_first_depth_that_uses_them():
    found = catalogue(tiny_mixer("zamba"))
    shared = found["model.layers.1.shared_transf.self_attn.q_proj.weight"]
    assert (shared.layer, len(shared.slots)) == (1, 2)
    assert "model.layers.2.shared_transf.self_attn.q_proj.weight" not in found.by_name
