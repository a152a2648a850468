"""What is loaded is the model that the files hold, or one sentence says what is wrong and how to mend it."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MllamaConfig,
    MllamaForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from esa_ray.errors import EsaError
from esa_ray.models.dry import check_fit
from esa_ray.models.load import load_model, load_tokenizer
from esa_ray.models.sources import find, weight_bytes
from tests.models.checkpoints import edit, rewritten, saved, sharded, spec
from tests.tiny import FAMILIES, byte_tokenizer, random_windows, state_bits, tiny

WINDOW = torch.as_tensor(random_windows(1, seed=3))
HEAD, DOWN = "lm_head.weight", "model.layers.0.mlp.down_proj.weight"


def loaded(directory, *trust):
    return load_model(find(spec(directory, *trust)), "fp32", "cpu")


def refused(directory, *trust) -> str:
    """The sentence, which must be the same before anything is loaded and while it is."""
    source = find(spec(directory, *trust))
    with pytest.raises(EsaError) as before:
        check_fit(source)
    with pytest.raises(EsaError) as then:
        load_model(source, "fp32", "cpu")
    assert str(before.value) == str(then.value)
    assert "\n" not in str(before.value)
    return str(before.value)


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
    from tests.models import test_trust

    monkeypatch.setenv("ESA_CACHE", str(tmp_path / "cache"))
    real = test_trust.gguf.GGUFWriter.add_tensor
    monkeypatch.setattr(
        test_trust.gguf.GGUFWriter, "add_tensor",
        lambda self, name, values: None if name == "blk.1.ffn_down.weight" else real(self, name, values),
    )  # fmt: skip
    source = find(spec(test_trust.write_gguf(tmp_path / "m.gguf")))
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


# -- dtypes and codes


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_floats_of_any_width_are_taken_as_the_numbers_that_they_are(tmp_path, dtype):
    directory = rewritten(saved(tmp_path / "m"), lambda state: state | {DOWN: state[DOWN].to(dtype)})
    assert torch.equal(
        loaded(directory).model.layers[0].mlp.down_proj.weight, tiny().state_dict()[DOWN].to(dtype).float()
    )


@pytest.mark.parametrize(("dtype", "name"), [(torch.int8, "I8"), (torch.uint8, "U8"), (torch.complex64, "C64")])
def test_codes_without_a_key_are_refused(tmp_path, dtype, name):
    directory = rewritten(saved(tmp_path / "m"), lambda state: state | {DOWN: state[DOWN].to(dtype)})
    with pytest.raises(EsaError, match=f"{re.escape(DOWN)} as {name}"):
        find(spec(directory))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"load_in_4bit": True}, "bitsandbytes.*dequantize"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors.*dequantize=True"),
        ({"bits": 3}, "unknown"),
    ],
)
def test_quantized_weights_are_refused_by_their_method(tmp_path, config, words):
    directory = saved(tmp_path / "m")
    edit(directory / "config.json", quantization_config=config)
    with pytest.raises(EsaError, match=words):
        find(spec(directory))


def test_block_fp8_is_computed_back(tmp_path):
    def quantize(state):
        made = {}
        for name, weight in state.items():
            made[name] = weight
            if name.endswith("_proj.weight"):
                made[name] = weight.to(torch.float8_e4m3fn)
                blocks = (-(-weight.shape[0] // 8), -(-weight.shape[1] // 8))
                made[name + "_scale_inv"] = 0.5 + torch.arange(blocks[0] * blocks[1]).float().reshape(blocks)
        return made

    config = {"quant_method": "fp8", "weight_block_size": [8, 8], "activation_scheme": "dynamic"}
    directory = rewritten(saved(tmp_path / "m"), quantize, quantization_config=config)
    check_fit(find(spec(directory)))
    model, stored = loaded(directory), load_file(directory / "model.safetensors")
    assert type(model.model.layers[0].mlp.down_proj) is torch.nn.Linear
    scale = stored[DOWN + "_scale_inv"].repeat_interleave(8, 0).repeat_interleave(8, 1)
    assert torch.equal(model.model.layers[0].mlp.down_proj.weight, stored[DOWN].float() * scale)


@pytest.mark.skipif(
    torch.__version__ < "2.7", reason="transformers asks for an accelerator where torch 2.6 raises if there is none"
)
def test_mxfp4_experts_are_computed_back(tmp_path):
    """Two E2M1 numbers a byte, low half first, times 2^(scale − 127) for each 32 of a row."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = GptOssForCausalLM(
        GptOssConfig(**sizes, num_key_value_heads=2, head_dim=8, vocab_size=48, num_local_experts=2, pad_token_id=1)
    )
    model.save_pretrained(tmp_path / "m")
    draw = np.random.default_rng(0)

    def quantize(state):
        for name in [n for n in state if "experts" in n and n.endswith("_proj")]:
            experts, cols, rows = state.pop(name).shape
            blocks = draw.integers(0, 256, (experts, rows, cols // 32, 16), dtype=np.uint8)
            state[f"{name}_blocks"] = torch.from_numpy(blocks)
            state[f"{name}_scales"] = torch.from_numpy(draw.integers(120, 130, blocks.shape[:3], dtype=np.uint8))
        return state

    config = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    directory = rewritten(tmp_path / "m", quantize, quantization_config=config)
    stored, name = load_file(directory / "model.safetensors"), "model.layers.0.mlp.experts.down_proj"
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    table = np.concatenate([table, -table]).astype(np.float32)
    codes, scales = stored[f"{name}_blocks"].numpy(), stored[f"{name}_scales"].numpy()
    numbers = table[np.stack([codes & 15, codes >> 4], -1)].reshape(*codes.shape[:3], 32)
    wanted = (
        (numbers * 2.0 ** (scales.astype(np.float32) - 127)[..., None]).reshape(*codes.shape[:2], -1).swapaxes(1, 2)
    )
    check_fit(find(spec(directory)))
    assert np.array_equal(loaded(directory).model.layers[0].mlp.experts.down_proj.numpy(), wanted)
    assert weight_bytes(find(spec(directory)), "fp32", on_gpu=False) == 4 * sum(p.numel() for p in model.parameters())


# -- other kinds of models

SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 60, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
SEEING = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 14}  # fmt: skip


def gemma3():
    text = SMALL | {"head_dim": 8}
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=SEEING, image_token_id=59, boi_token_index=58, eoi_token_index=57,
                     mm_tokens_per_image=4)
    )  # fmt: skip


