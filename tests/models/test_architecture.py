"""What is a causal language model, or holds one, computes the same; what is none is refused."""

import re

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MllamaConfig,
    MllamaForCausalLM,
    MllamaForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig

from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.models.dry import check_fit
from esa_ray.models.load import load_tokenizer
from esa_ray.models.sources import find
from tests.models.checkpoints import edit, loaded, refused, saved, spec
from tests.tiny import random_windows, tiny

WINDOW = torch.as_tensor(random_windows(1, seed=3))


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


def test_a_language_model_that_was_saved_without_what_sees_loads_by_the_class_that_its_config_names(tmp_path):
    torch.manual_seed(0)
    model = MllamaForCausalLM(MllamaTextConfig(**SMALL, cross_attention_layers=[1], tie_word_embeddings=False)).eval()
    model.save_pretrained(tmp_path / "m")
    check_fit(find(spec(tmp_path / "m")))
    found, tokens = loaded(tmp_path / "m"), torch.arange(3, 13)[None]
    assert torch.equal(found(tokens).logits, model(tokens).logits)
    weights = catalogue(found)
    assert weights.layers == 2
    parts = {t.name: t.parts[0].component for t in weights.tensors}
    assert [parts[f"model.layers.1.cross_attn.{c}_proj.weight"] for c in "qkvo"] == ["q", "k", "v", "o"]
    edit(tmp_path / "m" / "config.json", architectures=["LlamaForCausalLM"])  # a class of another type
    assert "no causal language model" in refused(tmp_path / "m")
    # A decoder of sounds is called a ForCausalLM, too.
    edit(tmp_path / "m" / "config.json", architectures=["MusicgenForCausalLM"], model_type="musicgen_decoder")
    assert "no causal language model" in refused(tmp_path / "m")


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
        ({"num_hidden_layers": "two"}, 'says "num_hidden_layers": "two" .*where a whole number belongs'),
        ({"bos_token_id": [0]}, r'says "bos_token_id": \[0\] .*where a whole number or null belongs'),
        ({"eos_token_id": "x"}, 'says "eos_token_id": "x" .*a whole number or a list of whole numbers or null belongs'),
        ({"tie_word_embeddings": "no"}, 'says "tie_word_embeddings": "no" .*where true or false belongs'),
        ({"rms_norm_eps": 0}, 'says "rms_norm_eps": 0 .*where a number with a decimal point belongs'),
        ({"hidden_size": 15}, r"contradicts itself in its config.json: .*15.* attention heads \(4\); fetch it again"),
        ({"num_attention_heads": 0}, 'says "num_attention_heads": 0 in its config.json, and by that it divides'),
        ({"hidden_act": "swiglu"}, 'says "hidden_act": "swiglu" .*it knows .*silu'),
        ({"pad_token_id": 48}, 'says "pad_token_id": 48 in its config.json, and has tokens 0 to 47 alone'),
        ({"rope_scaling": {"type": "nonsense"}}, 'says "rope_scaling.type": "nonsense" .*pip install -U transformers'),
        ({"rope_scaling": {"rope_type": "lama3"}}, 'says "rope_scaling.rope_type": "lama3" .*it knows llama3'),
    ],
)
def test_a_config_that_no_model_can_be_built_by_is_told_by_its_field(tmp_path, changes, words):
    directory = saved(tmp_path / "m")
    edit(directory / "config.json", **changes)
    assert re.search(words, refused(directory))


@pytest.mark.parametrize("changes", [{"bos_token_id": "zero"}, {"hidden_act": 3}, {"num_attention_heads": 0}])
def test_a_tokenizer_is_not_blamed_for_a_config_that_it_reads(tmp_path, changes):
    directory = saved(tmp_path / "m")
    edit(directory / "config.json", **changes)
    with pytest.raises(EsaError) as told:
        load_tokenizer(find(spec(directory)))
    assert str(told.value) == refused(directory)


def test_other_families_faults_are_told_by_their_own_keys(tmp_path):
    for family, changes, words in (
        ("gpt2", {"activation_function": "geglu"}, 'says "activation_function": "geglu" .*it knows .*gelu'),
        ("gpt2", {"n_head": 5}, "can't be built by its config.json .*16 and `num_heads`: 5"),
        ("mixtral", {"num_experts_per_tok": 4}, 'says "num_experts_per_tok": 4 .*num_local_experts.: 3'),
    ):
        directory = saved(tmp_path / "-".join((family, *changes)), family)
        edit(directory / "config.json", **changes)
        assert re.search(words, refused(directory))


def test_tokens_may_pass_all_experts(tmp_path):
    directory = saved(tmp_path / "m", "mixtral")
    edit(directory / "config.json", num_experts_per_tok=3)
    assert loaded(directory).config.num_experts_per_tok == 3


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_kernel_that_the_config_asks_for_is_not_needed(tmp_path, key):
    directory = saved(tmp_path / "m")
    edit(directory / "config.json", **{key: "flash_attention_2"})
    assert torch.equal(loaded(directory)(WINDOW).logits, tiny()(WINDOW).logits)


def test_a_broken_generation_config_breaks_nothing(tmp_path):
    directory = saved(tmp_path / "m")
    (directory / "generation_config.json").write_text("{")
    assert torch.equal(loaded(directory)(WINDOW).logits, tiny()(WINDOW).logits)
