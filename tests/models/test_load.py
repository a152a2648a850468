"""What is loaded is the model that the files hold, or one sentence says what is wrong and how to mend it."""

import json
import os
import re
import subprocess
import sys

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaForSequenceClassification,
    LlamaModel,
)

from esa_ray.errors import EsaError
from esa_ray.models.dry import check_fit
from esa_ray.models.load import load_model
from esa_ray.models.sources import find
from tests.models.checkpoints import edit, loaded, refused, rewritten, saved, sharded, spec
from tests.models.gguf_files import write_gguf
from tests.tiny import FAMILIES, random_windows, state_bits, tiny

WINDOW = torch.as_tensor(random_windows(1, seed=3))
HEAD, DOWN = "lm_head.weight", "model.layers.0.mlp.down_proj.weight"


# -- what the files were when they were found


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_model_that_is_written_to_between_finding_and_loading_is_refused(tmp_path, name):
    found = find(spec(directory := saved(tmp_path / "m")))
    load_model(found, "fp32", "cpu")
    before = (directory / name).stat()
    (directory / name).write_bytes((directory / name).read_bytes())  # the same, which nobody can see by its time alone
    os.utime(directory / name, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(
        EsaError, match=r"--model m: its files were written to since it was found; .*same command again"
    ):
        load_model(found, "fp32", "cpu")
    load_model(find(spec(directory)), "fp32", "cpu")


def test_a_gguf_that_is_written_to_after_it_was_found_is_not_converted_under_its_former_name(tmp_path, monkeypatch):
    monkeypatch.setenv("ESA_CACHE", str(tmp_path / "cache"))
    file = write_gguf(tmp_path / "m.gguf")
    found = find(spec(file))
    file.write_bytes(file.read_bytes()[:-4] + bytes(4))
    os.utime(file, ns=(0, 0))
    with pytest.raises(EsaError, match="its files were written to since it was found"):
        load_model(found, "fp32", "cpu")
    assert not [p for p in (tmp_path / "cache" / "converted").iterdir() if p.is_dir()]


def test_other_files_beside_a_model_may_be_written(tmp_path):
    found = find(spec(directory := saved(tmp_path / "m")))
    (directory / "trainer_state.json").write_text("{}")
    load_model(found, "fp32", "cpu")


# -- what the files lack


def without(*names):
    return lambda state: {k: v for k, v in state.items() if k not in names}


def test_a_missing_tensor_is_refused_by_name(tmp_path):
    sentence = refused(rewritten(saved(tmp_path / "m"), without(DOWN)))
    assert f"lacks {DOWN} of a LlamaForCausalLM" in sentence


def test_a_missing_head_is_refused_unless_it_is_the_embedding(tmp_path):
    directory = rewritten(saved(tmp_path / "m"), without(HEAD))
    sentence = refused(directory)
    assert "lacks lm_head.weight" in sentence
    edit(directory / "config.json", **json.loads("{" + re.search(r'"tie_word_embeddings": true', sentence)[0] + "}"))
    model = loaded(directory)  # as the sentence says
    assert torch.equal(model.lm_head.weight, load_file(directory / "model.safetensors")["model.embed_tokens.weight"])


@pytest.mark.parametrize("family", ["gpt2", "gemma", "llama"])
def test_a_tied_head_is_not_missing(tmp_path, family):
    directory = saved(tmp_path / "m", family, tied=True)
    assert not any("lm_head" in name for name in load_file(directory / "model.safetensors"))
    check_fit(find(spec(directory)))
    assert torch.equal(loaded(directory)(WINDOW).logits, tiny(family, tied=True)(WINDOW).logits)


def test_a_head_of_its_own_wins_over_a_config_that_says_tied(tmp_path):
    model = loaded(rewritten(saved(tmp_path / "m"), lambda state: None, tie_word_embeddings=True))
    assert torch.equal(model(WINDOW).logits, tiny()(WINDOW).logits)


def test_a_shard_that_is_left_out_of_the_index_is_missed_by_its_tensors(tmp_path):
    directory = sharded(tmp_path / "m", 3)
    index = directory / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    last = sorted(set(content["weight_map"].values()))[-1]
    lost = sorted(k for k, v in content["weight_map"].items() if v == last)
    content["weight_map"] = {k: v for k, v in content["weight_map"].items() if v != last}
    index.write_text(json.dumps(content))
    assert lost[0] in refused(directory)


def test_pickles_that_lack_a_tensor_are_refused_by_name(tmp_path):
    directory = saved(tmp_path / "m")
    (directory / "model.safetensors").unlink()
    torch.save({k: v for k, v in tiny().state_dict().items() if k != DOWN}, directory / "pytorch_model.bin")
    assert DOWN in refused(directory, "pickle")


def test_a_gguf_that_lacks_a_tensor_is_refused_by_name_and_leaves_no_converted_model(tmp_path, monkeypatch):
    monkeypatch.setenv("ESA_CACHE", str(tmp_path / "cache"))
    real = gguf.GGUFWriter.add_tensor
    monkeypatch.setattr(
        gguf.GGUFWriter, "add_tensor",
        lambda self, name, values: None if name == "blk.1.ffn_down.weight" else real(self, name, values),
    )  # fmt: skip
    source = find(spec(write_gguf(tmp_path / "m.gguf")))
    with pytest.raises(EsaError, match=r"lacks model\.layers\.1\.mlp\.down_proj\.weight"):
        load_model(source, "fp32", "cpu")
    assert not [p for p in (tmp_path / "cache" / "converted").iterdir() if p.is_dir()]


def test_a_base_model_without_its_head_and_a_classifier_are_told_apart(tmp_path):
    config = FAMILIES["llama"](False)
    LlamaModel(config).save_pretrained(tmp_path / "base")
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    assert "without its head" in refused(tmp_path / "base")
    assert "is a LlamaForSequenceClassification, no language model" in refused(tmp_path / "classifier")


def test_a_tied_base_model_is_the_language_model(tmp_path):
    torch.manual_seed(0)
    base = LlamaModel(FAMILIES["llama"](True)).eval()
    base.save_pretrained(tmp_path / "m")
    hidden = base(WINDOW).last_hidden_state
    assert torch.equal(loaded(tmp_path / "m")(WINDOW).logits, hidden @ base.embed_tokens.weight.T)


# -- names


def mended(sentence: str, file) -> None:
    """Do what the sentence says to each file."""
    code = re.search(r"(save_file\(.*\))", sentence)[1]
    exec(code, {"save_file": save_file, "load_file": load_file, "F": file})


PREFIXES = {
    "_orig_mod.": "torch.compile", "module.": "data-parallel", "base_model.model.": "PEFT", "policy.net.": "begin with",
    "_forward_module.": "Lightning",
}  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_a_prefix_is_named_and_the_mend_that_is_told_works(tmp_path, prefix, family):
    directory = rewritten(saved(tmp_path / "m", family), lambda state: {prefix + k: v for k, v in state.items()})
    sentence = refused(directory)
    assert repr(prefix) in sentence
    assert PREFIXES[prefix] in sentence
    mended(sentence, str(directory / "model.safetensors"))
    assert torch.equal(loaded(directory)(WINDOW).logits, tiny(family)(WINDOW).logits)


def test_a_wrapper_inside_the_names_is_found(tmp_path):
    wrap = "_checkpoint_wrapped_module."
    directory = rewritten(
        saved(tmp_path / "m"), lambda state: {re.sub(r"(layers\.\d+\.)", rf"\1{wrap}", k): v for k, v in state.items()}
    )
    sentence = refused(directory)
    assert "activation checkpointing" in sentence
    mended(sentence, str(directory / "model.safetensors"))
    assert torch.equal(loaded(directory)(WINDOW).logits, tiny()(WINDOW).logits)


def test_a_lightning_module_whose_model_is_called_model_loads(tmp_path):
    directory = rewritten(saved(tmp_path / "m"), lambda state: {"model." + k: v for k, v in state.items()})
    assert torch.equal(loaded(directory)(WINDOW).logits, tiny()(WINDOW).logits)


# -- what the model has no place for


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"model.layers.0.self_attn.q_proj.bias": (16,)}, "has no place"),
        ({"model.layers.0.self_attn.q_proj.lora_A.weight": (2, 16)}, "merge_and_unload"),
        ({"model.layers.0.mlp.up_proj.qweight": (2, 16)}, "quantized"),
        ({"model.layers.0.mlp.up_proj.weight_scale": (1,)}, "quantized"),
        ({"model.layers.0.mlp.up_proj.weight.absmax": (1,)}, "quantized"),
        ({"model.layers.2.mlp.up_proj.weight": (24, 16)}, "says 2 blocks"),
        ({"something.else": (2,)}, "has no place"),
    ],
)
def test_a_weight_that_the_model_has_no_place_for_is_refused_by_name(tmp_path, extra, words):
    directory = rewritten(saved(tmp_path / "m"), lambda s: s | {k: torch.ones(v) for k, v in extra.items()})
    sentence = refused(directory)
    assert next(iter(extra)) in sentence
    assert words in sentence


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.1.self_attn.masked_bias",
        "vision_tower.blocks.0.weight",
        "v_head.summary.weight",
        "mtp.layers.0.weight",
    ],
)
def test_computed_buffers_and_parts_beside_the_language_model_change_nothing(tmp_path, name):
    directory = rewritten(saved(tmp_path / "m"), lambda state: state | {name: torch.ones(3)})
    assert check_fit(find(spec(directory))) is not None
    assert torch.equal(loaded(directory)(WINDOW).logits, tiny()(WINDOW).logits)


