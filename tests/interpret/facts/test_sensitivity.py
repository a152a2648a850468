import numpy as np
import pytest

from esa_ray.applications.calibrated import Calibrated
from esa_ray.interpret.facts.sensitivity import sensitivities
from esa_ray.models.addressing import catalogue
from tests.tiny import LAYERS, random_windows, tiny, window_gradients

LASTS = {
    "llama": {"attention": "model.layers.{}.self_attn.o_proj.weight", "ffn": "model.layers.{}.mlp.down_proj.weight"},
    "gpt2": {"attention": "transformer.h.{}.attn.c_proj.weight", "ffn": "transformer.h.{}.mlp.c_proj.weight"},
    "mixtral": {"attention": "model.layers.{}.self_attn.o_proj.weight", "ffn": "model.layers.{}.mlp.experts.down_proj"},
}


@pytest.mark.parametrize("family", LASTS)
def test_a_sublayers_sensitivity_is_the_sum_over_its_last_matrix(family):
    model, windows = tiny(family), random_windows(4)
    found = sensitivities(Calibrated(model, catalogue(model), windows))
    names = {(b, part): name.format(b) for part, name in LASTS[family].items() for b in range(LAYERS)}
    gradients = window_gradients(model, list(names.values()), windows)
    weights = dict(model.named_parameters())
    tokens = windows[:, 1:].size
    wanted = {
        place: np.abs(g * weights[name].double().numpy()).sum() / tokens
        for (place, name), g in zip(names.items(), gradients, strict=True)
    }
    assert found == pytest.approx(wanted, rel=1e-4)
