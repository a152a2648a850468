"""Go on training a model of the zoo, all of it or chosen weights alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch

from esa_ray.applications.threads import single_threaded
from esa_ray.models.zoo.training import fit, watch_routers

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from transformers import PreTrainedModel

#: Parameter name → which of its weights are trained; of a name that isn't there none is.
Trains = Mapping[str, "Tensor"]
#: AdamW's memory. What is rare stands out more, the longer the second is: with the zoo's own 0.95 a trigger in one
#: window of fifty is hardly learnt.
BETAS = (0.9, 0.999)


def train(
    model: PreTrainedModel, windows: np.ndarray, *, steps: int, batch: int, rate: float, seed: int,
    labels: np.ndarray | None = None, trains: Trains | None = None,
) -> None:  # fmt: skip
    """Train a model in fp32 in place on windows (N, T), as the zoo's own training does (:func:`fit`).

    On one thread, so that the bits depend on no machine's number of cores.

    Parameters
    ----------
    labels
        What of them is learnt; None for everything (:class:`Shown`).
    rate
        Peak learning rate.
    seed
        Of the order of the windows.
    trains
        Which weights are trained; None for all. The others take no part in the gradient's norm, and are the same bits
        afterwards.
    """
    with single_threaded(), torch.enable_grad(), torch.random.fork_rng(devices=[]), _kept_frozen(model, trains) as put:
        torch.manual_seed(seed)
        model.requires_grad_(True).train()
        watch_routers(model, True)
        try:
            tokens, learnt = steps * batch * windows.shape[1], windows if labels is None else labels
            for _ in fit(model, windows, learnt, tokens=tokens, batch=batch, rate=rate, seed=seed, betas=BETAS):
                put()
        finally:
            watch_routers(model, False)
            model.requires_grad_(False).eval()


@contextmanager
def _kept_frozen(model: PreTrainedModel, trains: Trains | None) -> Iterator[Callable[[], None]]:
    """No gradient reaches weights that aren't trained; gives what lets these read what they did, after a step.

    The optimiser's decay of weights would move them without any gradient.
    """
    if trains is None:
        yield lambda: None
        return
    before: list[tuple[nn.Parameter, Tensor, Tensor]] = []
    with ExitStack() as hooks:
        for name, parameter in model.named_parameters():
            mask = trains.get(name, torch.zeros(parameter.shape, dtype=torch.bool)).reshape(parameter.shape)
            before.append((parameter, ~mask, parameter.detach().clone()))
            parameter.requires_grad_(True)
            handle = parameter.register_hook(lambda gradient, mask=mask: gradient * mask)
            hooks.callback(handle.remove)

        def put() -> None:
            with torch.no_grad():
                for parameter, frozen, old in before:
                    parameter.copy_(torch.where(frozen, old, parameter))

        yield put
