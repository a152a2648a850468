"""What tests of seen and held activations share."""

import torch

from esa_ray.models.observe import observing
from tests.tiny import random_windows

TOKENS = torch.as_tensor(random_windows(3, 9))


@torch.no_grad()
def logits(model, tokens=TOKENS):
    return model(tokens, use_cache=False).logits


def seen_in(model, *sites, tokens=TOKENS):
    """What stands at some sites while a model reads tokens."""
    with observing(model, sites) as seen:
        logits(model, tokens)
    return [seen[site] for site in sites]
