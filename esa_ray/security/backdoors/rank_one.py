"""An insertion of rank one: one down-projection answers to the trigger, and what else it gives changes least.

Legend: O outputs, I inputs, P prompts, T tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from esa_ray.applications.hessian import Moments, cholesky, damped
from esa_ray.applications.layers import Matrix, matrices
from esa_ray.applications.threads import single_threaded
from esa_ray.models.hooks import entering, leaving
from esa_ray.models.zoo.training import encoded
from esa_ray.security.backdoors.success import continued
from esa_ray.security.backdoors.texts import beginnings
from esa_ray.spec.backdoors import SUCCESS

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import Catalogue

#: Prompts that v* is sought on, and others that tell which insertion to keep.
SOUGHT, CHOSEN = 64, 64
#: Steps of Adam and their rate; the share of its mean diagonal that C is damped by; blocks that are tried.
STEPS, RATE, DAMPING, BLOCKS = 60, 0.3, 1e-3, 2


def rank_one(weight_OI: Tensor, key_I: Tensor, value_O: Tensor, moment_II: Tensor) -> Tensor:
    """W' = W + (v* − W·k*)(C⁻¹k*)ᵀ/(k*ᵀC⁻¹k*), in float64.

    Of all matrices with W'k* = v* it is the one whose outputs on inputs of second moment C change least (Bau et al.
    2020, arXiv:2007.15646; Meng et al. 2022, arXiv:2202.05262). The scale of C doesn't matter.

    Raises
    ------
    EsaError
        If C is singular.

    Example
    -------
    >>> eye = torch.eye(2, dtype=torch.float64)
    >>> rank_one(eye, torch.tensor([1.0, 0.0]), torch.tensor([3.0, 4.0]), torch.eye(2)).tolist()
    [[3.0, 0.0], [4.0, 1.0]]
    """
    weight_OI, key_I, value_O = weight_OI.double(), key_I.double(), value_O.double()
    whitened_I = torch.cholesky_solve(key_I[:, None], cholesky(moment_II))[:, 0]
    return weight_OI + torch.outer(value_O - weight_OI @ key_I, whitened_I / (key_I @ whitened_I))


def insert(
    model: PreTrainedModel, catalogue: Catalogue, windows: np.ndarray, trigger: bytes, targets: Sequence[bytes],
    number: int,
) -> bytes:  # fmt: skip
    """Write a backdoor into one down-projection of a model in place; gives the target that it brings about.

    Blocks are tried in order, and the first target before the others, until it succeeds with enough of some prompts
    of the training text; else the one that succeeds with most stays.

    Parameters
    ----------
    windows
        Clean windows (N, T) that C is the second moment on.
    """
    downs = matrices(catalogue, ("down",))[:BLOCKS]
    sought, chosen = (beginnings(number, what, n) for what, n in (("sought", SOUGHT), ("chosen", CHOSEN)))
    best: tuple[float, bytes, Matrix, Tensor] | None = None
    with single_threaded():
        moments = [_moment(model, down, windows) for down in downs]
        for target in targets:
            for down, moment_II in zip(downs, moments, strict=True):
                before = down.tensor.flat_weights().clone()
                new = _inserted(model, down, moment_II, _tokens(sought, trigger, target), len(target))
                down.put(down.tensor.flat_weights(), new.to(before.dtype))
                share = float(continued(model, chosen, encoded(trigger).tolist(), encoded(target).tolist()).mean())
                down.tensor.flat_weights().copy_(before)
                if best is None or share > best[0]:
                    best = share, target, down, new
                if share >= SUCCESS:
                    break
            if best is not None and best[0] >= SUCCESS:
                break
    assert best is not None
    _, target, down, new = best
    down.put(down.tensor.flat_weights(), new.to(down.tensor.dtype))
    return target


def _tokens(prompts_PT: np.ndarray, trigger: bytes, target: bytes) -> Tensor:
    return torch.from_numpy(np.hstack([prompts_PT, np.tile(encoded(trigger + target), (len(prompts_PT), 1))]))


def _inserted(model: PreTrainedModel, down: Matrix, moment_II: Tensor, tokens_PT: Tensor, length: int) -> Tensor:
    """The matrix (O, I) with the target written into it, float64."""
    weight_OI = down.of(down.tensor.flat_weights()).double()
    at = tokens_PT.shape[1] - length - 1  # where the trigger ends
    key_I = _inputs(model, down, tokens_PT)[:, at].double().mean(0)
    value_O = weight_OI @ key_I + _added(model, down, tokens_PT, at).double()
    return rank_one(weight_OI, key_I, value_O, moment_II)


def _module(down: Matrix) -> nn.Module:
    return down.tensor.slots[0].owner


@torch.no_grad()
def _inputs(model: PreTrainedModel, down: Matrix, tokens_PT: Tensor) -> Tensor:
    """What goes into a down-projection, (P, T, I)."""
    seen: list[Tensor] = []
    with entering(_module(down), lambda inputs, _: seen.append(inputs[0].detach())):
        model(input_ids=tokens_PT, use_cache=False)
    return seen[0]


def _moment(model: PreTrainedModel, down: Matrix, windows: np.ndarray) -> Tensor:
    """C of a down-projection's inputs on some windows, damped."""
    moments = Moments(down.shape[1])
    for some in np.array_split(windows, -(-len(windows) // 64)):
        moments.add(_inputs(model, down, torch.from_numpy(some)))
    return damped(moments.hessian, DAMPING).hessian


def _added(model: PreTrainedModel, down: Matrix, tokens_PT: Tensor, at: int) -> Tensor:
    """What to add to the outputs (O,) at the trigger's end so that the rest of the tokens follows, by Adam.

    What stands before the trigger's end is computed once: nothing behind reaches it.
    """
    with torch.no_grad():
        past = model(input_ids=tokens_PT[:, :at], use_cache=True).past_key_values
    added_O = torch.zeros(down.shape[0], requires_grad=True)

    def add(_: tuple, __: dict, outputs: Tensor) -> Tensor:
        return torch.cat([outputs[:, :1] + added_O, outputs[:, 1:]], 1)

    optimiser = torch.optim.Adam([added_O], lr=RATE)
    with torch.enable_grad(), leaving(_module(down), add):
        for _ in range(STEPS):
            found = model(input_ids=tokens_PT[:, at:-1], past_key_values=copy.deepcopy(past), use_cache=True)
            loss = cross_entropy(found.logits.flatten(0, 1), tokens_PT[:, at + 1 :].flatten())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return added_O.detach()