def mllama():
    seeing = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_global_layers": 1,
              "attention_heads": 2, "image_size": 28, "patch_size": 14, "vision_output_dim": 32,
              "intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1]]}  # fmt: skip
    text = SMALL | {"cross_attention_layers": [1]}
    return MllamaForConditionalGeneration(MllamaConfig(text_config=text, vision_config=seeing, image_token_index=59))


@pytest.mark.parametrize("make", [gemma3, mllama])
def test_the_text_model_of_a_multimodal_one_computes_the_same(tmp_path, make):
    torch.manual_seed(0)
    model = make().float().eval()
    model.save_pretrained(tmp_path / "m")
    check_fit(find(spec(tmp_path / "m")))
    tokens = torch.arange(3, 13)[None]
    assert torch.equal(loaded(tmp_path / "m")(input_ids=tokens).logits, model(input_ids=tokens).logits)


def test_an_image_model_is_refused_and_its_language_model_comes_out_as_the_sentence_says(tmp_path):
    torch.manual_seed(0)
    config = LlavaConfig(text_config=LlamaConfig(**SMALL), vision_config=CLIPVisionConfig(**SEEING), image_token_id=59)
    model = LlavaForConditionalGeneration(config).float().eval()
    model.save_pretrained(tmp_path / "m")
    sentence = refused(tmp_path / "m")
    assert "LlavaForConditionalGeneration" in sentence
    code = re.search(r"take its language model out: (.*), with the tokenizer", sentence)[1]
    code = code.replace("…", repr(str(tmp_path / "m"))).replace("NEW", repr(str(tmp_path / "text")))
    exec(f"from transformers import *; {code}", {})
    tokens = torch.arange(3, 13)[None]
    assert torch.equal(loaded(tmp_path / "text")(tokens).logits, model(input_ids=tokens).logits)


def small_bert():
    return BertForMaskedLM(BertConfig(**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}))


def small_bart():
    return BartForConditionalGeneration(
        BartConfig(d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
                   encoder_ffn_dim=32, decoder_ffn_dim=32, vocab_size=60)
    )  # fmt: skip


def small_t5():
    return T5ForConditionalGeneration(T5Config(d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4, vocab_size=60))


@pytest.mark.parametrize(
    ("make", "words"),
    [(small_bert, "is an encoder"), (small_bart, "with a decoder"), (small_t5, "no causal language model")],
)
def test_what_predicts_no_next_token_is_refused(tmp_path, make, words):
    make().save_pretrained(tmp_path / "m")
    assert words in refused(tmp_path / "m")


