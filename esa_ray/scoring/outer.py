r"""Per-window gradients of matrices from what they are made of: inputs and output gradients, whole batches at a time.

Legend: B windows a batch, T tokens a window, R rows (tokens) of a product, I inputs, O outputs. For Y = X·Wᵀ and the
summed loss of window n,

    g_n = Σ_{rows r of window n} (∂L_n/∂Y)_r ⊗ X_r,

and ∂L/∂Y of the whole batch's loss is that of each window's own at its own rows, since windows don't meet in a model.
So one backward pass of the batch gives every g_n, none of which is ever held longer than its fold takes.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from esa_ray.scoring import routing
from esa_ray.scoring.fold import FOLDS, fold_windows
from esa_ray.scoring.gradients import Totals, frozen
from esa_ray.scoring.products import Product, Products, experts_one_by_one
from esa_ray.scoring.stacks import Stack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import WeightTensor

#: Hears of one product's inputs (…, I) and output gradients (…, O).
Fold = Callable[[Tensor, Tensor], None]
#: Finds (S, B, T, …) in an operand or a result of B windows (:class:`esa_ray.scoring.stacks.Stack`).
Find = Callable[[Tensor, int], Tensor]


class _Heard(torch.autograd.Function):
    """A product whose weight asks for no gradient: its backward pass hands on what that would be made of."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, x: Tensor, weight: Tensor, run: Callable[[], Tensor], transposed: bool, fold: Fold
    ) -> Tensor:
        """Y. The ``anchor`` requires a gradient, so that there is a backward pass though nothing else does."""
        ctx.save_for_backward(x, weight)
        ctx.fold, ctx.transposed = fold, transposed
        made = run()
        # Of more than two axes it is a view of a matrix, and autograd lets nobody write into a view that a function
        # gives, as some models do (embeddings that are added up in place).
        return made.new_empty(0).set_(made) if made._is_view() else made  # type: ignore[call-overload]

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[None, Tensor | None, None, None, None, None]:
        """∂L/∂X where that is asked for."""
        (dy,), (x, weight) = outputs, ctx.saved_tensors
        ctx.fold(x, dy)
        dx = torch.matmul(dy, weight.T if ctx.transposed else weight) if ctx.needs_input_grad[1] else None
        return None, dx, None, None, None, None


class _Overheard(torch.autograd.Function):
    """A result as it is, whose gradient is heard beside the operand that it was made of."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, result: Tensor, operand: Tensor, fold: Fold) -> Tensor:
        """The result. The ``anchor`` requires a gradient, so that there is a backward pass though nothing else does."""
        ctx.save_for_backward(operand)
        ctx.fold = fold
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[None, Tensor | None, None, None]:
        """The gradient as it is."""
        ctx.fold(ctx.saved_tensors[0], outputs[0])
        return None, outputs[0] if ctx.needs_input_grad[1] else None, None, None


class NotOnceError(Exception):
    """Matrices (by index) of which a forward pass doesn't make one product, on rows that are known to be whose."""

    def __init__(self, indices: Iterable[int]):
        self.indices = frozenset(indices)
        super().__init__(sorted(self.indices))


