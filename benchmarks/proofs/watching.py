"""A model's passes over a few tokens, watched: what enters attention and every matrix, and what modules give out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import Catalogue, WeightTensor

TOKENS = 12
#: Relative to what changes most: less than that has not changed.
NOTHING = 1e-5


@dataclass
class Seen:
    """One forward pass: what entered each matrix (by tensor and expert), each block's attention, what modules gave."""

    inputs: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    made: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    lookups: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    attended: list[tuple[int | None, dict[str, Tensor]]] = field(default_factory=list)
    outputs: dict[nn.Module, list[Tensor]] = field(default_factory=dict)
    logits: Tensor | None = None


class _Mode(TorchFunctionMode):
    """Notes the other operand of every product with a matrix, and the products around a softmax."""

    def __init__(self, seen: Seen, memory: Mapping[int, tuple[str, int]], layer: Callable[[], int | None]):
        super().__init__()
        self.seen, self.memory, self.layer = seen, memory, layer
        self._scores: tuple[Tensor, Tensor] | None = None
        self._named = False
        self._partition = False
        self._weights: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        result = func(*args, **kwargs)
        if name == "scaled_dot_product_attention":
            named = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            self._attended({c: named[full] for c, full in zip("qkv", ("query", "key", "value"), strict=True)})
        elif self._scores and (name == "softmax" or (name == "exp" and self._partition)):
            self._weights, self._partition = result, False
        elif name == "logsumexp":
            self._partition = True
        elif name in ("matmul", "__matmul__", "bmm", "baddbmm", "mm", "linear", "addmm", "einsum"):
            leaves = tree_leaves((args, kwargs))
            letters = next((leaf for leaf in leaves if isinstance(leaf, str)), None) if name == "einsum" else None
            self._product([t for t in leaves if isinstance(t, Tensor)], result, name, letters)
        elif name == "embedding" and (known := self.memory.get(args[1].data_ptr())):
            self.seen.lookups.setdefault(known[0], (args[0].clone(), result.clone()))
        elif self._weights is not None and any(a is self._weights for a in args) and _like(result, self._weights):
            self._weights = result  # dropout, casts, views, a mask for heads, all but sinks
        return result

    def _product(self, operands: list[Tensor], result: Tensor, name: str, letters: str | None) -> None:
        for matrix in operands:
            if (known := self.memory.get(matrix.data_ptr())) and matrix.numel():
                other = next(t for t in (operands[1:] if name == "addmm" else operands) if t is not matrix)
                self.seen.inputs.setdefault(known, other.detach().clone())
                self.seen.made.setdefault(known, result.detach().clone())
                return
        if len(operands) < 2:
            return
        left, right = operands[-2:]
        if self._weights is not None and left is self._weights:
            q, k = self._scores or (left, left)
            self._attended({"q": q, "k": k, "v": _by_head(letters, left, right)[1]})
            self._scores = self._weights = None
        elif left.dim() > 2 and not (self._named and self._scores and letters):  # positions' scores come after
            self._scores, self._named = _by_head(letters, left, right), letters is not None

    def _attended(self, three: dict[str, Tensor]) -> None:
        heads = {c: values.detach().clone() for c, values in three.items()}
        self.seen.attended.append((self.layer(), heads))


def _like(result: Any, values: Tensor) -> bool:
    return isinstance(result, Tensor) and (result.dim() == values.dim() or result.numel() == values.numel())


