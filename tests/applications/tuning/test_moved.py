"""How far blocks and components moved, against sums over differences."""

import numpy as np
import pytest
import torch

from esa_ray.applications.calibrated import Calibrated
from esa_ray.applications.kept import replacing
from esa_ray.applications.tuning import moved as module
from esa_ray.applications.tuning import tune
from esa_ray.models.addressing import catalogue
from tests.applications.tuning.loops import SEED, SOURCE, TRAIN, asked, parameters, tuned
from tests.tiny import LAYERS, tiny


@pytest.mark.parametrize("chunk", [1 << 22, 50])
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "mixtral", "gpt_neox", "gemma"])
def test_norms_by_block_and_component_are_those_of_their_weights(family, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    model = tiny(family)
    before = parameters(model)
    with tuned(model, asked(components=("attention", "ffn", "embed", "norm"), learning_rate=0.05)) as found:
        deltas = {n: (now - before[n]).double().numpy().ravel() for n, now in parameters(model).items()}
    blocks, components = np.zeros(LAYERS), {}
    for tensor in catalogue(model).select(asked(components=("attention", "ffn", "embed", "norm")).components):
        squares = deltas[tensor.name] ** 2
        if tensor.layer is not None:
            blocks[tensor.layer] += squares.sum()
        for component, square in zip(tensor.locate(np.arange(tensor.size))["component"], squares, strict=True):
            components[component] = components.get(component, 0.0) + square
    assert found.block_moved == pytest.approx(np.sqrt(blocks))
    assert dict(zip(found.moved_components, found.component_moved, strict=True)) == pytest.approx(
        {name: np.sqrt(square) for name, square in components.items()}
    )
    assert sum(each**2 for each in found.component_moved) == pytest.approx(found.delta_norm**2)


def test_components_that_could_be_trained_and_were_not_moved_by_nothing():
    model = tiny("llama")
    names = ("model.layers.1.mlp.up_proj.weight",)
    with tuned(model, asked(arm="lora", fraction=0.3, components=("q", "v", *names, "norm"))) as found:
        moves = dict(zip(found.moved_components, found.component_moved, strict=True))
    assert [name for name, move in moves.items() if move == 0] == ["norm"]
    assert set(moves) == {"q", "v", "up", "norm"}


def test_each_look_knows_how_far_the_model_moved_by_then():
    for how in ({}, {"arm": "lora", "fraction": 0.3}, {"arm": "random", "fraction": 0.1}):
        model = tiny("phi3")
        weights, before, seen = catalogue(model), parameters(model), []
        text = Calibrated(model, weights, SOURCE)
        with replacing() as kept:

            def look(found, kept=kept, model=model, before=before, seen=seen):
                delta = torch.cat([(now - before[n]).flatten() for n, now in parameters(model).items()]).double()
                assert kept.n_changed == int((delta != 0).sum())
                assert kept.delta_norm == pytest.approx(float(delta.norm()))
                seen.append(kept.delta_norm)

            tune(model, weights, asked(**how), SEED, TRAIN, source=text, target=text, kept=kept, look=look)
        assert 0 < seen[0] < seen[-1]
