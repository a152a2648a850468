"""Every layout of the tables, proven by edits: what the model itself computes otherwise when a row is another."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from benchmarks.architectures.recipes import build
from benchmarks.proofs import NO_CLAIM, NOT_RUN, OK, prove
from esa_ray.models.addressing import Catalogue, catalogue
from esa_ray.models.blocks import context
from esa_ray.models.components import FusedPart, single
from tests.tiny_layouts import CASES, tiny_layout

#: What no table tells.
UNKNOWN = {
    "gemma3n_text": {
        "model.altup_projections.*.weight", "model.altup_unembed_projections.*.weight",
        "model.layers.*.altup.correct_output_scale", "model.layers.*.altup.correction_coefs.weight",
        "model.layers.*.altup.modality_router.weight", "model.layers.*.altup.prediction_coefs.weight",
        "model.layers.*.laurel.linear_left.weight", "model.layers.*.laurel.linear_right.weight",
        "model.layers.*.per_layer_input_gate.weight", "model.layers.*.per_layer_projection.weight",
        "model.per_layer_model_projection.weight",
    },
    "gpt_oss": {"model.layers.*.self_attn.sinks"},
    "opt": {"model.decoder.project_in.weight", "model.decoder.project_out.weight"},
    "bert": {"cls.predictions.transform.dense.weight"},
    "roberta": {"lm_head.dense.weight"},
    "modernbert-decoder": {"lm_head.dense.weight"},
    "xlnet": {"transformer.mask_emb", "transformer.layer.*.rel_attn.r", "transformer.layer.*.rel_attn.seg_embed"},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_edit_of_a_row_changes_what_its_component_says_and_nothing_else(case):
    model = tiny_layout(case)
    found = catalogue(model)
    proven = prove(model, found)
    idle = {f"{c} model.decoder.layers.*.encoder_attn.{n}.weight" for c, n in zip("qkvo", PROJECTIONS, strict=True)}
    idle |= {"norm model.decoder.layers.*.encoder_attn_layer_norm.weight"}
    expected = {f"other {name}": NO_CLAIM for name in UNKNOWN.get(case, ())}
    expected |= dict.fromkeys(idle, NOT_RUN) if case == "bart" else {}
    assert {key: result for key, result in proven.items() if result != OK} == expected
    assert set(found.unknown) == UNKNOWN.get(case, set())


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


@pytest.mark.parametrize("case", CASES)
def test_index_takes_back_what_locate_tells_for_every_weight(case):
    for tensor in catalogue(tiny_layout(case)).tensors:
        flat = np.arange(tensor.size)
        where = tensor.locate(flat)
        at = list(zip(where["row"].tolist(), where["col"].tolist(), where["expert"], strict=True))
        assert [tensor.index(*three) for three in at] == flat.tolist(), tensor.name
        experts = range(tensor.shape[0]) if tensor.experts else [tensor.expert]
        every = {(r, c, e) for e in experts for r in range(tensor.rows) for c in range(tensor.cols)}
        assert set(at) == every


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_is_addressed_or_listed_as_left_out(case):
    model = tiny_layout(case)
    found = catalogue(model)
    out = {left.name: left for left in found.left_out}
    buffers = {name for name, left in out.items() if left.why == "a buffer"}
    kept = {name: values for name, values in model.named_buffers() if name in model.state_dict() and values.numel() > 1}
    assert buffers == {name for name, values in kept.items() if values.is_floating_point()}
    out = {name: left for name, left in out.items() if name not in buffers}
    assert {t.name for t in found.tensors} | set(out) == {name for name, _ in model.named_parameters()}
    assert not {t.name for t in found.tensors} & set(out)
    assert sum(t.size for t in found.tensors) + sum(np.prod(o.shape) for o in out.values()) == model.num_parameters()
    assert {left.why for left in out.values()} <= {"a bias"}
    for tensor in found.tensors:
        assert tensor.size == tensor.parameter.numel()
        assert (tensor.row_part >= 0).all()


def edited(found: Catalogue, words: str, **changes) -> Catalogue:
    """A catalogue in which the tensors of a name are called otherwise."""
    return replace(found, tensors=tuple(replace(t, **changes) if t.name.endswith(words) else t for t in found.tensors))


STACKED = tuple(FusedPart(c, i * 16, 16, 48) for i, c in enumerate("qkv"))
WRONG = {
    "interleaved read as stacked": ("bloom", "query_key_value.weight", {"parts": STACKED}),
    "key and value in each other's place": (
        "codegen", "qkv_proj.weight", {"parts": tuple(FusedPart(c, i * 8, 8, 24) for i, c in enumerate("qkv"))}
    ),
    "gate and up in each other's place": (
        "phi3", "gate_up_proj.weight", {"parts": (FusedPart("up", 0, 24, 48), FusedPart("gate", 24, 24, 48))}
    ),
    "gate and up read as halves": (
        "gpt_oss", "gate_up_proj", {"parts": (FusedPart("gate", 0, 24, 48), FusedPart("up", 24, 24, 48))}
    ),
    "stored (in, out) read as (out, in)": ("llama4_text", "experts.down_proj", {"transposed": False}),
    "all heads read as one": ("xlnet", "rel_attn.q", {"transposed": False}),
    "an output read as an input": ("opt", "fc2.weight", {"parts": single("up", 16)}),
    "gates read as queries": ("qwen3_next", "q_proj.weight", {"parts": single("q", 32)}),
    "the latent and the rotated key in each other's place": (
        "deepseek_v3", "kv_a_proj_with_mqa.weight", {"parts": (FusedPart("k", 0, 2, 12), FusedPart("kv_latent", 2, 10, 12))}
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_layout_is_not_proven(wrong):
    case, words, changes = WRONG[wrong]
    model = tiny_layout(case)
    found = prove(model, edited(catalogue(model), words, **changes))
    mine = {key: result for key, result in found.items() if key.endswith(words)}
    assert any(result not in (OK, NOT_RUN) for result in mine.values()), mine


def test_a_proof_leaves_the_model_as_it_was():
    model = tiny_layout("gemma3n_text")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prove(model, catalogue(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_name_that_means_many_things_says_nothing_of_a_model_type_that_nobody_looked_at():
    model = tiny_layout("bloom")
    model.config.model_type = "somebody's own"
    assert set(catalogue(model).unknown) == {"transformer.h.*.self_attention.query_key_value.weight"}


def test_sizes_that_do_not_fill_a_matrix_leave_it_unknown():
    model = tiny_layout("phi3")
    model.model.layers[1].self_attn.num_key_value_heads = 3
    assert catalogue(model).unknown == {"model.layers.*.self_attn.qkv_proj.weight": 32 * 16}


@pytest.mark.parametrize(
    ("kind", "longest"), [("llama", 256), ("mpt", 256), ("whisper", 256), ("roberta", 254), ("mamba", None)]
)
def test_the_longest_window_is_the_longest_that_a_model_takes(kind, longest):
    model = build(kind)
    assert context(model) == longest
    run = partial(model, use_cache=False)
    with torch.no_grad():
        run(torch.full((1, longest or 300), 7))
    if kind in ("mpt", "whisper", "roberta"):
        with pytest.raises((RuntimeError, IndexError)), torch.no_grad():
            run(torch.full((1, longest + 1), 7))
