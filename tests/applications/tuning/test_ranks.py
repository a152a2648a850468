"""What adapters stand beside, at which rank, and what they can't."""

import sys

import pytest

from esa_ray.applications.tuning.choosing import Eligible
from esa_ray.applications.tuning.ranks import plan, width
from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from tests.applications.tuning.loops import asked, looked, tuned
from tests.tiny import tiny
from tests.tiny_layouts import tiny_layout
from tests.tiny_mixers import tiny_mixer


def test_convolutions_are_left_alone():
    model = tiny_mixer("mamba2")
    with tuned(model, asked(arm="lora", fraction=0.4)) as found:
        moves = dict(zip(found.moved_components, found.component_moved, strict=True))
    assert [name for name, move in moves.items() if move == 0] == ["mixer_conv"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("n", [1, 60, 300, 600, 1000, 5000])
def test_the_rank_is_that_whose_count_comes_nearest(family, n):
    eligible = Eligible(catalogue(tiny(family)), asked().components)
    found = plan(eligible, n)
    every = [t for t in eligible.tensors if len(t.shape) == (3 if t.experts else 2)]
    few = [t for t in every if any(p.component in "qv" for p in t.parts)]
    sets = [every] if sum(map(width, every)) <= n else [every, few]
    nearest = min(abs(rank * sum(map(width, some)) - n) for some in sets for rank in range(1, 400))
    assert abs(found.count - n) == nearest


def test_an_adapters_numbers_are_those_of_its_two_factors():
    widths = {t.name: width(t) for t in catalogue(tiny("mixtral")).tensors if "layers.0" in t.name and len(t.shape) > 1}
    assert widths["model.layers.0.mlp.experts.gate_up_proj"] == 3 * (48 + 16)
    assert widths["model.layers.0.self_attn.k_proj.weight"] == 8 + 16


def test_without_peft_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(EsaError, match=r"--arm lora needs peft: pip install 'esa-ray\[tune\]'"):
        looked(tiny("llama"), asked(arm="lora"))


@pytest.mark.parametrize(
    ("family", "components", "sentence"),
    [
        ("phi3", ("q",), "whole matrices, and .*qkv_proj.weight holds q, k, v; name all of them"),
        (
            "llama",
            ("embed",),
            r"can't adapt model.embed_tokens.weight \(embed\), which is an embedding or stands in several places",
        ),
        ("llama", ("norm",), "adapts matrices, and norm are none"),
        ("xlnet", ("attention",), "which is not stored as a matrix"),
    ],
)
def test_what_adapters_cant_stand_beside_is_refused_by_name(family, components, sentence):
    model = tiny(family) if family in ("llama", "phi3") else tiny_layout(family)
    with pytest.raises(EsaError, match=sentence):
        looked(model, asked(arm="lora", fraction=0.3, components=components))


def test_a_module_that_peft_cant_call_is_refused_and_the_model_is_left_as_it_was():
    model = tiny("llama")
    mlp = model.model.layers[0].mlp
    mlp.up_proj.forward, modules = (lambda: None), [id(module) for module in model.modules()]
    with pytest.raises(EsaError, match=r"peft can't adapt all of LlamaForCausalLM .* or --components attention"):
        looked(model, asked(arm="lora", fraction=0.3))
    assert [id(module) for module in model.modules()] == modules
