"""A small Llama in which every channel has a meaning, to write circuits into; the rest of its weights is weak noise.

Channels: ``token(v)`` is on where the token is v, ``out(v)`` is read by the head as the logit of v, ``CONST`` is on
everywhere, and ``FREE`` ones are for whatever a circuit needs. Token 0 begins every window and is never predicted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB, HEADS, HEAD, INNER, BLOCKS, LENGTH = 80, 6, 40, 88, 3, 24
HIDDEN = HEADS * HEAD
CONST, FREE = 2 * VOCAB, tuple(range(2 * VOCAB + 1, HIDDEN))
#: How far a channel that is on lies above the noise of embeddings, and this; what a norm divides by is then known.
ON, NOISE, WEAK = 2.0, 0.2, 5e-3
#: So many weights are made to be the null.
DECOYS = 8


def token(v: int) -> int:
    """The channel that says that the token is v."""
    return v


def out(v: int) -> int:
    """The channel that the head reads as the logit of v."""
    return VOCAB + v


def following(v: int) -> int:
    """The token after v in the circle of all tokens but the first."""
    return v % (VOCAB - 1) + 1


def canvas(*, theta: float = 1e4, seed: int = 0, length: int = 64) -> LlamaForCausalLM:
    """The model without any circuit: all it knows is that token 0 doesn't come again."""
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=length, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": theta}, bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, WEAK)
    _embed(model.model.embed_tokens.weight)
    for v in range(VOCAB):
        model.lm_head.weight[v, out(v)] = 1.0
    model.lm_head.weight[0, CONST] = -3.0
    return model


def _embed(weight_VH: torch.Tensor) -> None:
    """Noise of one length, in channels that aren't of tokens: so neurons are off, and norms divide, exactly."""
    weight_VH[:, :VOCAB] = 0
    noise_VF = weight_VH[:, VOCAB:]
    noise_VF *= NOISE * noise_VF.shape[1] ** 0.5 / noise_VF.norm(dim=-1, keepdim=True)
    weight_VH[:, CONST] = ON
    weight_VH[range(VOCAB), [token(v) for v in range(VOCAB)]] = ON


def neuron(
    model: LlamaForCausalLM, block: int, number: int, *, when: int, read: int, write: int, size: float,
    gain: float = 0.1,
) -> None:  # fmt: skip
    """A neuron that fires where channel ``when`` is on, ``gain`` times as strongly as ``read`` is, and writes."""
    mlp = model.model.layers[block].mlp
    mlp.gate_proj.weight[number] = mlp.up_proj.weight[number] = mlp.down_proj.weight[:, number] = 0
    mlp.gate_proj.weight[number, when] = 1.0
    mlp.up_proj.weight[number, read] = gain
    mlp.down_proj.weight[write, number] = size


def successors(
    model: LlamaForCausalLM, block: int, *, when: int = CONST, size: float = 0.4, but: int | None = None
) -> None:
    """Neurons 1 to V − 1, each of which foretells what follows its token, where channel ``when`` is on; without one."""
    for v in set(range(1, VOCAB)) - {but}:
        neuron(model, block, v, when=when, read=token(v), write=out(following(v)), size=size)


@torch.no_grad()
def text(model: LlamaForCausalLM, n: int, *, seed: int, length: int = LENGTH) -> np.ndarray:
    """Windows (n, length) that the model itself writes: so no damage can lower its loss but by chance."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(n, 1, dtype=torch.int64)
    for _ in range(length - 1):
        p = model(tokens, use_cache=False).logits[:, -1].softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(p, 1, generator=generator)], 1)
    return tokens.numpy()


@dataclass(frozen=True)
class Planted:
    """A model, the weight that was planted in it, and the roles that this has and can't but have.

    ``decoys`` are weights of the same tensor and size that do something, and have no role: the null.
    """

    model: LlamaForCausalLM
    tensor: str
    component: str
    row: int
    col: int
    roles: frozenset[str]
    decoys: tuple[tuple[int, int], ...]
    #: What it is to learn frequencies from; None: text that it writes.
    calibration: np.ndarray | None = None


def planted(
    model: LlamaForCausalLM, block: int, component: str, row: int, col: int, *roles: str,
    calibration: np.ndarray | None = None,
) -> Planted:  # fmt: skip
    """The weight of a block's down, q or k that was planted, with decoys of its size."""
    layer, size = model.model.layers[block], 0.0
    name = f"mlp.{component}_proj" if component == "down" else f"self_attn.{component}_proj"
    weight = layer.get_submodule(name).weight
    size, generator = float(weight[row, col]), torch.Generator().manual_seed(5)
    decoys = []
    if component == "down":
        for made in (layer.mlp.gate_proj, layer.mlp.up_proj):
            made.weight[-DECOYS:, CONST] = 0.1
        decoys = [(FREE[-1 - i], INNER - 1 - i) for i in range(DECOYS)]
        model.lm_head.weight[1:, FREE[-DECOYS] :].normal_(0, 0.2, generator=generator)
    else:
        layer.self_attn.v_proj.weight[-3 * HEAD :].normal_(0, 0.05, generator=generator)
        layer.self_attn.o_proj.weight[:, -3 * HEAD :].normal_(0, 0.05, generator=generator)
        decoys = [(HIDDEN - 1 - 11 * i, token(7 * i) if i % 2 else CONST) for i in range(DECOYS)]
    for i, at in enumerate(decoys):
        weight[at] = size if i % 3 else -size
    where = f"model.layers.{block}.{name}.weight"
    return Planted(model, where, component, row, col, frozenset(roles), tuple(decoys), calibration)
