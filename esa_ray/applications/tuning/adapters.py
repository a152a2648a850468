"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) as peft has them: they stand beside matrices while they train.

Between the stretches of steps the model is a plain one. Whenever it is looked at, B·A is added to the weights, so that
what is measured, saved and taken back are the same numbers; before training goes on, the old weights stand again.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from esa_ray.applications.tuning.ranks import plan
from esa_ray.applications.tuning.trained import Trained, calm
from esa_ray.errors import EsaError, first_line
from esa_ray.models.slots import input_device
from esa_ray.scoring.gradients import frozen

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from esa_ray.applications.kept import Kept
    from esa_ray.applications.tuning.choosing import Eligible
    from esa_ray.models.addressing import WeightTensor

#: Name of the adapters among others that a model could have.
NAME = "default"


@dataclass(frozen=True)
class _Swap:
    """A module of the model and what stands in its place while adapters train."""

    parent: nn.Module
    name: str
    plain: nn.Module
    adapted: nn.Module


class Adapters(Trained):
    """Adapters beside some matrices; ``by_tensor`` has the module that holds each one's."""

    def __init__(self, rank: int, swaps: list[_Swap], by_tensor: dict[WeightTensor, Any]):
        self.rank, self._swaps, self._by_tensor = rank, swaps, by_tensor
        self.tensors = tuple(by_tensor)
        self._parameters = [parameter for module in by_tensor.values() for parameter in _factors(module)]
        for parameter in self._parameters:
            parameter.data = parameter.data.float()
        self.masters = [*self._parameters]

    @contextmanager
    def plugged(self) -> Iterator[None]:
        """Let the adapters stand in the model for the length of a ``with`` block."""
        try:
            for swap in self._swaps:
                setattr(swap.parent, swap.name, swap.adapted)
            yield
        finally:
            for swap in self._swaps:
                setattr(swap.parent, swap.name, swap.plain)

    @contextmanager
    def learning(self, model: PreTrainedModel) -> Iterator[None]:
        """See :class:`Trained`."""
        with self.plugged(), calm(model):
            for parameter in self._parameters:
                parameter.requires_grad_(True)
            yield
            gradients = [parameter.grad for parameter in self._parameters]
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient

    def moved(self) -> None:
        """The adapters compute with the masters themselves."""

    def show(self, kept: Kept) -> None:
        """Add what the adapters are by now to the weights."""
        with torch.no_grad():
            for tensor, module in self._by_tensor.items():
                before = kept.before(tensor).to(tensor.parameter.device).float()
                kept.write(tensor, before + module.get_delta_weight(NAME).reshape(-1).float())

    def go_on(self, kept: Kept) -> None:
        """Let the old weights stand again."""
        for tensor in self.tensors:
            kept.write(tensor, kept.before(tensor))


def adapters(model: PreTrainedModel, eligible: Eligible, n: int, seed: int) -> Adapters:
    """Adapters whose count comes nearest to n, initialised by the seed alone: A as peft draws it, B zero.

    Their scaling is 1: it would be one more factor of the learning rate.

    Raises
    ------
    EsaError
        If peft isn't installed, or can't adapt a matrix.
    """
    try:
        import peft
    except ImportError:
        raise EsaError("--arm lora needs peft: pip install 'esa-ray[tune]'") from None
    chosen = plan(eligible, n)
    names = {False: list[str](), True: list[str]()}
    for tensor in chosen.tensors:
        # What derives from Linear may give more than the product, as routers do.
        whole = getattr(type(tensor.slots[0].owner), "forward", None) in (nn.Linear.forward, Conv1D.forward)
        names[whole].append(f"model.{tensor.name.rpartition('.')[0] if whole else tensor.name}")
    config = peft.LoraConfig(
        r=chosen.rank, lora_alpha=chosen.rank, lora_dropout=0.0, target_modules=names[True],
        target_parameters=names[False] or None,
    )  # fmt: skip
    before = [(parent, *child) for parent in model.modules() for child in parent.named_children()]
    try:
        return _injected(model, chosen.rank, chosen.tensors, config, before, seed)
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise EsaError(
            f"peft can't adapt all of {type(model).__name__} ({first_line(error)}); use another --arm, or --components "
            "attention"
        ) from error
    finally:
        for parent, name, plain in before:
            setattr(parent, name, plain)


def _injected(
    model: PreTrainedModel,
    rank: int,
    tensors: tuple[WeightTensor, ...],
    config: Any,
    before: list[tuple[nn.Module, str, nn.Module]],
    seed: int,
) -> Adapters:
    """Put adapters in, once, and try them; the caller takes them out again."""
    import peft

    with frozen(model), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(seed)
        # Of a transformers model peft would take names for those of another version's modules.
        holder = nn.Module()
        holder.model = model
        peft.inject_adapter_in_model(config, holder, NAME)
    places = {(tensor.slots[0].owner, tensor.slots[0].leaf): tensor for tensor in tensors}
    found = {
        places[module.get_base_layer(), getattr(module, "parameter_name", "weight")]: module
        for module in model.modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    swaps = [
        _Swap(parent, name, plain, now)
        for parent, name, plain in before
        if (now := parent._modules[name]) is not None and now is not plain
    ]
    made = Adapters(rank, swaps, {tensor: found[tensor] for tensor in tensors})
    with torch.no_grad(), calm(model):
        model(torch.zeros(1, 2, dtype=torch.int64, device=input_device(model)), use_cache=False)
    return made


def _factors(module: Any) -> list[nn.Parameter]:
    """A and B of an adapter."""
    return [module.lora_A[NAME].weight, module.lora_B[NAME].weight]