def _by_head(letters: str | None, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Operands of a product by ``einsum`` as others are: axes that both and the result have first, the summed last."""
    if letters is None:
        return left, right
    a, b, made = re.split(",|->", letters.replace(" ", ""))
    both = [c for c in a if c in b and c in made]

    def ordered(values: Tensor, axes: str) -> Tensor:
        last = [c for c in axes if c not in made]
        middle = [c for c in axes if c not in both and c not in last]
        return values.permute([axes.index(c) for c in (*both, *middle, *last)])

    return ordered(left, a), ordered(right, b).movedim(-1, -2) if made[-1] in b else ordered(right, b)


class Watched:
    """A model whose passes over a few fixed tokens are seen."""

    def __init__(self, model: PreTrainedModel, catalogue: Catalogue):
        self.model, self.catalogue = model, catalogue
        vocabulary = model.get_input_embeddings().weight.shape[0]
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(0, vocabulary, (1, TOKENS), generator=generator)
        self.tokens[0, 1] = self.tokens[0, -1]  # one token stands twice
        self.memory: dict[int, tuple[str, int]] = {}
        for tensor in catalogue.tensors:
            whole = tensor.parameter.detach()
            matrices = whole.view(tensor.shape) if tensor.experts else [whole]
            self.memory |= {matrix.data_ptr(): (tensor.name, expert) for expert, matrix in enumerate(matrices)}
        self.intact = self.run()

    def run(self) -> Seen:
        """One pass."""
        seen, layer = Seen(), [None]
        with ExitStack() as around:
            for module in self._owners():
                around.callback(module.register_forward_hook(self._given(seen)).remove)
            for number, block in self._blocks():
                around.callback(block.register_forward_pre_hook(lambda *_, n=number: layer.__setitem__(0, n)).remove)
            for norm in self._inner_norms():
                around.callback(norm.register_forward_hook(_unchanged).remove)
            for module in self.model.modules():  # Gemma 3n's neurons otherwise depend on how large the others are
                if getattr(module, "activation_sparsity", None):
                    around.callback(setattr, module, "activation_sparsity", module.activation_sparsity)
                    module.activation_sparsity = 0.0
            around.enter_context(_Mode(seen, self.memory, lambda: layer[0]))
            seen.logits = self.model(self.tokens, use_cache=False).logits.detach()
        return seen

    def _owners(self) -> set[nn.Module]:
        return {slot.owner for tensor in self.catalogue.tensors for slot in tensor.slots}

    def _blocks(self) -> Iterator[tuple[int, nn.Module]]:
        names = {t.name: t.layer for t in self.catalogue.tensors if t.layer is not None}
        for name, layer in names.items():
            path = name.split(".")
            yield layer, self.model.get_submodule(".".join(path[: path.index(str(layer)) + 1]))

    def _inner_norms(self) -> Iterator[nn.Module]:
        """Norms inside attention or a feed-forward layer: over all heads they'd spread what happens to one."""
        for name, module in self.model.named_modules():
            inside = re.search(r"\.\d+\..*(attn|attention|att|mlp|mixer)\w*\..*", name)
            if inside and "norm" in type(module).__name__.lower():
                yield module

    @staticmethod
    def _given(seen: Seen) -> Callable:
        def hook(module: nn.Module, _: tuple, output: Any) -> None:
            given = output if isinstance(output, tuple) else (output,)
            made = [t.detach().clone() for t in given if isinstance(t, Tensor) and t.is_floating_point()]
            seen.outputs.setdefault(module, made)

        return hook

    @contextmanager
    def edited(self, tensor: WeightTensor, row: int, expert: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """One output row of a tensor changed."""
        at = torch.tensor([tensor.index(row, col, expert if tensor.experts else None) for col in range(tensor.cols)])
        weights = tensor.flat_weights()
        before = weights[at].clone()
        weights[at] = change(before)
        try:
            yield
        finally:
            weights[at] = before


def _unchanged(_: nn.Module, args: tuple, output: Any) -> Any:
    return args[0] if isinstance(output, Tensor) and args and args[0].shape == output.shape else output


def other_row(before: Tensor) -> Tensor:
    return before + before.abs().mean() + torch.linspace(0.1, 1.0, len(before))


def changed(before: Tensor, after: Tensor, axis: int) -> set[int]:
    """Where along an axis two tensors differ."""
    axis %= before.dim()
    off = (after.float() - before.float()).abs().movedim(axis, 0).flatten(1).amax(1)
    return set(torch.nonzero(off > NOTHING * max(float(off.max()), 1e-12)).flatten().tolist())


@dataclass
class Edit:
    """One row of a component in a tensor: the ``ordinal``-th of its ``rows``, of one expert."""

    watched: Watched
    tensor: WeightTensor
    rows: np.ndarray
    ordinal: int
    expert: int

    @property
    def row(self) -> int:
        """Its number in the matrix."""
        return int(self.rows[self.ordinal])

    @property
    def component(self) -> str:
        """What the catalogue calls it."""
        return self.tensor.parts[self.tensor.row_part[self.row]].component

    @property
    def multiplies(self) -> bool:
        """Whether the intact model multiplies anything with it."""
        return (self.tensor.name, self.expert) in self.before.inputs

    def attended(self, seen: Seen) -> list[dict[str, Tensor]]:
        """What entered attention in the tensor's layer."""
        mine = self.tensor.layer
        return [three for layer, three in seen.attended if mine in (None, layer)]

    def seen(self, change: Callable[[Tensor], Tensor] = other_row) -> Seen:
        """A pass with the row changed."""
        with self.watched.edited(self.tensor, self.row, self.expert, change):
            return self.watched.run()

    @property
    def before(self) -> Seen:
        """The intact pass."""
        return self.watched.intact

    def takers(self, *components: str) -> list[WeightTensor]:
        """Tensors of the same layer with one of these components, those with the most similar names first."""

        def alike(other: WeightTensor) -> int:
            pairs = zip(self.tensor.name.split("."), other.name.split("."), strict=False)
            return next((i for i, (a, b) in enumerate(pairs) if a != b), 99)

        mine = [t for t in self.watched.catalogue.tensors if t.layer == self.tensor.layer and t is not self.tensor]
        mine = [t for t in mine if {p.component for p in t.parts} & set(components)]
        return sorted(mine, key=alike, reverse=True)
