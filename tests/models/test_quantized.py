"""Weights of every dtype are the numbers that they are; codes are computed back, or refused."""

import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import GptOssConfig, GptOssForCausalLM

from esa_ray.errors import EsaError
from esa_ray.models.dry import check_fit
from esa_ray.models.sources import find, weight_bytes
from tests.models.checkpoints import edit, loaded, rewritten, saved, spec
from tests.tiny import tiny

DOWN = "model.layers.0.mlp.down_proj.weight"


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
        GptOssConfig(
            **sizes,
            num_key_value_heads=2,
            head_dim=8,
            vocab_size=48,
            num_local_experts=2,
            num_experts_per_tok=2,
            pad_token_id=1,
        )
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
