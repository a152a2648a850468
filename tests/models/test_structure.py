"""Models whose matrices have names that tell nothing, written out by hand."""

import math
import re

import accelerate
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from esa_ray.models import telling
from esa_ray.models.addressing import catalogue
from tests.tiny import FAMILIES, tiny

HIDDEN, HEADS, HEAD, INNER, VOCAB = 16, 4, 4, 24, 40
ODD = {"q": "yin", "k": "yang", "v": "tao", "o": "zen", "gate": "one", "up": "two", "down": "three"}


class OddConfig(PreTrainedConfig):
    model_type = "odd"

    def __init__(self, names=None, attention="sdpa", mlp="gated", kv_heads=2, raw=False, extra="", **kwargs):
        super().__init__(**kwargs)
        self.hidden_size, self.num_hidden_layers, self.num_attention_heads = HIDDEN, 2, HEADS
        self.names, self.kv_heads, self.raw, self.extra = {**ODD, **(names or {})}, kv_heads, raw, extra
        self.attention, self.mlp = attention, mlp


class Raw(nn.Module):
    """x @ W with W stored (in, out)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / math.sqrt(inputs))

    def forward(self, x):
        return x @ self.weight


class Block(nn.Module):
    def __init__(self, config: OddConfig):
        super().__init__()
        self.config = config
        self.first_norm, self.second_norm = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        kv = config.kv_heads * HEAD
        # Neither the order of definition nor of computation is that of the letters.
        self.make("down", INNER, HIDDEN)
        self.make("up", HIDDEN, INNER)
        if config.mlp != "plain":
            self.make("gate", HIDDEN, INNER)
        self.make("v", HIDDEN, kv)
        self.make("o", HEADS * HEAD, HIDDEN)
        self.make("k", HIDDEN, kv)
        self.make("q", HIDDEN, HEADS * HEAD)
        if config.attention == "output gate":
            self.valve = nn.Linear(HIDDEN, HEADS * HEAD, bias=False)
        if config.extra:
            self.extra_in, self.extra_out = nn.Linear(HIDDEN, 8, bias=False), nn.Linear(8, HIDDEN, bias=False)

    def make(self, component: str, inputs: int, outputs: int) -> None:
        kind = Raw(inputs, outputs) if self.config.raw else nn.Linear(inputs, outputs, bias=component == "o")
        setattr(self, self.config.names[component], kind)

    def by(self, component: str, x):
        return getattr(self, self.config.names[component])(x)

    def turned(self, k):
        out = torch.zeros(k.shape)
        out[..., : HEAD // 2], out[..., HEAD // 2 :] = -k[..., HEAD // 2 :], k[..., : HEAD // 2]
        return out

    def heads(self, component: str, x):
        y = self.by(component, x)
        return y.view(*y.shape[:2], -1, HEAD).transpose(1, 2)

    def attend(self, x):
        v, k = (self.heads(c, x) for c in ("v", "k"))
        q = self.heads("q", x + 1 if self.config.attention == "two inputs" else x)
        k, v = (t.repeat_interleave(HEADS // self.config.kv_heads, dim=1) for t in (k, v))
        q, k = q * 1.5, self.turned(k)
        if self.config.attention in ("sdpa", "two inputs", "output gate"):
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif self.config.attention == "eager":
            scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(HEAD)
            mask = torch.full(scores.shape[-2:], -torch.inf).triu(1)
            mixed = torch.matmul(nn.functional.softmax(scores + mask, dim=-1, dtype=torch.float32), v)
        else:  # a product that is no attention
            mixed = q * k * v
        mixed = mixed.transpose(1, 2).reshape(*x.shape[:2], -1)
        return self.by("o", mixed * self.valve(x).sigmoid() if self.config.attention == "output gate" else mixed)

    def widen(self, x):
        kind = self.config.mlp
        if kind == "plain":
            return F.gelu(self.by("up", x))
        up, gate = self.by("up", x), self.by("gate", x)
        if kind == "one buffer":
            both = torch.zeros(*x.shape[:2], 2 * INNER)
            both[..., :INNER], both[..., INNER:] = up, F.silu(gate)
            up, acted = both.chunk(2, dim=-1)
            return up * acted
        acted = {"gated": F.silu, "bilinear": lambda t: t, "by hand": lambda t: t * torch.sigmoid(t)}[kind](gate)
        return up.mul_(acted)  # in place, as some models save memory

    def forward(self, x):
        x = x + self.attend(self.first_norm(x))
        normed = self.second_norm(x)
        x = x + self.by("down", self.widen(normed))
        if self.config.extra == "adapter":
            x = x + self.extra_out(F.relu(self.extra_in(x)))
        return x


class OddModel(PreTrainedModel):
    config_class = OddConfig

    def __init__(self, config: OddConfig):
        super().__init__(config)
        self.words = nn.Embedding(VOCAB, HIDDEN)
        self.floors = nn.ModuleList(Block(config) for _ in range(2))
        self.exit = nn.Linear(HIDDEN, VOCAB, bias=False)
        self.fails = False

    def get_input_embeddings(self):
        return self.words

    def get_output_embeddings(self):
        return self.exit

    def forward(self, input_ids, use_cache=True):
        if self.fails:
            raise ValueError("no such luck")
        x = self.words(input_ids)
        for floor in self.floors:
            x = floor(x)
        return CausalLMOutput(logits=self.exit(x))


def odd(**kwargs) -> OddModel:
    torch.manual_seed(0)
    return OddModel(OddConfig(**kwargs)).eval().requires_grad_(False)


def told(model) -> dict[str, str]:
    return {t.name: t.parts[0].component for t in catalogue(model).tensors if t.layer is not None and len(t.shape) == 2}


def left_open(model) -> set[str]:
    """Names within a block of the matrices that nothing tells, the same in every block."""
    named = [re.fullmatch(r"floors\.(\d)\.(\w+)\.weight", name) for name, c in told(model).items() if c == "other"]
    blocks = [{match[2] for match in named if match and match[1] == number} for number in "01"]
    assert blocks[0] == blocks[1]
    return blocks[0]


def wanted(names=ODD, components=tuple(ODD)) -> dict[str, str]:
    return {f"floors.{i}.{names[c]}.weight": c for i in (0, 1) for c in components}


PLAIN = tuple(c for c in ODD if c != "gate")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("mlp", ["gated", "plain", "by hand", "one buffer"])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_components_are_told_by_use(attention, mlp, kv_heads):
    model = odd(attention=attention, mlp=mlp, kv_heads=kv_heads)
    assert told(model) == wanted(components=PLAIN if mlp == "plain" else tuple(ODD))
    assert [t.name for t in catalogue(model).tensors if t.layer is None] == ["words.weight", "exit.weight"]
    order = [n for n, _ in model.named_parameters() if "bias" not in n]
    assert [t.name for t in catalogue(model).tensors] == order


@pytest.mark.parametrize("raw", [True, False])
def test_row_is_the_output_however_the_matrix_is_stored(raw):
    model = odd(raw=raw, attention="eager")
    found = catalogue(model)
    for name, component in wanted().items():
        tensor, module = found[name], model.get_submodule(name.removesuffix(".weight"))
        assert tensor.transposed == raw
        inputs = tensor.shape[0] if raw else tensor.shape[1]
        basis = torch.eye(inputs)
        before = module(basis)
        tensor.flat_weights()[tensor.index(3, 5)] += 1.0
        change = module(basis) - before
        assert change[5, 3] == pytest.approx(1.0, abs=1e-5), component
        change[5, 3] = 0
        assert change.abs().max() < 1e-5


HALVES = [
    {"q": "q_proj", "k": "k_proj", "v": "v_proj"},
    {"o": "o_proj", "down": "down_proj"},
    {"gate": "gate_proj"},
    {c: f"{c}_proj" for c in ODD if c != "o"},
]


@pytest.mark.parametrize("names", HALVES, ids=lambda n: "-".join(n))
def test_known_names_stand_and_the_rest_is_told_by_use(names):
    assert told(odd(names=names)) == wanted({**ODD, **names})


def test_a_known_name_that_its_use_contradicts_leaves_the_block_open():
    names = {"q": "k_proj", "k": "q_proj"}
    assert left_open(odd(names=names)) == {"one", "two", "three", "tao", "zen"}


# What is left open in a block, by the block's peculiarity.
OPEN = [
    ({"mlp": "bilinear"}, {"one", "two", "three"}),
    ({"attention": "product"}, {"yin", "yang", "tao", "zen"}),
    ({"attention": "two inputs"}, {"yin", "yang", "tao", "zen"}),
    ({"attention": "output gate"}, {"zen", "valve"}),
    ({"extra": "adapter"}, {"two", "three", "extra_in", "extra_out"}),
    ({"extra": "unused"}, {"extra_in", "extra_out"}),
    ({"names": {"up": "up_proj"}, "mlp": "bilinear"}, {"one", "three"}),
    ({"names": {"down": "down_proj"}, "extra": "adapter"}, {"two", "extra_in", "extra_out"}),
    (
        {"names": {c: f"{c}_proj" for c in ("gate", "up", "down")}, "mlp": "bilinear", "extra": "adapter"},
        {"extra_in", "extra_out"},
    ),
]


@pytest.mark.parametrize(("kwargs", "names"), OPEN, ids=[str(k) for k, _ in OPEN])
def test_what_is_ambiguous_is_not_guessed_but_named(kwargs, names):
    model = odd(**kwargs)
    assert left_open(model) == names
    found = catalogue(model)
    assert found.unknown == {f"floors.*.{n}.weight": 2 * found[f"floors.0.{n}.weight"].size for n in names}


def test_matrices_used_twice_in_a_forward_are_left_open():
    model = odd()
    model.floors[1] = model.floors[0]
    assert told(model) == {f"floors.0.{name}.weight": "other" for name in ODD.values()}


def test_of_a_model_that_cannot_run_use_tells_nothing():
    model = odd(names={"down": "down_proj"})
    model.fails = True
    assert left_open(model) == set(ODD.values()) - {"three"}
    assert told(model)["floors.1.down_proj.weight"] == "down"


@pytest.mark.parametrize("family", FAMILIES)
def test_known_architectures_are_not_run(family, monkeypatch):
    monkeypatch.setattr(telling, "infer", pytest.fail)
    model = tiny(family)
    model.forward = pytest.fail
    catalogue(model)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi3", "gemma"])
def test_use_tells_of_known_architectures_what_their_names_tell(family, monkeypatch):
    """The tables' own names hidden, but for stacked matrices, which use can't tell apart."""
    by_name = {t.name: t for t in catalogue(tiny(family)).tensors}
    real = telling.parts_by_name

    def only_stacked(name, rows, config):
        parts = real(name, rows, config)
        return parts if parts and len(parts) > 1 else None

    monkeypatch.setattr(telling, "parts_by_name", only_stacked)
    for model in (tiny(family), eager(family)):
        found = catalogue(model)
        assert [t.name for t in found.tensors] == list(by_name)
        for tensor in found.tensors:
            assert tensor.parts == by_name[tensor.name].parts, tensor.name
            assert tensor.transposed == by_name[tensor.name].transposed


def eager(family):
    model = tiny(family)
    model.config._attn_implementation = "eager"
    return model


def test_an_offloaded_model_is_told_by_use_as_well():
    model = accelerate.cpu_offload(odd(), execution_device="cpu")
    assert told(model) == wanted()
    assert all(p.is_meta for p in model.parameters())


def test_observing_leaves_the_model_as_it_was():
    model = odd().train()
    before = {n: p.clone() for n, p in model.named_parameters()}
    catalogue(model)
    assert model.training
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.named_parameters())
