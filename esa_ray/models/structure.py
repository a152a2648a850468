"""Components told by what a model does with its matrices, where their names tell nothing.

One forward over a few tokens is observed. Every product with a matrix of a block makes a new *flow*, every other
operation hands on the flows of its inputs; so it is known which matrices feed which, directly:

- q, k and v are what meets in the attention's product, one input to all three; o is fed by exactly them;
- gate and up are of one shape and share an input; the one that passes through an activation is the gate;
- down is fed by exactly gate and up, or by one matrix through an activation, which then is up.

What doesn't fit, or fits twice in a block, or contradicts a name that is known, is left open.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from esa_ray.models.blocks import text_config
from esa_ray.models.modes import eval_mode
from esa_ray.models.slots import ParameterSlot, input_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Operations that multiply by a matrix → which argument is the input, which the matrix.
PRODUCTS = {"linear": (0, 1), "addmm": (1, 2), "mm": (0, 1), "matmul": (0, 1), "__matmul__": (0, 1)}
ATTENTION = "scaled_dot_product_attention"
ACTIVATIONS = frozenset(
    {"silu", "gelu", "relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "celu", "mish", "hardswish", "softplus"}
    | {"hardsigmoid", "hardtanh", "logsigmoid", "sigmoid", "sigmoid_", "tanh", "tanh_", "erf"}
)


@dataclass(frozen=True)
class Role:
    """What a matrix turned out to be, and whether it is stored (in, out) as GPT-2's are."""

    component: str
    transposed: bool


@dataclass(frozen=True)
class _Flow:
    """Which matrices feed a tensor, and through what."""

    names: frozenset[str] = frozenset()
    activated: frozenset[str] = frozenset()
    scores: frozenset[tuple[str, str]] = frozenset()
    softmaxed: bool = False


@dataclass(frozen=True)
class _Use:
    """One product with a matrix: its sizes, how it is stored, the memory of its input, and what fed that."""

    name: str
    rows: int
    cols: int
    transposed: bool
    source: int
    feeds: _Flow


def _merged(flows: Iterable[_Flow]) -> _Flow:
    flows = list(flows)
    return _Flow(
        names=frozenset().union(*(f.names for f in flows)),
        activated=frozenset().union(*(f.activated for f in flows)),
        scores=frozenset().union(*(f.scores for f in flows)),
        softmaxed=any(f.softmaxed for f in flows),
    )


class _Observer(TorchFunctionMode):
    """Follows flows by the memory that tensors lie in, so that views and in-place operations hand them on, too."""

    def __init__(self, slots: Iterable[ParameterSlot]):
        super().__init__()
        self.slots = list(slots)
        self.uses: list[_Use] = []
        self.attended: list[tuple[_Flow, _Flow, _Flow]] = []
        self._flows: dict[int, _Flow] = {}
        self._alive: list[Tensor] = []  # memory that was given back could come again as another tensor's

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        flow = self._through(name, args, kwargs)
        if flow.names:
            written = args[0] if name == "__setitem__" else result
            for tensor in (t for t in tree_leaves(written) if isinstance(t, Tensor)):
                self._alive.append(tensor)
                self._flows[tensor.untyped_storage().data_ptr()] = flow
        return result

    def _flow(self, *values: Any) -> _Flow:
        tensors = (t for t in tree_leaves(values) if isinstance(t, Tensor))
        return _merged(self._flows.get(t.untyped_storage().data_ptr(), _Flow()) for t in tensors)

    def _through(self, name: str, args: Any, kwargs: Any) -> _Flow:
        """The flow of an operation's result; products and attentions are noted on the way."""
        if name in PRODUCTS and len(args) > PRODUCTS[name][1]:
            return self._product(name, *(args[i] for i in PRODUCTS[name]))
        flow = self._flow(args, kwargs)
        if name == ATTENTION:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            self.attended.append((self._flow(given["query"]), self._flow(given["key"]), self._flow(given["value"])))
        elif name == "softmax" and flow.scores:
            axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
            return replace(flow, softmaxed=axis in (-1, args[0].dim() - 1))
        elif name in ACTIVATIONS:
            return replace(flow, activated=flow.names)
        return flow

    def _product(self, name: str, x: Tensor, matrix: Tensor) -> _Flow:
        slot = next((p for p in self.slots if self._is(p.parameter, matrix)), None)
        if slot is not None:
            self._note(slot, name, x, matrix)
            return _Flow(names=frozenset({slot.name}))
        left, right = self._flow(x), self._flow(matrix)
        if left.softmaxed and len(left.scores) == 1:
            (q, k), *_ = left.scores
            self.attended.append((_Flow(frozenset({q})), _Flow(frozenset({k})), right))
            return _Flow(names=left.names | right.names)
        if len(left.names) == len(right.names) == 1:
            (q,), (k,) = left.names, right.names
            return replace(_merged([left, right]), scores=frozenset({(q, k)}))
        return _merged([left, right])

    @staticmethod
    def _is(parameter: Tensor, operand: Tensor) -> bool:
        same = not parameter.is_meta and parameter.data_ptr() == operand.data_ptr()
        return same and operand.dim() == 2 and operand.numel() == parameter.numel()

    def _note(self, slot: ParameterSlot, name: str, x: Tensor, matrix: Tensor) -> None:
        rows, cols = matrix.shape if name == "linear" else matrix.shape[::-1]
        as_stored = matrix.stride() == slot.parameter.stride() and matrix.shape == slot.parameter.shape
        transposed = as_stored == (name != "linear")
        self.uses.append(_Use(slot.name, rows, cols, transposed, x.data_ptr(), self._flow(x)))