def test_blocks_that_predict_further_tokens_are_left_out_where_the_config_tells_of_them(tmp_path):
    directory = rewritten(
        saved(tmp_path / "m"),
        lambda s: s | {"model.layers.2.eh_proj.weight": torch.ones(3)},
        num_nextn_predict_layers=1,
    )
    check_fit(find(spec(directory)))
    assert torch.equal(loaded(directory)(WINDOW).logits, tiny()(WINDOW).logits)


def test_weights_that_are_left_as_codes_are_refused(tmp_path, monkeypatch):
    """As by a transformers that computes no FP8 back."""
    from esa_ray.models import load

    def left(*_, **__):
        model = tiny()
        weight = model.model.layers[0].mlp.down_proj.weight
        weight.data = weight.data.to(torch.float8_e4m3fn)
        return model, {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}

    monkeypatch.setattr(load, "_loaded", left)
    with pytest.raises(EsaError, match=rf"is quantized, and .* computes {re.escape(DOWN)} not back"):
        loaded(saved(tmp_path / "m"))


def test_another_depth_is_told_from_both_sides(tmp_path):
    directory = saved(tmp_path / "m")
    edit(directory / "config.json", num_hidden_layers=1)
    assert "its config.json says 1 blocks" in refused(directory)
    edit(directory / "config.json", num_hidden_layers=3)
    assert "says 3 blocks, and its files hold 2" in refused(directory)


