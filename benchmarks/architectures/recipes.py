"""Tiny random models of all types of transformers' causal LM mapping, written to a directory as users have it."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from benchmarks.architectures.fields import OVERRIDES, VARIANTS
from benchmarks.architectures.shrink import EXPERTS, tiny


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte of 256, BOS 0 before every text, EOS 1."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1} | {c: i + 2 for i, c in enumerate(alphabet)}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


@torch.no_grad()
def livened(model: PreTrainedModel) -> PreTrainedModel:
    """The model with weights that matter: matrices of some size, and norms, biases and decays all different."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        size = parameter.square().mean().sqrt()
        if parameter.dim() < 2 or size == 0:
            parameter.add_(0.1 * noise)
        elif size < 0.1:
            parameter.mul_(0.2 / size)
    for name, table in model.named_buffers():
        if name.endswith("tid2eid"):  # which experts a token goes to: by default all to the first one
            table.copy_(torch.argsort(torch.rand(len(table), EXPERTS, generator=generator))[:, : table.shape[1]])
    return model


def config(kind: str) -> PreTrainedConfig:
    """The tiny config of a type, or of a variant of one."""
    of = type_of(kind)
    return tiny(of, **OVERRIDES.get(of, {}) | VARIANTS.get(kind, {}))


def type_of(kind: str) -> str:
    """The type that a variant is of.

    >>> type_of("falcon (40B)")
    'falcon'
    """
    return kind.split(" ")[0]


def build(kind: str) -> PreTrainedModel:
    """A tiny random model of a type, as ``AutoModelForCausalLM`` makes it."""
    torch.manual_seed(0)
    return livened(AutoModelForCausalLM.from_config(config(kind), dtype=torch.float32).eval())


def published(kind: str) -> PreTrainedModel:
    """The model whose checkpoint people have of this type: the whole, where the language model is a part of it."""
    model, whole = build(kind), config(kind)
    if whole.get_text_config() is whole or type(model.config) is type(whole):
        return model
    torch.manual_seed(0)
    return livened(AutoModelForImageTextToText.from_config(whole, dtype=torch.float32).eval())


def write(kind: str, directory: Path) -> Path:
    """A model as it is published, and its tokenizer, in a directory."""
    published(kind).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory
