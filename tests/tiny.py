"""Tiny random models, a byte-level tokenizer, and slow but obviously right references."""

from __future__ import annotations

import copy
from functools import lru_cache

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

VOCAB, HIDDEN, HEADS, HEAD, KV_HEADS, INNER, LAYERS, EXPERTS = 48, 16, 4, 4, 2, 24, 2, 3

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_GROUPED = {**_COMMON, "num_key_value_heads": KV_HEADS}

FAMILIES = {
    "llama": lambda tied: LlamaConfig(**_GROUPED, tie_word_embeddings=tied),
    "gpt_neox": lambda tied: GPTNeoXConfig(
        **_COMMON, tie_word_embeddings=tied, attention_dropout=0.0, hidden_dropout=0.0
    ),
    "gpt2": lambda tied: GPT2Config(
        vocab_size=VOCAB,
        n_embd=HIDDEN,
        n_inner=INNER,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=64,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=1,
    ),
    "phi3": lambda tied: Phi3Config(**_GROUPED, tie_word_embeddings=tied),
    "gemma": lambda tied: GemmaConfig(**_GROUPED, head_dim=HEAD, tie_word_embeddings=tied),
    "mixtral": lambda tied: MixtralConfig(
        **_GROUPED, tie_word_embeddings=tied, num_local_experts=EXPERTS, num_experts_per_tok=2
    ),
}
TIED_BY_DEFAULT = {"gpt2", "gemma"}


@lru_cache
def _original(family: str, tied: bool, seed: int) -> PreTrainedModel:
    config = FAMILIES[family](tied)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def tiny(
    family: str = "llama", *, tied: bool | None = None, seed: int = 0, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A tiny random model in eval mode without gradients; every call gives a fresh copy."""
    tied = family in TIED_BY_DEFAULT if tied is None else tied
    return copy.deepcopy(_original(family, tied, seed)).to(dtype)


def random_windows(n: int, length: int = 10, *, seed: int = 0, vocab: int = VOCAB) -> np.ndarray:
    """Random token windows, (n, length)."""
    return np.random.default_rng(seed).integers(0, vocab, size=(n, length))


def summed_nll(model: PreTrainedModel, window: np.ndarray) -> torch.Tensor:
    """The definition, spelled out: minus the sum of the log-probabilities of each next token."""
    logits = model(torch.as_tensor(window)[None], use_cache=False).logits[0]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = torch.zeros((), dtype=logits.dtype)
    for t in range(len(window) - 1):
        total = total - torch.log_softmax(logits[t], dim=-1)[int(window[t + 1])]
    return total


def window_gradients(
    model: PreTrainedModel, names: list[str], windows: np.ndarray, *, double: bool = True
) -> list[np.ndarray]:
    """Per parameter: the gradient of each window's summed NLL by torch.autograd.grad, (N, *shape), float64."""
    twin = copy.deepcopy(model).requires_grad_(True)
    twin = twin.double() if double else twin
    if getattr(twin.config, "_experts_implementation", None):
        twin.config._experts_implementation = "eager"  # the grouped kernel knows no float64; this is another path, too
    parameters = dict(twin.named_parameters())
    wanted = [parameters[name] for name in names]
    found: list[list[np.ndarray]] = [[] for _ in names]
    for window in windows:
        gradients = torch.autograd.grad(summed_nll(twin, window), wanted, allow_unused=True)
        for mine, gradient, parameter in zip(found, gradients, wanted, strict=True):
            mine.append((torch.zeros_like(parameter) if gradient is None else gradient).double().numpy())
    return [np.stack(mine) for mine in found]


def state_bits(model: PreTrainedModel) -> dict[str, bytes]:
    """Every parameter and buffer as raw bytes, so that NaN payloads and signed zeros count."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for name, t in tensors}


BOS_ID, FIRST_BYTE = 0, 2


def byte_tokenizer(*, adds_bos: bool = True, bos: bool = True) -> PreTrainedTokenizerFast:
    """One token a byte: byte b is token b + 2, BOS is token 0."""
    vocab = {"<s>": BOS_ID, "</s>": 1} | {letter: b + FIRST_BYTE for b, letter in bytes_to_unicode().items()}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    if adds_bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS_ID)]
        )
    special = {"bos_token": "<s>"} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", **special)


PLANTED = ("model.layers.1.mlp.down_proj.weight", 9, 17)


def with_planted_super_weight(size: float = 0.2) -> tuple[PreTrainedModel, np.ndarray]:
    """A tiny Llama with one super weight (``PLANTED``), and windows of tokens 0 to 23 that it decides.

    Four embedding channels are the same for every token and drive inner unit 17, which so spikes
    everywhere; the planted weight carries the spike to residual channel 9; the head reads that channel as
    "not one of tokens 0 to 23". All other weights of the blocks are weak.
    """
    model = tiny("llama")
    mlp, (_, row, col) = model.model.layers[1].mlp, PLANTED
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.1)
        model.model.embed_tokens.weight[:, :4] = 0.5
        for projection in (mlp.gate_proj.weight, mlp.up_proj.weight):
            projection[col] = 0.0
            projection[col, :4] = 0.5
        mlp.down_proj.weight[row, col] = size
        model.lm_head.weight[:, row] = -0.3
        model.lm_head.weight[24:, row] = 0.3
    return model, random_windows(6, 10, vocab=24)