def test_another_shape_is_refused_by_both_shapes(tmp_path):
    directory = saved(tmp_path / "m")
    edit(directory / "config.json", vocab_size=40)
    sentence = refused(directory)
    assert "(48, 16)" in sentence
    assert "(40, 16)" in sentence


# -- the same in every process

LOAD = (
    "import sys, hashlib; from esa_ray.models.load import load_model; from esa_ray.models.sources import find;"
    "from esa_ray.spec import ModelSpec; from tests.tiny import state_bits\n"
    "for model in sys.argv[1:]:\n"
    "    bits = state_bits(load_model(find(ModelSpec(source=model)), 'fp32', 'cpu'))\n"
    "    print(*sorted(f'{k}={hashlib.sha256(v).hexdigest()}' for k, v in bits.items()))"
)


def test_two_processes_hold_the_same_bits_buffers_too(tmp_path):
    families = ("llama", "gpt_neox")
    directories = [str(saved(tmp_path / family, family)) for family in families]
    # What malloc hands out is filled with another byte in each: memory that nobody wrote would differ.
    told = [
        subprocess.run([sys.executable, "-c", LOAD, *directories], capture_output=True, text=True, check=True,
                       env=os.environ | {"MALLOC_PERTURB_": byte})
        for byte in ("85", "170")
    ]  # fmt: skip
    assert told[0].stdout == told[1].stdout
    for family, line in zip(families, told[0].stdout.splitlines(), strict=True):
        assert {bits.partition("=")[0] for bits in line.split()} == set(state_bits(tiny(family)))


EXPERT = r"model\.layers\.1\.block_sparse_moe\.experts"


@pytest.mark.parametrize(
    "gone",
    [rf"{EXPERT}\.2\.w1\.", rf"{EXPERT}\.0\.w2\.", rf"{EXPERT}\.2\.", rf"{EXPERT}\.0\.", rf"{EXPERT}\.\d\.w1\.",
     rf"{EXPERT}\.\d\.w2\.", r".*experts\.2\.w3\."],
)  # fmt: skip
def test_a_mixture_that_lacks_a_single_experts_matrix_is_refused_by_its_name_in_the_file(tmp_path, gone):
    directory = saved(tmp_path / "m", "mixtral")
    before = load_file(directory / "model.safetensors")
    dropped = sorted(name for name in before if re.match(gone, name))
    assert dropped
    rewritten(directory, lambda state: {k: v for k, v in state.items() if k not in dropped})
    assert f" lacks {', '.join(dropped)} of its experts; " in refused(directory)


def test_a_mixture_without_all_of_a_blocks_experts_is_not_said_to_be_shallower(tmp_path):
    directory = saved(tmp_path / "m", "mixtral")
    rewritten(directory, lambda state: {k: v for k, v in state.items() if not re.match(EXPERT, k)})
    sentence = refused(directory)
    assert "lacks model.layers.1.mlp.experts.down_proj, model.layers.1.mlp.experts.gate_up_proj" in sentence
    assert "blocks" not in sentence
