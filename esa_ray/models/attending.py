"""Attention's keys, values and patterns, seen or changed inside the model's own attention.

A model asks transformers for the function that computes attention, by its config's name for it; while anything is
watched another function stands under that name, which calls the first. So keys and values are held in whatever the
model computes, to the bit, and patterns are computed beside it; only where a held pattern differs from the model's own
does its product with the values take the place of what the model computed.

Legend: B windows, N query heads, K key-value heads, T queries, S keys, D numbers a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from esa_ray.errors import EsaError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Sees what stands at a place; gives what is to stand there, or None.
Act = Callable[[Tensor], Tensor | None]
#: Ways of computing attention whose patterns are known.
KNOWN = ("sdpa", "eager")
#: How far attention from patterns may lie from the model's own, relative to its largest number, by dtype.
CLOSE = {torch.float64: 1e-9, torch.float32: 1e-4}


def _forward(module: nn.Module) -> Any:
    return inspect.unwrap(type(module).forward)


def attends(module: nn.Module) -> bool:
    """Whether a module computes attention by a function that it asks transformers for."""
    code = getattr(_forward(module), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def own_modules(block: nn.Module) -> dict[str, nn.Module]:
    """The modules of a block by their names there, but those that attend to another text, of an encoder."""
    return {name: m for name, m in block.named_modules() if not ("cross" in name or "encoder" in name)}


def attention_of(block: nn.Module, name: str) -> nn.Module:
    """The one module of a block that attends to the block's own text.

    Raises
    ------
    EsaError
        If it has none, or several.
    """
    found = [m for m in own_modules(block).values() if attends(m)]
    if len(found) != 1:
        has = "computes attention by code of its own, or none" if not found else "has several attentions"
        raise EsaError(f"{name} {has}, so its patterns, keys and values can't be seen; ask for the sub-layer's output")
    return found[0]


@contextmanager
def attending(module: nn.Module, kind: str, act: Act) -> Iterator[None]:
    """Let ``act`` be called with the keys, values or patterns of a module; those that came first are called first."""
    config: Any = module.config
    interface, way = _forward(module).__globals__["ALL_ATTENTION_FUNCTIONS"], config._attn_implementation
    if kind == "patterns" and way not in KNOWN:
        raise EsaError(f"attention by {way} shows no patterns; load the model with attn_implementation='sdpa'")
    watched = interface._local_mapping.get(way)
    if not isinstance(watched, _Watched):
        watched = interface[way] = _Watched(way, interface.get(way), watched)
    acts = watched.acts.setdefault(module, [])
    acts.append((kind, act))
    try:
        yield
    finally:
        acts.remove((kind, act))
        if not acts:
            del watched.acts[module]
        if not watched.acts:
            del interface[way]
            if watched.before is not None:
                interface[way] = watched.before


class _Watched:
    """What stands in place of a function that computes attention, and calls it."""

    def __init__(self, way: str, function: Callable | None, before: Callable | None):
        self.way, self.function, self.before = way, function, before
        self.acts: dict[nn.Module, list[tuple[str, Act]]] = {}

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kwargs: Any
    ) -> tuple:
        acts = self.acts.get(module, [])
        # Without an entry of its own a name stands for the model's own function, as "eager" does.
        compute = self.function or _forward(module).__globals__["eager_attention_forward"]
        key, value = _through(acts, "keys", key), _through(acts, "values", value)
        output, *rest = compute(module, query, key, value, attention_mask, **kwargs)
        if any(kind == "patterns" for kind, _ in acts):
            own = rest[0] if self.way == "eager" else _patterns(module, query, key, attention_mask, **kwargs)
            output = _attended(module, output, own, _through(acts, "patterns", own), value)
        return (output, *rest)


def _through(acts: Sequence[tuple[str, Act]], kind: str, there: Tensor) -> Tensor:
    for mine, act in acts:
        if mine == kind and (new := act(there)) is not None:
            there = new
    return there


def _repeated(states_BKSD: Tensor, heads: int) -> Tensor:
    """Keys or values, one for each query head."""
    return states_BKSD.repeat_interleave(heads // states_BKSD.shape[1], 1)


def _patterns(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, *,
    scaling: float | None = None, is_causal: bool | None = None, **_: Any,
) -> Tensor:  # fmt: skip
    """Attention weights (B, N, T, S) as torch's scaled dot product has them."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ _repeated(key, query.shape[1]).transpose(2, 3) * scale
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if mask is None and causal and query.shape[2] > 1:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        least = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask, least) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)


#: Modules whose attention was found to be the product of patterns and values.
_products: WeakSet[nn.Module] = WeakSet()


def _attended(module: nn.Module, output: Tensor, own: Tensor, held: Tensor, value: Tensor) -> Tensor:
    """What attention gives (B, T, N, D): where the pattern is the model's own its output, else the product."""
    value = _repeated(value, own.shape[1])
    if module not in _products:
        made, near = (own @ value).transpose(1, 2).reshape(output.shape), CLOSE.get(output.dtype, 0.05)
        if not torch.allclose(made, output, near, near * float(output.abs().max()), equal_nan=True):
            raise EsaError(
                f"{type(module).__name__} does more than weigh values by its patterns, so these can't be seen; ask for "
                "the sub-layer's output"
            )
        _products.add(module)
    if held is own:
        return output
    mine = (held == own).all(-1).transpose(1, 2)[..., None]
    whole = torch.where(mine, output.reshape(*mine.shape[:3], -1), (held @ value).transpose(1, 2))
    return whole.contiguous().reshape(output.shape)  # as models expect it that lay heads side by side themselves
