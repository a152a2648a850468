"""What scores and losses are by definition, computed without a line of esa-ray's: slow, and obviously right.

Legend: N windows of T tokens; W a matrix, an expert's where a tensor holds several.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel


def plain_nll(model: PreTrainedModel, windows: np.ndarray) -> Tensor:
    """Summed next-token NLL of each window, by one window at a time through the model and cross-entropy."""
    found = []
    for window_T in torch.from_numpy(windows):
        logits_TV = model(window_T[None], use_cache=False).logits[0, :-1]
        found.append(cross_entropy(logits_TV.float(), window_T[1:], reduction="sum"))
    return torch.stack(found)


def autograd(model: PreTrainedModel, names: list[str], windows: np.ndarray) -> dict[str, list[Tensor]]:
    """``grad_x_weight`` and ``grad_squared`` of parameters, from ``torch.autograd.grad`` a window at a time."""
    parameters = dict(model.named_parameters())
    wanted, tokens = [parameters[n] for n in names], windows.shape[0] * (windows.shape[1] - 1)
    for parameter in wanted:
        parameter.requires_grad_(True)
    total = [torch.zeros_like(p) for p in wanted]
    squares = [torch.zeros_like(p) for p in wanted]
    for window in windows:
        with torch.enable_grad():
            loss = plain_nll(model, window[None]).sum()
        for at, gradient in enumerate(torch.autograd.grad(loss, wanted, allow_unused=True)):
            if gradient is not None:
                total[at] += gradient
                squares[at] += gradient.square()
    for parameter in wanted:
        parameter.requires_grad_(False)
    weighted = [(g * p.detach()).abs() / tokens for g, p in zip(total, wanted, strict=True)]
    return {"grad_x_weight": weighted, "grad_squared": [s / tokens for s in squares]}


@torch.no_grad()
def divergence(intact: PreTrainedModel, damaged: PreTrainedModel, windows: np.ndarray) -> list[float]:
    """KL(intact ‖ damaged) of the next-token distributions, summed nats a window."""
    found = []
    for window_T in torch.from_numpy(windows):
        p, q = (log_softmax(m(window_T[None], use_cache=False).logits[0, :-1].double(), -1) for m in (intact, damaged))
        found.append(float((p.exp() * (p - q)).sum()))
    return found


@dataclass
class Inputs:
    """What a matrix multiplied: Σ x² by input channel, and how many rows."""

    squares: Tensor
    rows: int = 0
    #: Whether a part of the matrix was multiplied with, or something else than its inputs by it.
    odd: bool = False

    def add(self, x: Tensor, *, together: bool = False) -> None:
        """Rows (n, inputs) went in; experts that compute ``together`` get zeros for tokens of the others."""
        self.squares += x.double().square().sum(0)
        self.rows += int((x != 0).any(-1).sum()) if together else len(x)


@torch.no_grad()
def hooked(model: PreTrainedModel, names: Iterable[str], windows: np.ndarray) -> dict[str, Inputs]:
    """Inputs of matrices that modules hold as ``weight``, from hooks before these."""
    found: dict[str, Inputs] = {}
    hooks = []

    def look(name: str, args: tuple, kwargs: dict) -> None:
        x = args[0] if args else kwargs["input"]
        found.setdefault(name, Inputs(torch.zeros(x.shape[-1]).double())).add(x.reshape(-1, x.shape[-1]))

    sought = {id(parameter): name for name, parameter in model.named_parameters() if name in set(names)}
    for module in model.modules():
        if name := sought.get(id(getattr(module, "weight", None))):  # several modules may have one weight
            hook = module.register_forward_pre_hook(lambda m, a, k, name=name: look(name, a, k), with_kwargs=True)
            hooks.append(hook)
    plain_nll(model, windows)
    for hook in hooks:
        hook.remove()
    return found


@dataclass
class _Products(TorchDispatchMode):
    """Sees matrix products beneath all that torch's functions are made of."""

    sought: dict[int, tuple[str, int]]
    found: dict[tuple[str, int], Inputs] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            self._product(*args[-2:] if name in ("mm", "bmm") else args[1:3])
        return func(*args, **(kwargs or {}))

    def _product(self, x: Tensor, w: Tensor) -> None:
        if (at := self.sought.get(w.untyped_storage().data_ptr())) is None:
            return
        name, each = at
        for number, (mine, matrix) in enumerate(zip(x, w, strict=True) if w.dim() == 3 else [(x, w)]):
            expert = (w.storage_offset() + number * (w.stride(0) if w.dim() == 3 else 0)) // each
            inputs = self.found.setdefault((name, expert), Inputs(torch.zeros(mine.shape[-1]).double()))
            if matrix.numel() != each:
                inputs.odd = True
            else:
                inputs.add(mine, together=w.dim() == 3)


@torch.no_grad()
def multiplied(model: PreTrainedModel, sizes: dict[str, int], windows: np.ndarray) -> dict[tuple[str, int], Inputs]:
    """Inputs of matrices and experts, from products beneath torch's functions, experts one by one.

    ``sizes``: names of parameters, and how many numbers one matrix in each has.
    """
    parameters = dict(model.named_parameters())
    sought = {parameters[n].untyped_storage().data_ptr(): (n, size) for n, size in sizes.items()}
    configs = [m.config for m in model.modules() if getattr(getattr(m, "config", None), "_experts_implementation", 0)]
    before = [config._experts_implementation for config in configs]
    for config in configs:
        config._experts_implementation = "eager"
    seen = _Products(sought)
    try:
        with seen:
            plain_nll(model, windows)
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._experts_implementation = implementation
    return seen.found