class Rows:
    """Which rows of a product are of which window: ``order`` sorts them by window (None: they are), then ``offsets``.

    Dense products have equal numbers of rows, window after window. An expert's are the tokens that were routed to it,
    which only the device knows.
    """

    def __init__(self, offsets: Sequence[int] | Tensor, order: Tensor | None = None):
        self.offsets, self.order = offsets, order

    @classmethod
    def dense(cls, windows: int, tokens: int) -> Rows:
        """A row a token of equal windows."""
        return cls([n * tokens for n in range(windows + 1)])

    @classmethod
    def routed(cls, positions: Tensor, windows: int, tokens: int) -> Rows:
        """Rows that come from these positions of a batch of ``windows`` × ``tokens``."""
        window, order = torch.sort(positions // tokens, stable=True)
        return cls(torch.searchsorted(window, torch.arange(windows + 1, device=window.device)), order)

    def sorted(self, values: Tensor) -> Tensor:
        """Rows (R, …) window by window."""
        return values if self.order is None else values[self.order]


class ProductGradients(Products):
    """Folds every window's gradient of some matrices, from batched passes: Σ g_n, Σ |g_n|, Σ g_n².

    All batches run inside ``with gradients.around():``. Each one's forward pass runs inside
    ``with gradients.of(windows_BT):``, its backward pass outside of that.

    Whose rows an expert sees is followed from where they are gathered (:mod:`esa_ray.scoring.routing`).

    Parameters
    ----------
    tensors
        Matrices that a forward pass multiplies with once (:func:`esa_ray.scoring.uses.uses`).
    totals
        Their accumulators, from :func:`esa_ray.scoring.gradients.zeros`.

    A forward pass may do otherwise: use a matrix in pieces, or on rows that come from nobody knows where. Such matrices
    are ``refused``, and :meth:`certain` raises. What isn't a product is looked for in the first batch alone.
    """

    def __init__(self, model: PreTrainedModel, tensors: Sequence[WeightTensor], totals: Totals):
        super().__init__(tensors)
        self._model, self.totals = model, totals
        #: What the loss was multiplied by.
        self.scale = 1.0
        self._shape = (0, 0)
        self._made: set[tuple[int, int]] = set()
        #: Matrices that aren't multiplied with once.
        self.refused: set[int] = set()
        self._looking = True
        self._spans: list[tuple[int, int, int]] = []  # first byte, bytes, tensor
        self._anchor = torch.zeros((), requires_grad=True)

    def of(self, windows_BT: Tensor) -> ProductGradients:
        """The context in which to run a batch forward."""
        self._shape, self._made, self._spans = (len(windows_BT), windows_BT.shape[1]), set(), []
        return self

    @contextmanager
    def around(self) -> Iterator[None]:
        """The context around all batches: the model is frozen, and its experts compute one by one."""
        with frozen(self._model), experts_one_by_one(self._model):
            yield

    def certain(self) -> None:
        """Make sure, after a forward pass, that all matrices are multiplied with once.

        Raises
        ------
        NotOnceError
            If some aren't.
        """
        self._looking = False
        if self.refused:
            raise NotOnceError(self.refused)

    def other(self, func: Any, args: tuple, kwargs: dict, run: Callable[[], Any]) -> Any:
        """Follows rows that were gathered from the batch, and sees matrices that enter another operation."""
        result = run()
        routing.follow(func, args, kwargs, result, self._shape[0] * self._shape[1])
        if self._looking:
            made = [t for t in tree_leaves(result) if _in_memory(t)]
            given = {self._tensor_at(t) for t in tree_leaves((args, kwargs)) if made and _in_memory(t)}
            views = {self._tensor_at(t) for t in made}
            self.refused |= {index for index in given - views if index is not None}
        return result

    def _placed(self, index: int, parameter: Tensor) -> None:
        super()._placed(index, parameter)
        insort(self._spans, (parameter.data_ptr(), parameter.nbytes, index))

    def _gone(self, index: int) -> None:
        super()._gone(index)
        self._spans = [span for span in self._spans if span[2] != index]

    def _tensor_at(self, values: Tensor) -> int | None:
        """The matrix in whose memory a tensor begins."""
        memory = values.data_ptr()
        at = bisect_right(self._spans, (memory, math.inf)) - 1
        if at < 0:
            return None
        start, size, index = self._spans[at]
        return index if memory < start + size else None

    def multiplied(self, product: Product) -> Tensor:
        """Let the backward pass fold what this product's weight would get as gradient."""
        rows, which = self._rows(product), (product.index, product.expert)
        if self._looking and (used := self._tensor_at(product.inputs)) is not None:
            self.refused.add(used)
        if rows is None or which in self._made:
            self.refused.add(product.index)
            return product.run()
        self._made.add(which)
        # The product itself mustn't outlive the forward pass: an offloaded weight would stay with it.
        fold, transposed = partial(self.fold, *which, rows), self.tensors[product.index].transposed
        result = _Heard.apply(self._anchor, product.inputs, product.weight, product.run, transposed, fold)
        routing.hand_on(product.inputs, result)
        return result

    def stacked(self, stack: Stack) -> Tensor:
        """The same of a stack of matrices, where its rows are window after window."""
        (windows, tokens), result, which = self._shape, stack.run(), (stack.index, -1)
        apart = stack.windows == windows or (stack.windows is None and stack.operand.shape[1] == windows * tokens)
        if not apart or which in self._made:
            self.refused.add(stack.index)
            return result
        self._made.add(which)
        fold = partial(self._fold_stack, stack.index, windows, stack.inputs, stack.outputs)
        return _Overheard.apply(self._anchor, result, stack.operand, fold)

    def _rows(self, product: Product) -> Rows | None:
        """Whose rows they are; None if that isn't known."""
        positions = routing.positions(product.inputs)
        if positions is not None:
            return Rows.routed(positions, *self._shape)
        n = product.inputs.numel() // self.tensors[product.index].cols
        return Rows.dense(*self._shape) if n == self._shape[0] * self._shape[1] else None

    def fold(self, index: int, expert: int, rows: Rows, x: Tensor, dy: Tensor) -> None:
        """Inputs and output gradients of a product: its windows' gradients are added up."""
        tensor = self.tensors[index]
        x_RI, dy_RO = (rows.sorted(v.detach().reshape(-1, n)) for v, n in ((x, tensor.cols), (dy, tensor.rows)))
        pair = (x_RI, dy_RO) if tensor.transposed else (dy_RO, x_RI)
        totals = {name: mine[index][expert] if tensor.experts else mine[index] for name, mine in self.totals.items()}
        fold_windows(totals, *pair, rows.offsets, scale=1 / self.scale)

    def _fold_stack(self, index: int, windows: int, inputs: Find, outputs: Find, x: Tensor, dy: Tensor) -> None:
        self.fold_stack(index, inputs(x.detach(), windows), outputs(dy.detach(), windows))

    def fold_stack(self, index: int, x_SBTI: Tensor, dy_SBTO: Tensor) -> None:
        """Inputs and output gradients of a stack of matrices: its windows' gradients are added up."""
        for n in range(x_SBTI.shape[1]):
            x_STI, dy_STO = x_SBTI[:, n].float(), dy_SBTO[:, n].float()
            pair = (x_STI, dy_STO) if self.tensors[index].transposed else (dy_STO, x_STI)
            gradient = torch.matmul(pair[0].mT, pair[1]) / self.scale
            for name, fold in FOLDS.items():
                if name in self.totals:
                    total = self.totals[name][index]
                    fold(total, gradient.to(total.device).reshape(total.shape))


def _in_memory(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_meta
