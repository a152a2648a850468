"""What is seen and held in forward passes, against transformers' own outputs, rebuilt models and hand-made ones."""

import pytest
import torch

from esa_ray.models.observe import Direction, Hold, Site, holding, observing
from tests.families import MODELS, _patched, build
from tests.tiny import VOCAB, random_windows

#: Bloom computes attention by code of its own.
INTERFACED = [name for name in MODELS if name != "bloom"]
TOKENS = torch.as_tensor(random_windows(3, 9))
INSIDE = ("residual", "attention", "ffn", "neurons", "patterns", "keys", "values")
UNIT = Direction.of(torch.linspace(-1, 2, VOCAB))
SITES = [*(Site(kind, 1) for kind in INSIDE), Site("residual", -1), Site("denominator"), Site("logits")]
SITES = [*SITES, Site("projection", direction=UNIT)]


def there(name, site):
    """Whether a family has such a place."""
    missing = {"bloom": ("patterns", "keys", "values"), "mixtral": ("neurons",)}
    return site.kind not in missing.get(name, ())


@torch.no_grad()
def logits(model):
    return model(TOKENS, use_cache=False).logits


def seen_in(model, *sites):
    with torch.no_grad(), observing(model, sites) as seen:
        model(TOKENS, use_cache=False)
    return [seen[site] for site in sites]


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.kind)
@pytest.mark.parametrize("name", MODELS)
def test_seeing_and_holding_what_stands_there_anyway_change_no_bit(name, site):
    if not there(name, site):
        return
    model = build(name)
    before = logits(model)
    with observing(model, [site]) as seen:
        assert torch.equal(logits(model), before)
    with holding(model, [Hold(site, seen[site])]):
        assert torch.equal(logits(model), before)
    with holding(model, [Hold(site, 0.5 * seen[site])]):
        assert not torch.equal(logits(model), before)
    assert torch.equal(logits(model), before)
    assert not _patched(model)


@pytest.mark.parametrize("name", INTERFACED)
def test_patterns_are_those_that_transformers_gives(name):
    model = build(name)
    sites = [
        Site("patterns", layer)
        for layer in range(
            len(model.get_decoder().layers if hasattr(model.get_decoder(), "layers") else model.get_decoder().h)
        )
    ]
    seen = seen_in(model, *sites)
    eager = build(name)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        wanted = eager(TOKENS, output_attentions=True, use_cache=False).attentions
    assert len(wanted) == len(seen)
    for mine, theirs in zip(seen, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_residuals_are_the_hidden_states_that_transformers_gives(name):
    model = build(name)
    with torch.no_grad():
        wanted = model(TOKENS, output_hidden_states=True, use_cache=False).hidden_states
    # The last one that transformers gives has passed the final norm.
    seen = seen_in(model, *(Site("residual", layer) for layer in range(-1, len(wanted) - 2)))
    for mine, theirs in zip(seen, wanted, strict=False):
        assert torch.equal(mine, theirs)
