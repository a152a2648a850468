"""Which weights a model has, what each one is, and where it lies.

A weight is named by (tensor, expert, row, col) with ``row`` the output and ``col`` the input, whatever
the storage order; in memory it is (tensor, flat index). Storage that deviates from one Linear a component:

- GPT-2's Conv1D stores (in, out), so row and col are swapped;
- Phi-3 stacks q, k, v and gate, up in one matrix, GPT-2 stacks q, k, v;
- GPT-NeoX and BLOOM interleave q, k, v head by head;
- mixture-of-experts models hold all experts in one 3-D parameter (expert, out, in), or (expert, in, out).

:mod:`esa_ray.models.layouts` has the tables. Tied weights are one parameter and appear once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from esa_ray.errors import EsaError
from esa_ray.models.account import pattern
from esa_ray.models.blocks import blocks
from esa_ray.models.components import FusedPart
from esa_ray.models.telling import OTHER, LeftOut, told
from esa_ray.models.tensors import WeightTensor
from esa_ray.spec import asks_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Catalogue", "FusedPart", "LeftOut", "WeightTensor", "catalogue"]


@dataclass(frozen=True, eq=False)
class Catalogue:
    """All addressable weights of a model, each storage once, in the model's own order."""

    tensors: tuple[WeightTensor, ...]
    layers: int
    #: What isn't addressed: biases, buffers of a checkpoint, and what isn't a floating-point number.
    left_out: tuple[LeftOut, ...] = ()

    @cached_property
    def by_name(self) -> dict[str, WeightTensor]:
        """Tensors by parameter name."""
        return {t.name: t for t in self.tensors}

    def __getitem__(self, name: str) -> WeightTensor:
        return self.by_name[name]

    def select(self, components: tuple[str, ...]) -> tuple[WeightTensor, ...]:
        """The tensors that hold any of these components (:func:`esa_ray.spec.asks_for`)."""
        chosen = tuple(t for t in self.tensors if any(asks_for(components, p.component, t.name) for p in t.parts))
        if not chosen:
            there = dict.fromkeys(part.component for tensor in self.tensors for part in tensor.parts)
            raise EsaError(
                f"the model has no weights of the components {', '.join(components)}; it has {', '.join(there)}"
            )
        return chosen

    @property
    def unknown(self) -> dict[str, int]:
        """What is ``other``: patterns of names (``*`` for numbers), which ``components`` take, and their weights."""
        found: dict[str, int] = {}
        for tensor in self.tensors:
            n = sum(int((tensor.row_part == i).sum()) for i, p in enumerate(tensor.parts) if p.component == OTHER)
            if n:
                key = pattern(tensor.name)
                found[key] = found.get(key, 0) + n * (tensor.size // tensor.rows)
        return found


def catalogue(model: PreTrainedModel) -> Catalogue:
    """Find every weight of a model and say what it is.

    Components are told by name; only if a block holds matrices whose names tell nothing, by what one forward
    over four tokens does with them (:mod:`esa_ray.models.structure`). What neither tells is ``other``: it isn't scored
    unless it is asked for.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    >>> where = catalogue(model)["transformer.h.0.attn.c_attn.weight"].locate([8])
    >>> where["component"], where["row"].tolist(), where["col"].tolist()
    (['k'], [8], [0])
    """
    where = blocks(model)
    found, out = told(model, where)
    return Catalogue(tuple(found), where.depth, tuple(out))
