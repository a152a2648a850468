"""Proof by edits that a mixer's weights are what they are told to be.

A weight of output row r of component c is changed, and the mixer runs again. What its own code calls x, z, B, C, Δ, q,
k, v … is watched on the way: of all variables that the matrix makes exactly the one of that component may change, in
exactly the channel that r is. Where a variable shows is written down here from transformers' modeling files, and
knows nothing of the addresses.
"""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks.mixer_variables import SHOWN, Variables
from esa_ray.models.addressing import catalogue

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import WeightTensor

#: Operations whose results are watched, in the order in which a mixer's forward calls them.
CUTS = frozenset({"chunk", "split", "tensor_split", "matmul", "baddbmm"})


class _Watch(TorchFunctionMode):
    """Keeps what a mixer's forward cuts, is given and gives, the first time that each shows."""

    def __init__(self, mixer: nn.Module):
        super().__init__()
        self.mixer, self.inside = mixer, False
        self.found: dict[tuple, Tensor] = {}
        self._calls: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, name = func(*args, **kwargs or {}), getattr(func, "__name__", "")
        if self.inside and name in CUTS:
            for n, part in enumerate(result if isinstance(result, (tuple, list)) else [result]):
                self._keep((name, self._calls[name], n), part)
            self._calls[name] += 1
        return result

    def _keep(self, where: tuple, value: Any) -> None:
        if isinstance(value, Tensor) and where not in self.found:
            self.found[where] = value.detach().clone()

    def _enter(self, *_: Any) -> None:
        self.inside = True

    def _leave(self, *_: Any) -> None:
        self.inside = False

    def _module(self, name: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        for argument, value in {**kwargs, "": output}.items():
            self._keep((name, argument), value)

    def _function(self, name: str, function: Any, *args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if not self.inside:  # another layer's
            return result
        for argument, value in inspect.signature(function).bind_partial(*args, **kwargs).arguments.items():
            self._keep((name, argument), value)
        self._keep((name, ""), result)
        return result

    @contextmanager
    def watching(self, names: set[str]) -> Iterator[None]:
        """Watch for the length of a ``with`` block, functions and modules of these names included."""
        file, parts = sys.modules[type(self.mixer).__module__], dict(self.mixer.named_modules())
        with ExitStack() as stack:
            stack.callback(self.mixer.register_forward_pre_hook(self._enter).remove)
            stack.callback(self.mixer.register_forward_hook(self._leave).remove)
            for name in names & parts.keys():
                hook = partial(self._module, name)
                stack.callback(parts[name].register_forward_hook(hook, with_kwargs=True).remove)
            for name in names - parts.keys():
                if function := getattr(file, name, None):
                    stack.callback(setattr, file, name, function)
                    setattr(file, name, partial(self._function, name, function))
            stack.enter_context(self)
            yield


def _flat(variable: Tensor, axes: tuple[int, ...]) -> Tensor:
    """(everything else, channels)."""
    last = tuple(range(variable.dim() - len(axes), variable.dim()))
    return variable.movedim(axes, last).flatten(variable.dim() - len(axes)).flatten(0, -2)


def watched(model: PreTrainedModel, mixer: nn.Module, shown: Variables, tokens_BT: Tensor) -> dict[str, Tensor]:
    """Component → its variable as channels (…, channels), of a forward pass."""
    every = {c: s if isinstance(s, tuple) else (s,) for c, s in shown.items()}
    watch = _Watch(mixer)
    with torch.no_grad(), watch.watching({str(s.where[0]) for several in every.values() for s in several}):
        model(tokens_BT, use_cache=False)
    return {c: torch.cat([_flat(watch.found[s.where], s.axes) for s in several], -1) for c, several in every.items()}


def mixers(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module, dict[str, Variables]]]:
    """Modules of a model whose variables are known: name, module, and what shows where."""
    for name, module in model.named_modules():
        kind = max((k for k in SHOWN if type(module).__name__.endswith(k)), key=len, default=None)
        if kind is not None:
            yield name, module, SHOWN[kind]


def tried(tensor: WeightTensor, component: str, rows: int = 3) -> list[tuple[int, int, int, int | None]]:
    """Some weights of a component of a tensor: which of its channels, row, column, expert."""
    row = np.flatnonzero([p == component for p in (tensor.parts[i].component for i in tensor.row_part)])
    matrices = tensor.shape[0] if tensor.experts else 1
    draw = np.random.default_rng(0)
    every = [(m * len(row) + n, int(r), m) for m in range(matrices) for n, r in enumerate(row)]
    some = {0, len(every) - 1, *draw.integers(len(every), size=rows).tolist()}
    return [
        (c, r, int(draw.integers(tensor.cols)), m if tensor.experts else None) for c, r, m in (every[i] for i in some)
    ]


def misread(model: PreTrainedModel, tokens_BT: Tensor) -> list[str]:
    """Weights of mixers that aren't what they are told to be, a sentence each; the model stays as it was."""
    found, wrong, seen = catalogue(model), [], 0
    for name, mixer, parameters in mixers(model):
        for leaf, shown in parameters.items():
            tensor = found.by_name.get(f"{name}.{leaf}.weight") or found.by_name.get(f"{name}.{leaf}")
            if tensor is None:
                continue
            seen += 1
            told = {part.component for part in tensor.parts}
            if not told <= shown.keys():
                wrong.append(f"{tensor.name} is told to hold {', '.join(sorted(told))}")
                continue
            wrong += _misread(model, mixer, tensor, shown, tokens_BT)
    return wrong if seen else [f"{type(model).__name__} has no mixer that is known here"]


def _misread(
    model: PreTrainedModel, mixer: nn.Module, tensor: WeightTensor, shown: Variables, tokens_BT: Tensor
) -> Iterator[str]:
    before = watched(model, mixer, shown, tokens_BT)
    for component in {part.component for part in tensor.parts}:
        for channel, row, col, expert in tried(tensor, component):
            at = torch.tensor([tensor.index(row, col, expert)])
            intact = tensor.flat_weights()[at].clone()
            tensor.write(at, intact + 1)
            after = watched(model, mixer, shown, tokens_BT)
            tensor.write(at, intact)
            changed = {(c, n) for c in shown for n in (before[c] != after[c]).any(0).nonzero().flatten().tolist()}
            several = isinstance(shown[component], tuple)  # one variable after the other: only their number is known
            right = {(component, n) for _, n in changed} if several and len(changed) == 1 else {(component, channel)}
            if changed != right:
                yield f"{tensor.name} row {row}: changes {sorted(changed)} instead of {component} {channel}"