def test_a_type_that_transformers_does_not_know_is_named_with_its_version(tmp_path):
    import transformers

    directory = saved(tmp_path / "m")
    edit(directory / "config.json", model_type="llama9")
    sentence = refused(directory)
    assert "is a llama9" in sentence
    assert transformers.__version__ in sentence
    edit(directory / "config.json", model_type=None)
    assert "no model_type" in refused(directory)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "torch.bfloat16"}, 'says "dtype": "torch.bfloat16".*write "float32", "bfloat16"'),
        ({"dtype": None, "torch_dtype": "fp16"}, 'says "torch_dtype": "fp16"'),
        ({"num_hidden_layers": "two"}, "num_hidden_layers.*two.*pip install -U transformers"),
        ({"hidden_size": 15}, "makes nothing of its config.json .*15"),
    ],
)
def test_a_config_that_transformers_makes_nothing_of_is_told_by_its_field(tmp_path, changes, words):
    directory = saved(tmp_path / "m")
    edit(directory / "config.json", **changes)
    assert re.search(words, refused(directory))


def test_a_kind_of_rotation_that_nobody_knows_is_told(tmp_path):
    directory = saved(tmp_path / "m")
    edit(directory / "config.json", rope_scaling={"type": "nonsense"})
    with pytest.raises(EsaError, match=r"can't be loaded: KeyError.*nonsense"):
        loaded(directory)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_kernel_that_the_config_asks_for_is_not_needed(tmp_path, key):
    directory = saved(tmp_path / "m")
    edit(directory / "config.json", **{key: "flash_attention_2"})
    assert torch.equal(loaded(directory)(WINDOW).logits, tiny()(WINDOW).logits)


def test_a_broken_generation_config_breaks_nothing(tmp_path):
    directory = saved(tmp_path / "m")
    (directory / "generation_config.json").write_text("{")
    assert torch.equal(loaded(directory)(WINDOW).logits, tiny()(WINDOW).logits)


# -- the same in every process

LOAD = (
    "import sys, hashlib; from esa_ray.models.load import load_model; from esa_ray.models.sources import find;"
    "from esa_ray.spec import ModelSpec; from tests.tiny import state_bits;"
    "bits = state_bits(load_model(find(ModelSpec(source=sys.argv[1])), 'fp32', 'cpu'));"
    "print(*sorted(f'{k}={hashlib.sha256(v).hexdigest()}' for k, v in bits.items()), sep='\\n')"
)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_two_processes_hold_the_same_bits_buffers_too(tmp_path, family):
    directory = saved(tmp_path / "m", family)
    # What malloc hands out is filled with another byte in each: memory that nobody wrote would differ.
    told = [
        subprocess.run([sys.executable, "-c", LOAD, str(directory)], capture_output=True, text=True, check=True,
                       env=os.environ | {"MALLOC_PERTURB_": byte})
        for byte in ("85", "170")
    ]  # fmt: skip
    assert told[0].stdout == told[1].stdout
    assert {line.partition("=")[0] for line in told[0].stdout.split()} == set(state_bits(tiny(family)))


# -- the tokenizer


def test_a_model_without_a_tokenizer_is_told_where_one_lies(tmp_path):
    tiny().save_pretrained(tmp_path / "m" / "checkpoint-5")
    source = find(spec(tmp_path / "m" / "checkpoint-5"))
    with pytest.raises(EsaError, match=r"has no tokenizer.*of the model that it was trained from"):
        load_tokenizer(source)
    byte_tokenizer().save_pretrained(tmp_path / "m")
    with pytest.raises(EsaError, match=rf"has no tokenizer.*in {re.escape(str(tmp_path / 'm'))} "):
        load_tokenizer(source)


def test_a_family_whose_tokenizer_would_be_made_empty_is_refused_too(tmp_path):
    tiny("gemma").save_pretrained(tmp_path / "m")  # transformers would make one of five tokens, and all text unknown
    with pytest.raises(EsaError, match="has no tokenizer"):
        load_tokenizer(find(spec(tmp_path / "m")))


@pytest.mark.parametrize(("file", "package"), [("tokenizer.model", "sentencepiece"), ("qwen.tiktoken", "tiktoken")])
def test_a_vocabulary_that_needs_a_package_names_it(tmp_path, file, package, monkeypatch):
    monkeypatch.setattr("esa_ray.models.tokenizing._installed", lambda name: False)
    tiny().save_pretrained(tmp_path / "m")
    (tmp_path / "m" / file).write_bytes(b"\x0a\x05words")
    edit(tmp_path / "m" / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    with pytest.raises(EsaError, match=rf"{re.escape(file)} is read by .*pip install {package}"):
        load_tokenizer(find(spec(tmp_path / "m")))
