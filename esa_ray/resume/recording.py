"""What an intact forward pass shows on its way: what enters and leaves its blocks, and in which order."""

from __future__ import annotations

from collections.abc import Container
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from esa_ray.models.forwards import hidden
from esa_ray.models.hooks import entering, leaving, state_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Recording:
    """What an intact forward pass of one batch shows on its way."""

    #: What entered each block; None where it isn't held.
    states: list[Tensor | None] = field(default_factory=list)
    #: Which blocks' states are held; None: all.
    held: Container[int] | None = None
    #: How each block returned its state: None as a tensor, else the length of a tuple.
    lengths: list[int | None] = field(default_factory=list)
    last: list[Tensor] = field(default_factory=list)
    #: Modules called before the end of the last block, and after it.
    early: set[nn.Module] = field(default_factory=set)
    late: set[nn.Module] = field(default_factory=set)
    #: Inputs and outputs of the head, where that is watched.
    head: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    #: Its inputs, where its outputs are the logits.
    final: list[Tensor] = field(default_factory=list)

    def _enter(self, args: tuple, kwargs: dict) -> None:
        wanted = self.held is None or len(self.states) in self.held
        self.states.append(hidden(args, kwargs) if wanted else None)

    def _leave(self, _: tuple, __: dict, output: Any) -> None:
        self.lengths.append(len(output) if isinstance(output, tuple) else None)
        self.last = [state_of(output)]

    def _multiply(self, args: tuple, _: dict, output: Tensor) -> None:
        self.head.append((args[0], output))

    def _call(self, depth: int, module: nn.Module, *_: Any) -> None:
        (self.late if len(self.lengths) == depth else self.early).add(module)

    def run(
        self, model: PreTrainedModel, stack: list[nn.Module], outside: list[nn.Module], head: nn.Module | None,
        batch_BT: Tensor,
    ) -> Tensor:  # fmt: skip
        """The logits, with all else noted; the model's hooks are what they were afterwards."""
        with ExitStack() as hooks:
            for block in stack:
                hooks.enter_context(entering(block, self._enter))
                hooks.enter_context(leaving(block, self._leave))
            for module in outside:
                hooks.enter_context(entering(module, partial(self._call, len(stack), module)))
            if head is not None:
                hooks.enter_context(leaving(head, self._multiply))
            return model(batch_BT, use_cache=False).logits
