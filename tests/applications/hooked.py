"""What goes into every matrix of a tiny model, seen by plain hooks, and compressions spelled out on it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from esa_ray.applications.compress import compressed
from esa_ray.models.addressing import catalogue
from tests.tiny import random_windows, state_bits

#: (parameter's name, expert or None) → the inputs (positions, I) that it multiplied, float64.
Inputs = dict[tuple[str, int | None], Tensor]


def matrix(model, name: str, expert: int | None) -> Tensor:
    """The weights (O, I) of a matrix, a view."""
    weight = model.get_parameter(name).data
    weight = weight if expert is None else weight[expert]
    owner = model.get_submodule(name.rpartition(".")[0])
    return weight.T if isinstance(owner, Conv1D) else weight


def inputs_of(model, windows: np.ndarray, inside: str) -> Inputs:
    """The inputs of every matrix of the blocks whose names begin with ``inside``, by a pass of the whole model."""
    found: dict[tuple[str, int | None], list[Tensor]] = {}
    hooks = []
    for name, module in model.named_modules():
        if not name.startswith(inside):
            continue
        if isinstance(module, (nn.Linear, Conv1D)):
            keep = found.setdefault((f"{name}.weight", None), [])
            hooks.append(module.register_forward_pre_hook(lambda _, args, keep=keep: keep.append(args[0])))
        elif isinstance(getattr(module, "gate_up_proj", None), nn.Parameter):
            hooks.append(module.register_forward_pre_hook(_experts(name, found)))
    with torch.no_grad():
        for window in windows:
            model(torch.as_tensor(window)[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    return {
        key: torch.cat([x.reshape(-1, x.shape[-1]) for x in several]).double() if several else torch.zeros(0, 1)
        for key, several in found.items()
    }


def _experts(name: str, found: dict) -> Callable:
    def see(module, args) -> None:
        states, chosen = args[0].reshape(-1, args[0].shape[-1]), args[1]
        for expert in range(len(module.gate_up_proj)):
            mine = states[(chosen == expert).any(-1)]
            gate, up = (mine @ module.gate_up_proj[expert].T).chunk(2, -1)
            for leaf, x in (("gate_up_proj", mine), ("down_proj", module.act_fn(gate) * up)):
                found.setdefault((f"{name}.{leaf}", expert), []).append(x)

    return see


def block_names(model) -> list[str]:
    """Prefixes of the blocks' names."""
    for stem in ("model.layers", "transformer.h", "gpt_neox.layers"):
        try:
            return [f"{stem}.{n}." for n in range(len(model.get_submodule(stem)))]
        except AttributeError:
            continue
    raise AssertionError


def compressible(name: str) -> bool:
    """Whether the defaults compress a matrix: routers stay."""
    return ".gate.weight" not in name


def smallest(scores_OI: Tensor, n: int) -> Tensor:
    """Mask of the n smallest of each row, by sorting."""
    mask = torch.zeros_like(scores_OI, dtype=torch.bool)
    return mask.scatter_(1, scores_OI.sort(dim=1).indices[:, :n], True)


def wanda(model, windows: np.ndarray, sparsity: float, *, sequential: bool) -> dict[tuple[str, int | None], Tensor]:
    """Wanda's masks by definition, which prune ``model``: block by block, or all by the intact model's inputs."""
    everywhere = {} if sequential else inputs_of(model, windows, "")
    masks = {}
    for block in block_names(model):
        seen = inputs_of(model, windows, block) if sequential else everywhere
        for (name, expert), x in seen.items():
            if name.startswith(block) and compressible(name):
                weights_OI = matrix(model, name, expert)
                scores = weights_OI.double().abs() * x.norm(dim=0)
                masks[name, expert] = smallest(scores, int(sparsity * weights_OI.shape[1]))
        for (name, expert), mask in masks.items():
            if name.startswith(block):
                matrix(model, name, expert)[mask] = 0.0
    return masks


CAL = random_windows(6, 12)


def pruned(model, spec, windows=CAL, **how):
    """The compression, its masks by (tensor, expert) as (O, I), and a copy of the compressed model."""
    before = state_bits(model)
    with compressed(model, catalogue(model), windows, spec, batch_size=4, **how) as found:
        twin = copy.deepcopy(model)
    assert state_bits(model) == before
    return found, by_matrix(model, found), twin


def by_matrix(model, found):
    masks = {}
    for name, bitmap in found.masks.items():
        mask = bitmap.mask
        turned = matrix(model, name, None).shape != mask.shape
        for expert in range(len(mask)) if mask.dim() == 3 else [None]:
            one = mask if expert is None else mask[expert]
            masks[name, expert] = one.T if turned or "c_attn" in name or "c_proj" in name else one
    return masks


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[key], theirs[key]) for key in theirs)
