"""See what stands anywhere in a model's forward pass, and hold it at another value, on every architecture.

    intact: with observing(model, [site]) as seen: model(batch)
    held:   with holding(model, [Hold(site, seen[site])]), perturbed(…): model(batch)

What is held is seen by what observes inside of it. Holding a site at what stood there anyway changes no bit.

>>> import torch
>>> from transformers import GPT2Config, GPT2LMHeadModel
>>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=16, n_positions=8)).eval()
>>> site, batch = Site("residual", 0, index=(3,)), torch.zeros(1, 8, dtype=torch.long)
>>> with holding(model, [Hold(site, torch.tensor(7.0))]), observing(model, [site]) as seen:
...     _ = model(batch)
>>> seen[site].shape, seen[site].unique().tolist()
(torch.Size([1, 8, 1]), [7.0])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from esa_ray.errors import EsaError
from esa_ray.models.hooks import entering, leaving
from esa_ray.models.places import places, watch
from esa_ray.models.sites import Direction, Hold, Site, SiteKind

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Direction", "Hold", "Site", "SiteKind", "holding", "observing"]

#: Sites whose numbers a model may write over later in the pass: sub-layers' outputs are added to in place.
_WRITTEN_OVER = frozenset({"attention", "ffn", "mixer", "neurons"})


@contextmanager
def observing(
    model: PreTrainedModel, sites: Sequence[Site], *, gradients: bool = False
) -> Iterator[dict[Site, Tensor]]:  # fmt: skip
    """What stands at some sites in the last forward pass, for the length of a ``with`` block and after it.

    Shapes are those that :class:`~esa_ray.models.sites.Site` tells, in the dtype and on the device of the pass. A site
    that the pass doesn't reach, as in blocks that a resumed pass leaves out, is missing. Seeing changes no bit of what
    the model computes; patterns cost one more attention.

    Parameters
    ----------
    gradients
        Leave what is seen in the graph, for ``torch.autograd.grad``.

    Raises
    ------
    EsaError
        If the model has no such place.
    """
    found: dict[Site, Tensor] = {}

    def see(site: Site, whole: Tensor) -> None:
        part = site.of(whole)
        if not gradients:
            part = part.detach()
            part = part.clone() if site.kind in _WRITTEN_OVER and site.index is None else part
        found[site] = part

    where = places(model)
    with ExitStack() as stack:
        stack.enter_context(entering(model, lambda *_: found.clear()))
        for site in dict.fromkeys(sites):
            stack.enter_context(watch(model, where, site, held=False)(partial(see, site)))
        yield found


@contextmanager
def holding(model: PreTrainedModel, holds: Sequence[Hold]) -> Iterator[None]:
    """Values held at their sites in every forward pass, for the length of a ``with`` block.

    Under :class:`~esa_ray.resume.Resumable` a hold must lie in the block that is resumed at, or later; what is held
    after the final norm needs ``head_shortcut=False``.

    Raises
    ------
    EsaError
        If the model has no such place, or a whole pass didn't come by it.
    """
    where, passes, reached = places(model), set[bool](), set[Hold]()
    with ExitStack() as stack:
        for hold in holds:
            stack.enter_context(watch(model, where, hold.site, held=True)(partial(_put, reached, hold)))
        stack.enter_context(leaving(model, lambda *_: passes.add(True)))
        yield
    if passes and (missed := [hold.site for hold in holds if hold not in reached]):
        raise EsaError(f"{where.name} did not come by {missed[0]}, so nothing was held there; hold another place")


def _put(reached: set[Hold], hold: Hold, whole: Tensor) -> Tensor:
    reached.add(hold)
    return hold(whole)
