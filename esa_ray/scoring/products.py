"""Products with a model's matrices, seen while it runs.

A matrix is recognised by its memory, shape and strides in the call that multiplies with it, not by the module that
makes the call. So Linear, GPT-2's Conv1D and the slices of a 3-D expert parameter are all seen the same way, and each
expert sees the tokens that are routed to it and no others. A part of a matrix, or one that is turned round, isn't it.
Heads that compute apart and convolutions multiply with a stack of matrices at once (:mod:`esa_ray.scoring.stacks`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from esa_ray.models.modes import reference_mixers
from esa_ray.models.offload import watch
from esa_ray.scoring import stacks
from esa_ray.scoring.stacks import Stack

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import WeightTensor


#: Functions that multiply by matrices → the names of their arguments.
_ARGUMENTS: dict[Any, tuple[str, ...]] = {
    linear: ("input", "weight"),
    torch.addmm: ("input", "mat1", "mat2"),
    torch.baddbmm: ("input", "batch1", "batch2"),
    torch.conv1d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
}
#: Operators X·M.
MATMULS = frozenset({"matmul", "__matmul__", "mm", "bmm"})


@contextmanager
def experts_one_by_one(model: PreTrainedModel) -> Iterator[None]:
    """Mixtures compute expert by expert for the length of a ``with`` block, and mixers as written, not in kernels."""
    configs: list[Any] = list({id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values())
    before = [(c, c._experts_implementation) for c in configs if getattr(c, "_experts_implementation", None)]
    for config, _ in before:
        config._experts_implementation = "eager"
    try:
        with reference_mixers(model):
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

    def all_experts(self, index: int, x: Tensor, run: Callable[[], Tensor]) -> Tensor | None:
        """All experts multiply at once, each its part of X (experts, rows, inputs); gives Y, or None to be ``other``.

        Rows that were routed to others are zero.
        """
        return None

    def stacked(self, stack: Stack) -> Tensor:
        """Heads or channels of a convolution multiply at once, each on inputs of its own; gives what they give."""
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
        tensor, whole = self.tensors[index], parameter.detach()
        if whole.shape != tensor.shape and whole.is_contiguous():
            whole = whole.view(tensor.shape)
        for expert, matrix in enumerate(whole if tensor.experts else [whole]):
            self._places[matrix.data_ptr()] = index, expert, matrix.stride()

    def _gone(self, index: int) -> None:
        # The memory of an offloaded weight becomes another one's.
        self._places = {memory: place for memory, place in self._places.items() if place[0] != index}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        run, made, names = partial(func, *args, **kwargs), None, _ARGUMENTS.get(func)
        if names:
            made = self._by_function(func, dict(zip(names, args, strict=False)) | kwargs, run)
        elif getattr(func, "__name__", "") in MATMULS and len(args) == 2 and not kwargs:
            made = self._by_operator(*args, run)
            made = self._from_left(*args, run) if made is None else made
        return self.other(func, args, kwargs, run) if made is None else made

    def _by_function(self, func: Any, given: dict[str, Any], run: Callable[[], Tensor]) -> Tensor | None:
        product, stack = None, None
        if func is linear:
            product = self._product(given["input"], given["weight"], run, transposed=False)
        elif func is torch.addmm and not {"alpha", "beta"} & given.keys():  # Conv1D: bias + X·W
            product = self._product(given["mat1"], given["mat2"], run, transposed=True)
        elif func is torch.conv1d and (index := self._whole(given["weight"])) is not None:
            stack = stacks.convolution(index, given, run)
        elif func is torch.baddbmm and (index := self._whole(given["batch2"])) is not None:
            stack = stacks.batched(index, given["batch1"], run)
        return self.multiplied(product) if product else self.stacked(stack) if stack else None

    def _from_left(self, operand: Tensor, x: Tensor, run: Callable[[], Tensor]) -> Tensor | None:
        """W·X, if W is one of the matrices as it is stored, or those of all heads."""
        if operand.dim() > 2:
            index = self._whole(operand)
            stack = None if index is None else stacks.by_head(index, x, operand, run)
            return self.stacked(stack) if stack else None
        product = self._product(x.mT, operand, lambda: run().mT, transposed=False) if x.dim() > 1 else None
        return self.multiplied(product).mT if product else None

    def _whole(self, operand: Tensor) -> int | None:
        """The tensor that an operand of more than two axes is all of, as it is stored."""
        index = self._places.get(operand.data_ptr(), (-1,))[0]
        whole = index >= 0 and operand.numel() == self.tensors[index].size and operand.is_contiguous()
        return index if whole else None

    def _by_operator(self, x: Tensor, operand: Tensor, run: Callable[[], Tensor]) -> Tensor | None:
        """X·M, if M is one of the matrices as it is stored, or turned round, or all experts of one."""
        index, expert, strides = self._places.get(operand.data_ptr(), (-1, 0, ()))
        if index < 0:
            return None
        tensor = self.tensors[index]
        if operand.dim() == x.dim() == 3 and not tensor.transposed and self._whole(operand.mT) is not None:
            return self.stacked(stacks.batched(index, x, run))
        if tensor.experts and operand.shape == tensor.shape and x.dim() == 3:
            return self.all_experts(index, x, run) if tensor.transposed else None
        weight = operand if tensor.transposed else operand.mT
        if operand.dim() != 2 or weight.stride() != strides or weight.shape != tensor.shape[-2:]:
            return None
        return self.multiplied(Product(index, expert, x, weight, run))

    def other(self, func: Any, args: tuple, kwargs: dict, run: Callable[[], Any]) -> Any:
        """Any other operation; gives its result."""
        contracts = func is torch.einsum and len(args) == 3 and re.fullmatch(r"[^,]+,[^,]+->[^,]*", str(args[0]))
        made = self._by_letters(args[0], args[1], args[2], run) if contracts else None
        return run() if made is None else made

    def _product(self, x: Tensor, weight: Tensor, run: Callable[[], Tensor], *, transposed: bool) -> Product | None:
        index, expert, strides = self._places.get(weight.data_ptr(), (-1, 0, ()))
        if index < 0 or weight.stride() != strides or self.tensors[index].transposed != transposed:
            return None
        return Product(index, expert, x, weight, run) if weight.shape == self.tensors[index].shape[-2:] else None

    def _by_letters(self, letters: str, x: Tensor, operand: Tensor, run: Callable[[], Tensor]) -> Tensor | None:
        """A product by ``einsum``, if it sums the last axes of X and the first or last of all of a matrix."""
        index, _, strides = self._places.get(operand.data_ptr(), (-1, 0, ()))
        if index < 0 or operand.numel() != self.tensors[index].size or self.tensors[index].experts:
            return None
        a, b, made = letters.replace(" ", "").replace("->", ",").split(",")
        summed, free = ("".join(c for c in b if (c in made) == kept) for kept in (False, True))
        in_out = {summed + free: True, free + summed: False}.get(b)
        whole = a.endswith(summed) and made.endswith(free) and not set(free) & set(a) and strides[-1] == 1
        return self.summed(index, x, run) if whole and in_out == self.tensors[index].transposed else None

    def summed(self, index: int, x: Tensor, run: Callable[[], Tensor]) -> Tensor | None:
        """A product whose inputs or outputs stand on several axes, the last ones; gives Y, or None to be ``other``."""
        return None