def infer(
    model: PreTrainedModel, blocks: Mapping[int, Mapping[str, ParameterSlot]], known: Mapping[str, frozenset[str]]
) -> dict[str, Role]:
    """Tell what can be told of the matrices in a model's blocks from one forward over four tokens.

    Parameters
    ----------
    blocks
        By layer the places of all its matrices, by name, those with known names included.
    known
        The components that names tell: more than one where they are stacked in one matrix.

    Returns
    -------
    dict
        Roles by name, only of matrices whose names tell nothing and whose use leaves one possibility.
    """
    observer = _Observer(slot for block in blocks.values() for slot in block.values())
    embedding: Any = model.get_input_embeddings().weight
    vocabulary, width = embedding.shape
    tokens = torch.arange(4, device=input_device(model))[None] % vocabulary
    with torch.no_grad(), eval_mode(model), observer:
        model(tokens, use_cache=False)
    hidden = getattr(text_config(model.config), "hidden_size", width)
    found: dict[str, Role] = {}
    for block in blocks.values():
        found |= _roles(block.keys(), observer, hidden, known)
    return found


def _roles(
    block: Iterable[str], observer: _Observer, hidden: int, known: Mapping[str, frozenset[str]]
) -> dict[str, Role]:
    counts = Counter(use.name for use in observer.uses)
    uses = {use.name: use for use in observer.uses if use.name in block and counts[use.name] == 1}
    guesses = {*_attention(uses, observer.attended, hidden), *_mlp(uses, hidden)}
    if any(name in known and component not in known[name] for name, component in guesses):
        return {}
    times_named, times_given = Counter(n for n, _ in guesses), Counter(c for _, c in guesses)
    taken = {c for name in uses if len(known.get(name, ())) == 1 for c in known[name]}
    return {
        name: Role(component, uses[name].transposed)
        for name, component in guesses
        if name not in known and component not in taken and times_named[name] == times_given[component] == 1
    }


def _attention(
    uses: Mapping[str, _Use], attended: Iterable[tuple[_Flow, _Flow, _Flow]], hidden: int
) -> Iterable[tuple[str, str]]:
    for flows in attended:
        names = [name for flow in flows for name in flow.names]
        if len(names) != 3 or not all(len(flow.names) == 1 for flow in flows) or not uses.keys() >= set(names):
            continue
        if len({uses[name].source for name in names}) > 1:
            continue
        yield from zip(names, ("q", "k", "v"), strict=True)
        for use in uses.values():
            if use.feeds.names == frozenset(names) and use.rows == hidden:
                yield use.name, "o"


def _mlp(uses: Mapping[str, _Use], hidden: int) -> Iterable[tuple[str, str]]:
    for use in uses.values():
        into, activated = [uses[n] for n in use.feeds.names if n in uses], use.feeds.activated
        if use.rows != hidden or len(into) != len(use.feeds.names) or len(activated) != 1 or use.feeds.softmaxed:
            continue
        one_input = len({(u.source, u.rows, u.cols) for u in into}) == 1
        if one_input and len(into) <= 2 and all(u.cols == hidden for u in into):
            yield use.name, "down"
            # One with twice as many outputs hides another matrix among them.
            for source in (u for u in into if u.rows == use.cols):
                gate = len(into) == 2 and source.name in activated
                yield source.name, "gate" if gate else "up"
