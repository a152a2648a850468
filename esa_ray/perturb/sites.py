"""The weights of a set: checked once, and found on their devices without asking the host again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from esa_ray.models.addressing import Catalogue, WeightTensor

#: Weights of a tensor that are looked at together, so that a large one needs no second copy of itself.
CHUNK = 1 << 22


#: From weights in their own dtype to a float64 number of all of them, or of each row, on their device.
Statistic = Callable[[Tensor], Tensor]


def quotient(values: Tensor, number: float) -> Tensor:
    """``values / number``, rounded once: by a number of the host, GPUs multiply with its rounded reciprocal."""
    return values / torch.full_like(values, number)


def mean(values: Tensor) -> Tensor:
    """Mean of a whole tensor."""
    sums = (piece.double().sum() for piece in values.split(CHUNK))
    return quotient(sum(sums, values.new_zeros((), dtype=torch.float64)), values.numel())


def standard_deviation(values: Tensor) -> Tensor:
    """Standard deviation of a whole tensor, of a population."""
    middle = mean(values)
    squares = ((piece.double() - middle).square().sum() for piece in values.split(CHUNK))
    return quotient(sum(squares, torch.zeros_like(middle)), values.numel()).sqrt()


def largest(values: Tensor) -> Tensor:
    """The largest absolute value of a whole tensor."""
    return torch.stack([piece.abs().max() for piece in values.split(CHUNK)]).max().double()


def row_largest(rows_LI: Tensor) -> Tensor:
    """The largest absolute value of each row."""
    return rows_LI.double().abs().amax(-1)


def row_root_mean_square(rows_LI: Tensor) -> Tensor:
    """The root mean square of each row."""
    return rows_LI.double().square().mean(-1).sqrt()


@dataclass(frozen=True, eq=False)
class Group:
    """Those weights of a set that lie on one device in one dtype, of all their tensors one after the other."""

    tensors: tuple[WeightTensor, ...]
    flats: tuple[np.ndarray, ...]
    dtype: torch.dtype
    device: torch.device
    known: dict[Statistic, Tensor] | None = None

    @property
    def sizes(self) -> list[int]:
        """How many weights of each tensor there are."""
        return [len(flat) for flat in self.flats]

    def upload(self, values: np.ndarray) -> Tensor:
        """Numbers of the host, one a weight, on the weights' device."""
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    @cached_property
    def at(self) -> tuple[Tensor, ...]:
        """Flat indices of each tensor's weights, views of one vector that was uploaded once."""
        return self.upload(np.concatenate(self.flats)).split(self.sizes)

    def gathered(self, out: Tensor | None = None) -> Tensor:
        """The weights as they stand, one vector; into ``out`` where memory for it is there."""
        found = torch.empty(sum(self.sizes), dtype=self.dtype, device=self.device) if out is None else out
        for tensor, at, mine in zip(self.tensors, self.at, found.split(self.sizes), strict=True):
            torch.index_select(tensor.flat_weights(), 0, at, out=mine)
        return found

    def of_tensors(self, statistic: Statistic) -> Tensor:
        """A statistic of every weight's own tensor."""
        return self._once(statistic, self._of_tensors)

    def of_rows(self, statistic: Statistic) -> Tensor:
        """A statistic of every weight's own output row; ``statistic`` maps (lines, inputs) to (lines,)."""
        return self._once(statistic, self._of_rows)

    def _once(self, statistic: Statistic, take: Callable[[Statistic], Tensor]) -> Tensor:
        if self.known is None:
            return take(statistic)
        if statistic not in self.known:
            self.known[statistic] = take(statistic)
        return self.known[statistic]

    def _of_tensors(self, statistic: Statistic) -> Tensor:
        found = [statistic(tensor.flat_weights()) for tensor in self.tensors]
        return torch.cat([value.expand(n) for value, n in zip(found, self.sizes, strict=True)])

    @cached_property
    def lines(self) -> tuple[np.ndarray, ...]:
        """For each tensor which output row (of which expert) each weight belongs to, as one number a weight."""
        return tuple(map(_lines, self.tensors, self.flats))

    @cached_property
    def _rows(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each tensor the experts and rows of the lines that are touched, and which of them is each weight's."""
        pairs = [np.unique(lines, return_inverse=True) for lines in self.lines]
        parts = [(lines // t.rows, lines % t.rows, at) for (lines, at), t in zip(pairs, self.tensors, strict=True)]
        whole = self.upload(np.concatenate([numbers for three in parts for numbers in three]))
        pieces = iter(whole.split([len(numbers) for three in parts for numbers in three]))
        return list(zip(pieces, pieces, pieces, strict=True))

    def _of_rows(self, statistic: Statistic) -> Tensor:
        found = []
        for tensor, (expert, row, at) in zip(self.tensors, self._rows, strict=True):
            weights = tensor.flat_weights()
            matrices = weights.view(-1, *tensor.shape[-2:] if len(tensor.shape) > 1 else (tensor.size, 1))
            mine = matrices[expert, :, row] if tensor.transposed else matrices[expert, row]
            found.append(statistic(mine)[at])
        return torch.cat(found)


def group_of(tensors: Sequence[WeightTensor], flats: Sequence[np.ndarray], *, intact: bool = False) -> Group:
    """Weights of tensors that lie on one device in one dtype; ``intact`` as for :class:`Sites`."""
    known: dict[Statistic, Tensor] | None = {} if intact else None
    return Group(tuple(tensors), tuple(flats), tensors[0].dtype, _device(tensors[0]), known)


def _lines(tensor: WeightTensor, flat: np.ndarray) -> np.ndarray:
    *lead, last = np.unravel_index(flat, tensor.shape)
    row = lead[-1] if lead and not tensor.transposed else last
    return lead[0] * tensor.rows + row if tensor.experts else row


def _checked(tensor: WeightTensor, flat: np.ndarray) -> np.ndarray:
    flat = np.asarray(flat)
    if len(flat) > 1 and len(np.unique(flat)) != len(flat):
        raise ValueError(f"{tensor.name}: a weight is addressed twice")
    if len(flat) and (flat.dtype.kind not in "iu" or not 0 <= flat.min() <= flat.max() < tensor.size):
        raise ValueError(f"{tensor.name}: a flat index is outside 0 … {tensor.size - 1}")
    return flat.astype(np.int64)


class Sites(Mapping[str, np.ndarray]):
    """Chosen weights of a model, flat indices by tensor name, to be damaged again and again.

    The indices are checked once and uploaded once, which saves every further edit of the set both.

    Parameters
    ----------
    intact
        Promise that every edit of the set begins on the same weights: what kinds of damage need to know of whole
        tensors and rows is then taken once.

    Raises
    ------
    ValueError
        If a weight is addressed twice or isn't there.
    KeyError
        If there is no such tensor.

    Example
    -------
    >>> from esa_ray.models.addressing import catalogue
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    >>> sites = Sites(catalogue(model), {"transformer.h.0.mlp.c_fc.weight": np.array([3, 5])})
    >>> sites.n, [group.dtype for group in sites.groups]
    (2, [torch.float32])
    """

    def __init__(self, catalogue: Catalogue, chosen: Mapping[str, np.ndarray], *, intact: bool = False):
        self._flat = {name: _checked(catalogue[name], flat) for name, flat in chosen.items()}
        together: dict[tuple[torch.device, torch.dtype], list[str]] = {}
        for name in self._flat:
            together.setdefault((_device(catalogue[name]), catalogue[name].dtype), []).append(name)
        #: The same weights, by device and dtype.
        self.groups = [
            group_of([catalogue[n] for n in names], [self._flat[n] for n in names], intact=intact)
            for names in together.values()
        ]
        #: How many weights there are.
        self.n = sum(map(len, self._flat.values()))

    def __getitem__(self, name: str) -> np.ndarray:
        return self._flat[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._flat)

    def __len__(self) -> int:
        return len(self._flat)


def _device(tensor: WeightTensor) -> torch.device:
    return torch.device("cpu") if tensor.offloaded else tensor.parameter.device
