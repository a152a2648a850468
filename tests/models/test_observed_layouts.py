"""Every architecture's places: seeing and holding what stands there anyway change no bit, or are refused."""

import pytest
import torch

from esa_ray.errors import EsaError
from esa_ray.models.observe import Hold, Site, holding
from tests.models.observed import TOKENS, logits, seen_in
from tests.tiny_layouts import CASES, tiny_layout
from tests.tiny_mixers import MIXERS, tiny_mixer

KINDS = ("residual", "attention", "ffn", "mixer", "neurons", "patterns", "keys", "values")
SITES = [*(Site(kind, layer) for layer in (0, 1) for kind in KINDS), Site("denominator")]
#: Attention by code of their own.
OWN = {"falcon", "codegen", "bloom", "mpt", "gptj", "gpt_neo", "gpt_neox_japanese", "openai-gpt", "xlnet", "cpmant"}


def shown(model):
    """The sites that a model shows in its two blocks, each held without a change of any bit."""
    before, found, generator = logits(model, TOKENS), [], torch.Generator().manual_seed(0)
    for site in SITES:
        try:
            (state,) = seen_in(model, site)
        except EsaError:
            continue
        with holding(model, [Hold(site, state)]):
            assert torch.equal(logits(model, TOKENS), before), site
        with holding(model, [Hold(site, torch.rand(state.shape, generator=generator))]):
            assert not torch.equal(logits(model, TOKENS), before), site
        found.append(site)
    return found


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("xlm", "longcat_flash")])
def test_every_layout_shows_its_places(case):
    found = {site.kind for site in shown(tiny_layout(case))}
    assert {"residual", "attention"} <= found
    # Granite adds up its experts and what all share outside of any module.
    assert ("ffn" in found) == (case != "granitemoeshared")
    assert ({"patterns", "keys", "values"} <= found) == (case.split(",")[0] not in OWN)
    assert ("denominator" in found) == (case not in ("openai-gpt", "xlnet"))


@pytest.mark.parametrize("case", MIXERS)
def test_every_mixer_shows_its_places(case):
    found = {site.kind for site in shown(tiny_mixer(case))}
    assert "residual" in found
    assert {"mixer", "attention"} & found
