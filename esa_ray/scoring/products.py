"""Products with a model's matrices, seen while it runs.

A matrix is recognised by its memory, shape and strides in the call that multiplies with it, not by the module that
makes the call. So Linear, GPT-2's Conv1D and the slices of a 3-D expert parameter are all seen the same way, and each
expert sees the tokens that are routed to it and no others. A part of a matrix, or one that is turned round, isn't it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from esa_ray.models.offload import watch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import WeightTensor


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
        run = partial(func, *args, **kwargs)
        product = None
        if func is linear:
            named = dict(zip(("input", "weight"), args, strict=False)) | kwargs
            product = self._product(named["input"], named["weight"], run, transposed=False)
        elif func is torch.addmm and not {"alpha", "beta"} & kwargs.keys():  # Conv1D: bias + X·W
            named = dict(zip(("input", "mat1", "mat2"), args, strict=False)) | kwargs
            product = self._product(named["mat1"], named["mat2"], run, transposed=True)
        return self.multiplied(product) if product else self.other(func, args, kwargs, run)

    def other(self, func: Any, args: tuple, kwargs: dict, run: Callable[[], Any]) -> Any:
        """Any other operation; gives its result."""
        return run()

    def _product(self, x: Tensor, weight: Tensor, run: Callable[[], Tensor], *, transposed: bool) -> Product | None:
        index, expert, strides = self._places.get(weight.data_ptr(), (-1, 0, ()))
        if index < 0 or weight.stride() != strides or self.tensors[index].transposed != transposed:
            return None
        return Product(index, expert, x, weight, run) if weight.shape == self.tensors[index].shape[-2:] else None
