import numpy as np
import pytest
import torch

from esa_ray.interpret.facts.restoring import SUBLAYERS, Place, Restoring
from esa_ray.interpret.facts.runs import Runs
from tests.tiny import HIDDEN, LAYERS, tiny
from tests.tiny_mixers import tiny_mixer

CLEAN, OTHER = (0, 5, 9, 13, 21, 7), (0, 5, 30, 41, 21, 7)
PAIR = (11, 33)
#: Family → the modules of a block whose outputs attention and feed-forward layer add.
MODULES = {
    "llama": lambda model, b: (model.model.layers[b], "self_attn.o_proj", "mlp.down_proj"),
    "gpt_neox": lambda model, b: (model.gpt_neox.layers[b], "attention.dense", "mlp.dense_4h_to_h"),
    "gpt2": lambda model, b: (model.transformer.h[b], "attn.c_proj", "mlp.c_proj"),
    "mixtral": lambda model, b: (model.model.layers[b], "self_attn.o_proj", "mlp"),
}
PLACES = [Place(b, sublayer, n) for n in (1, 3) for sublayer in SUBLAYERS for b in range(LAYERS)]


def modules_of(model, family, place):
    """The modules whose outputs a place covers."""
    half = place.restored // 2
    for b in range(max(0, place.block - half), min(LAYERS, place.block + half + 1)):
        block, attention, ffn = MODULES[family](model, b)
        yield {"residual": block, "attention": block.get_submodule(attention), "ffn": block.get_submodule(ffn)}[
            place.sublayer
        ]


def first_of(output):
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def by_hand(model, tokens, noise=None, put_back=None, position=None):
    """z(answer) − z(alternative) at the end of one whole pass, with outputs of modules as they were elsewhere."""
    hooks = []

    def put(module, _, output):
        state = first_of(output).clone()
        state[:, position] = put_back[module][:, position]
        return (state, *output[1:]) if isinstance(output, tuple) else state

    hooks += [module.register_forward_hook(put) for module in put_back or {}]
    if noise is not None:
        hooks.append(model.get_input_embeddings().register_forward_hook(lambda _, __, output: output + noise))
    logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1].double()
    for hook in hooks:
        hook.remove()
    return float(logits[PAIR[0]] - logits[PAIR[1]])


@torch.no_grad()
def outputs(model, modules, tokens):
    """What modules give in a clean pass."""
    seen = {}
    hooks = [m.register_forward_hook(lambda m, _, o: seen.update({m: first_of(o).clone()})) for m in modules]
    model(torch.tensor([tokens]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


def corrupted():
    noise = np.zeros((2, len(CLEAN), HIDDEN), dtype=np.float32)
    noise[1, 2:4] = np.random.default_rng(0).normal(size=(2, HIDDEN))
    return np.array([OTHER, CLEAN]), noise


@pytest.mark.parametrize("family", MODULES)
def test_effects_are_those_of_whole_passes_one_by_one(family):
    model = tiny(family)
    tokens, noise = corrupted()
    found = Restoring(model, CLEAN, tokens, noise, PAIR)
    assert found.clean == pytest.approx(by_hand(model, CLEAN), abs=1e-5)
    base = [by_hand(model, tokens[k].tolist(), torch.tensor(noise[k])) for k in range(2)]
    assert found.corrupted == pytest.approx(base, abs=1e-5)
    effects = found.effects(PLACES, [3, 5])
    for place, mine in zip(PLACES, effects, strict=True):
        clean = outputs(model, list(modules_of(model, family, place)), CLEAN)
        for position, values in zip([3, 5], mine, strict=True):
            for k, value in enumerate(values):
                whole = by_hand(model, tokens[k].tolist(), torch.tensor(noise[k]), clean, position)
                assert value == pytest.approx(whole - base[k], abs=1e-4), (place, position, k)


def test_the_last_state_of_all_gives_back_all_that_corruption_took():
    found = Restoring(tiny(), CLEAN, *corrupted(), PAIR)
    (effects,) = found.effects([Place(LAYERS - 1, "residual", 1)], [5, 3])
    assert effects[0] == pytest.approx(found.clean - found.corrupted, abs=1e-5)
    assert effects[1].tolist() == pytest.approx([0, 0], abs=1e-5)  # nothing behind the last block reads another token


@pytest.mark.parametrize("at", ["blocks", "tokens"])
def test_a_model_that_cannot_be_resumed_is_run_whole_with_the_same_effects(monkeypatch, at):
    resumed = Restoring(tiny(), CLEAN, *corrupted(), PAIR)
    assert resumed._runs._cuts
    if at == "blocks":
        monkeypatch.setattr(Runs, "_agrees", lambda *_: False)
    else:
        monkeypatch.setattr(Runs, "_cached", False)
    whole = Restoring(tiny(), CLEAN, *corrupted(), PAIR)
    assert (whole._runs._resumes, whole._runs._cuts) == (at == "tokens", False)
    assert whole.effects(PLACES, [2, 5]) == pytest.approx(resumed.effects(PLACES, [2, 5]), abs=1e-5)


def test_a_block_that_reads_the_embeddings_is_not_resumed():
    model = tiny()
    kept = []
    model.model.embed_tokens.register_forward_hook(lambda _, __, output: kept.append(output))
    # The last block adds what left the first in this pass; with that block handing through, it would add other states.
    model.model.layers[0].register_forward_hook(lambda _, __, output: kept.append(output))
    model.model.layers[1].register_forward_hook(lambda _, __, output: output + kept[-1])
    assert not Restoring(model, CLEAN, *corrupted(), PAIR)._runs._resumes


def test_small_batches_give_the_same(monkeypatch):
    whole = Restoring(tiny(), CLEAN, *corrupted(), PAIR).effects(PLACES, [2, 5])
    monkeypatch.setattr("esa_ray.interpret.facts.restoring.TOKENS", 1)
    assert Restoring(tiny(), CLEAN, *corrupted(), PAIR).effects(PLACES, [2, 5]) == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("mamba", {(0, "residual"), (1, "residual")}),
        ("jamba", {(0, "residual"), (0, "ffn"), (1, "residual"), (1, "attention"), (1, "ffn")}),
    ],
)
def test_a_block_is_traced_by_the_sub_layers_that_it_has(kind, wanted):
    found = Restoring(tiny_mixer(kind), CLEAN, *corrupted(), PAIR)
    assert found._runs._resumes
    assert not found._runs._cuts
    assert {(site.layer, site.kind) for site in found.sites} == wanted
    (effects,) = found.effects([Place(1, "residual", 1)], [5])
    assert effects[0] == pytest.approx(found.clean - found.corrupted, abs=1e-5)
