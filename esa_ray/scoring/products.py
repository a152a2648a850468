"""Products with a model's matrices, seen while it runs.

A matrix is recognised by its memory, shape and strides in the call that multiplies with it, not by the module that
makes the call. So Linear, GPT-2's Conv1D and the slices of a 3-D expert parameter are all seen the same way, and each
expert sees the tokens that are routed to it and no others. A part of a matrix, or one that is turned round, isn't it.
Heads that compute apart and convolutions multiply with a stack of matrices at once (:mod:`esa_ray.scoring.stacks`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from esa_ray.models.offload import watch
from esa_ray.scoring import stacks
from esa_ray.scoring.stacks import Stack

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import WeightTensor

#: Operations that multiply by matrices → the names of their arguments.
_ARGUMENTS: dict[Any, tuple[str, ...]] = {
    linear: ("input", "weight"),
    torch.addmm: ("input", "mat1", "mat2"),
    torch.baddbmm: ("input", "batch1", "batch2"),
    torch.conv1d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    **dict.fromkeys((torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__), ("input", "other")),
}


@contextmanager
def experts_one_by_one(model: PreTrainedModel) -> Iterator[None]:
    """Mixture-of-experts layers compute expert by expert for the length of a ``with`` block, not in one kernel."""
    configs: list[Any] = list({id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values())
    before = [(c, c._experts_implementation) for c in configs if getattr(c, "_experts_implementation", None)]
    for config, _ in before:
        config._experts_implementation = "eager"
    try:
        yield
    finally:
        for config, implementation in before:
            config._experts_implementation = implementation


@dataclass(frozen=True)
class Product:
    """One product Y = X·Wᵀ: the tensor that W is of (by index), its expert, X (…, inputs), and W as stored."""

    index: int
    expert: int
    inputs: Tensor
    weight: Tensor
    #: Makes Y.
    run: Callable[[], Tensor]
    #: Whether the model makes Yᵀ = W·Xᵀ.
    turned: bool = False


class Products(TorchFunctionMode):
    """Sees every product with one of some matrices, for the length of a ``with`` block: a subclass says what of it.

    Use it inside :func:`esa_ray.models.offload.reloading` where weights are offloaded, and around forward passes
    alone: backward passes multiply by the same matrices.
    """

    def __init__(self, tensors: Sequence[WeightTensor]):
        super().__init__()
        self.tensors = tensors
        self._places: dict[int, tuple[int, int, tuple[int, ...]]] = {}  # memory → tensor, expert, strides

    def multiplied(self, product: Product) -> Tensor:
        """A product comes by; gives Y."""
        return product.run()

    def stacked(self, stack: Stack) -> Tensor:
        """Products with a stack of matrices come by; gives what they give together."""
        return stack.run()

    def __enter__(self) -> Any:
        self._watching = ExitStack()
        for index, tensor in enumerate(self.tensors):
            gone = partial(self._gone, index)
            self._watching.enter_context(watch(tensor, partial(self._placed, index), gone=gone))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._watching.close()
        self._places.clear()

    def _placed(self, index: int, parameter: Tensor) -> None:
        for expert, matrix in enumerate(parameter.detach() if self.tensors[index].experts else [parameter]):
            self._places[matrix.data_ptr()] = index, expert, matrix.stride()

    def _gone(self, index: int) -> None:
        # The memory of an offloaded weight becomes another one's.
        self._places = {memory: place for memory, place in self._places.items() if place[0] != index}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        run, names = partial(func, *args, **kwargs), _ARGUMENTS.get(func)
        found = self._found(func, dict(zip(names, args, strict=False)) | kwargs, run) if names else None
        if isinstance(found, Stack):
            return self.stacked(found)
        if found is None:
            return self.other(func, args, kwargs, run)
        return self.multiplied(found).mT if found.turned else self.multiplied(found)

    def _found(self, func: Any, given: dict[str, Any], run: Callable[[], Tensor]) -> Product | Stack | None:
        if func is linear:
            return self._product(given["input"], given["weight"], run, transposed=False)
        if func is torch.addmm:  # Conv1D: bias + X·W
            scaled = {"alpha", "beta"} & given.keys()
            return None if scaled else self._product(given["mat1"], given["mat2"], run, transposed=True)
        if func is torch.conv1d:
            index = self._whole(given["weight"])
            return None if index is None else stacks.convolution(index, given, run)
        if func is torch.baddbmm:
            index = self._whole(given["batch2"])
            return None if index is None else stacks.batched(index, given["batch1"], run)
        x, weight = given["other"], given["input"]
        if weight.dim() > 2:
            index = self._whole(weight)
            return None if index is None else stacks.by_head(index, x, weight, run)
        product = self._product(x.mT, weight, lambda: run().mT, transposed=False) if x.dim() > 1 else None
        return product and replace(product, turned=True)

    def _whole(self, weight: Tensor) -> int | None:
        """The tensor that an operand of more than two axes is all of."""
        index = self._places.get(weight.data_ptr(), (-1,))[0]
        whole = index >= 0 and weight.numel() == self.tensors[index].size and weight.is_contiguous()
        return index if whole else None

    def other(self, func: Any, args: tuple, kwargs: dict, run: Callable[[], Any]) -> Any:
        """Any other operation; gives its result."""
        return run()

    def _product(self, x: Tensor, weight: Tensor, run: Callable[[], Tensor], *, transposed: bool) -> Product | None:
        index, expert, strides = self._places.get(weight.data_ptr(), (-1, 0, ()))
        if index < 0 or weight.stride() != strides or self.tensors[index].transposed != transposed:
            return None
        return Product(index, expert, x, weight, run) if weight.shape == self.tensors[index].shape[-2:] else None
