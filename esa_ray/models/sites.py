"""Places in a forward pass, and values that are held there.

Legend: B windows, T tokens, H channels, I neurons, N query heads, K key-value heads, D numbers a head, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

SiteKind = Literal[
    "residual", "attention", "ffn", "mixer", "neurons", "patterns", "keys", "values", "denominator", "logits",
    "projection",
]  # fmt: skip
KINDS: tuple[str, ...] = get_args(SiteKind)
#: Places that a model has once, after its blocks.
ENDS = frozenset({"denominator", "logits", "projection"})
#: Places inside attention; their index is of heads.
ATTENTION = frozenset({"patterns", "keys", "values"})


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction among the vocabulary's logits: (V,), of length 1. Two are the same only if they are one object.

    >>> Direction.of(torch.tensor([3.0, 4.0])).unit
    tensor([0.6000, 0.8000])
    """

    unit: Tensor

    @classmethod
    def of(cls, vector: Tensor) -> Direction:
        """The direction that a vector has."""
        return cls(vector / vector.norm())


@dataclass(frozen=True)
class Site:
    """A place in the forward pass, and which part of it.

    ==============  =========================================================================  ===============
    kind            what stands there                                                          shape
    ==============  =========================================================================  ===============
    residual        what leaves block ``layer``; of −1 what enters the first one               (B, T, H)
    attention       what the block's attention adds: the output of its last matrix             (B, T, H)
    ffn, mixer      the same of its feed-forward layer (of experts their sum), or of a         (B, T, H)
                    state-space mixer
    neurons         what goes into the feed-forward layer's last matrix                        (B, T, I)
    patterns        attention weights, after the softmax                                       (B, N, T, T)
    keys, values    of attention, keys after their rotation                                    (B, K, T, D)
    denominator     what the final norm divides by: √(mean h² + ε), or the standard deviation  (B, T)
                    where it takes the mean off
    logits          the model's logits, scaled and capped as it gives them                     (B, T, V)
    projection      of the logits on ``direction``                                             (B, T)
    ==============  =========================================================================  ===============

    ``index`` takes some heads (of patterns, keys, values), or some of the last axis; the shape then has as many. None
    takes all.

    Example
    -------
    >>> Site("residual", 3, index=(7,))
    Site(kind='residual', layer=3, index=(7,), direction=None)
    """

    kind: SiteKind
    layer: int | None = None
    index: tuple[int, ...] | None = None
    direction: Direction | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"a site is one of {', '.join(KINDS)}, not {self.kind}")
        if (self.layer is None) != (self.kind in ENDS):
            raise ValueError(f"{self.kind} {'takes no' if self.kind in ENDS else 'needs a'} layer")
        if (self.direction is not None) != (self.kind == "projection"):
            raise ValueError("a projection needs a direction, and nothing else takes one")
        if self.index is not None and self.kind in ("denominator", "projection"):
            raise ValueError(f"{self.kind} is one number a token, so it takes no index")

    def __str__(self) -> str:
        return f"the {self.kind}" if self.layer is None else f"the {self.kind} of block {self.layer}"

    @property
    def axis(self) -> int:
        """The axis that ``index`` is of."""
        return 1 if self.kind in ATTENTION else -1

    def of(self, whole: Tensor) -> Tensor:
        """The part that the index takes."""
        return whole if self.index is None else whole.index_select(self.axis, self._at(whole))

    def put(self, whole: Tensor, part: Tensor) -> Tensor:
        """The whole, with this in place of that part; the whole itself isn't touched."""
        return part if self.index is None else whole.index_copy(self.axis, self._at(whole), part)

    def _at(self, whole: Tensor) -> Tensor:
        return torch.tensor(self.index, device=whole.device)


@dataclass(frozen=True, eq=False)
class Hold:
    """A value that is held at a site in every forward pass.

    Parameters
    ----------
    value
        What broadcasts to the site's shape; its dtype and device become those of the pass.
    positions
        Where it is held, and elsewhere nothing changes: boolean, of tokens (B, T) or (T,), of patterns' queries; of
        patterns also (B, T, T), queries × keys. None holds it everywhere.
    """

    site: Site
    value: Tensor
    positions: Tensor | None = None

    def __call__(self, whole: Tensor) -> Tensor:
        """What stands at the site, with the value in its place."""
        part = self.site.of(whole)
        value = self.value.to(part.device, part.dtype)
        return self.site.put(whole, torch.where(self._mask(part), value, part))

    def _mask(self, part: Tensor) -> Tensor:
        if self.positions is None:
            return torch.ones((), dtype=torch.bool, device=part.device)
        mask = self.positions.to(part.device)
        if part.dim() == 2:
            return mask
        if self.site.kind in ATTENTION and mask.dim() > 1:
            mask = mask[:, None]
        tokens_last = self.site.kind == "patterns" and self.positions.dim() == 3
        return mask if tokens_last else mask[..., None]
