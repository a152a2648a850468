"""The weights of a model as they are stored: each a pattern of bits at an address, and what the model makes of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from esa_ray.applications.kept import Kept
from esa_ray.perturb.edit import Applied, Edit
from esa_ray.security.critical import critical
from esa_ray.security.held import Held
from esa_ray.security.layout import Layout, by_tensor
from esa_ray.security.numbers import held_as, patterns, read, stored
from esa_ray.security.rotation import reflected
from esa_ray.security.writing import amount, writes
from esa_ray.spec.security import STORED

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from esa_ray.applications.calibrated import Calibrated
    from esa_ray.models.addressing import Catalogue, WeightTensor
    from esa_ray.spec.security import AttackSpec, FaultSpec


@dataclass(frozen=True)
class StoredEdit(Edit):
    """Weights that read otherwise, and the patterns that they read by; while it stands the memory knows of them."""

    memory: Memory
    address: np.ndarray
    codes: np.ndarray

    @contextmanager
    def standing(self) -> Iterator[Applied]:
        """As :meth:`Edit.standing`."""
        with super().standing() as applied, self.memory.holding(self.address, self.codes):
            yield applied


class Memory:
    """A model's weights in storage; in a ``with`` block the model reads them from there, and then what it read before.

    The weights of ``spec.components`` have the addresses 0 … N − 1, in the order of the weights file; each is a
    pattern of ``bits`` bits. In the block the model computes with what these patterns read, rounded to the dtype that
    it is held in: so a bf16 model that is stored in fp32 reads its fp32 patterns to 8 bits. What is stored as it is
    held (fp32, or the model's own dtype) isn't touched. Afterwards the model is bit for bit what it was.

    Parameters
    ----------
    spec
        Says dtype, components and protection. "parity-zero" puts parity in the last bit; with "rotation" matrices are
        stored reflected (:mod:`esa_ray.security.rotation`): patterns and values are those of the reflected weights, and
        an edit of one of them changes all weights of a row that the model reads.
    order
        Names of tensors as the weights file has them (:class:`esa_ray.security.layout.Layout`).
    scores
        Gives the calibration windows of the seed, on which ``spec.score`` is taken of the intact model; asked only
        where the protection is of critical weights.

    Raises
    ------
    EsaError
        If the dtype can't hold a weight, or ⌊critical·N⌋ is none.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from esa_ray.models.addressing import catalogue
    >>> from esa_ray.spec.security import FaultSpec
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    >>> with Memory(model, catalogue(model), FaultSpec(rate=1e-6, components=("up",))) as memory:
    ...     codes = memory.codes(np.array([0]))
    ...     with memory.edit(np.array([0]), codes ^ np.uint64(1 << 14)).standing() as applied:
    ...         memory.n_weights, memory.bits, applied.n_changed
    (256, 16, 1)
    """

    def __init__(
        self,
        model: PreTrainedModel,
        catalogue: Catalogue,
        spec: FaultSpec | AttackSpec,
        *,
        order: Sequence[str] | None = None,
        scores: Callable[[], Calibrated] | None = None,
    ):
        self.model, self.catalogue, self.spec = model, catalogue, spec
        self.layout = Layout(catalogue, spec.components, order)
        self.dtype, self.bits = spec.dtype, STORED[spec.dtype]
        #: Addresses of the ⌊critical·N⌋ weights with the largest score, ascending; empty where none are asked for.
        self.critical = critical(self.layout, catalogue, spec, scores)
        #: What was made once of the intact model, by what it is.
        self.remembered: dict[Hashable, Any] = {}
        self._kept = Kept()
        #: Their weights as they are stored, tensor by tensor.
        self.held = [Held(stretch, spec.dtype, spec.protect, self._kept) for stretch in self.layout.stretches]
        self._standing: list[tuple[np.ndarray, np.ndarray]] = []

    @property
    def n_weights(self) -> int:
        """N."""
        return self.layout.n

    @property
    def tensors(self) -> tuple[WeightTensor, ...]:
        """The tensors that hold them, in the order of storage."""
        return tuple(stretch.tensor for stretch in self.layout.stretches)

    @cached_property
    def largest(self) -> np.ndarray:
        """The largest |w| of each tensor's stored weights as they read without a fault, float64."""
        return np.array([held.largest for held in self.held])

    def locate(self, address: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Addresses → which of ``tensors`` each is in, and its flat index there."""
        return self.layout.locate(address)

    def address(self, tensor_name: str, flat: np.ndarray) -> np.ndarray:
        """Flat indices of a tensor → addresses; raises KeyError where one isn't stored."""
        return self.layout.address(tensor_name, flat)

    def codes(self, address: np.ndarray) -> np.ndarray:
        """The patterns that stand at addresses, those of edits that stand included; uint64."""
        address = np.asarray(address, dtype=np.int64)
        number, flat = self.locate(address)
        found = np.empty(len(address), dtype=np.uint64)
        for i, mine in by_tensor(number):
            found[mine] = patterns(self.held[i].at(flat[mine]))
        return self._with_edits(address, found)

    def _with_edits(self, address: np.ndarray, found: np.ndarray) -> np.ndarray:
        for where, codes in self._standing:
            at = np.searchsorted(where, address).clip(max=len(where) - 1)
            hit = where[at] == address
            found[hit] = codes[at[hit]]
        return found

    def values(self, address: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """What patterns read at addresses, float64; not yet rounded to the dtype that the model is held in."""
        return read(held_as(np.asarray(codes, dtype=np.uint64), self.dtype), self._scales_at(address)).double().numpy()

    def nearest(self, address: np.ndarray, values: np.ndarray) -> np.ndarray:
        """The patterns that read what is nearest to some values at addresses."""
        return patterns(stored(torch.from_numpy(values).float(), self.dtype, self._scales_at(address)))

    def by_stored(self, tensor: WeightTensor, gradient: Tensor) -> Tensor:
        """The derivative by what is stored from that by what the model reads, of all of a tensor's weights, 1-D."""
        held = next(held for held in self.held if held.tensor is tensor)
        if not held.reflected:
            return gradient
        found = gradient.clone(memory_format=torch.contiguous_format)
        held.stretch.matrix(found).copy_(reflected(held.stretch.matrix(gradient)))
        return found

    def edit(self, address: np.ndarray, codes: np.ndarray) -> StoredEdit:
        """Let weights read other patterns, each of them once; nothing is written before it stands.

        Edits that stand together leave in the reverse of the order in which they came.

        Raises
        ------
        ValueError
            If an address occurs twice.
        """
        address, codes = np.asarray(address, dtype=np.int64), np.asarray(codes, dtype=np.uint64)
        order = np.argsort(address, kind="stable")
        address, codes = address[order], codes[order]
        if (np.diff(address) == 0).any():
            raise ValueError("a weight is addressed twice")
        made = writes(self._changes(address, codes))
        return StoredEdit(made, amount(made, len(address)), self, address, codes)

    @contextmanager
    def holding(self, address: np.ndarray, codes: np.ndarray) -> Iterator[None]:
        """Let :meth:`codes` know of patterns that stand at addresses, ascending."""
        if not len(address):
            yield
            return
        mine = (address, codes)
        self._standing.append(mine)
        try:
            yield
        finally:
            self._standing = [other for other in self._standing if other is not mine]

    def __enter__(self) -> Self:
        try:
            assert len(self.largest) == len(self.tensors)  # known before anything is written
            for held in self.held:
                if not held.as_it_is:
                    self._kept.write(held.tensor, held.as_read())
        except BaseException:
            self._kept.take_back()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._kept.take_back()

    def _changes(self, address: np.ndarray, codes: np.ndarray) -> Iterator[tuple[WeightTensor, np.ndarray, np.ndarray]]:
        """Weights that the model reads otherwise: tensors, flat indices and values."""
        number, flat = self.locate(address)
        values = self.values(address, codes)
        for i, mine in by_tensor(number):
            if self.held[i].reflected:
                yield self._rows(i, flat[mine], address[mine], codes[mine])
            else:
                yield self.tensors[i], flat[mine], values[mine]

    def _rows(
        self, i: int, flat: np.ndarray, address: np.ndarray, codes: np.ndarray
    ) -> tuple[WeightTensor, np.ndarray, np.ndarray]:
        """All weights of the reflected rows in which some are read otherwise."""
        held, stretch = self.held[i], self.held[i].stretch
        flat_LC = stretch.of_lines(np.unique(stretch.line(flat)))
        every = flat_LC.ravel()
        whole = stretch.start + stretch.place(every)
        found = self._with_edits(whole, patterns(held.at(every)))
        order = np.argsort(whole, kind="stable")
        found[order[np.searchsorted(whole, address, sorter=order)]] = codes
        scales = None if held.scales is None else held.scales_at(every)
        values_LC = read(held_as(found, self.dtype), scales).double().view(flat_LC.shape)
        return held.tensor, every, reflected(values_LC).flatten().numpy()

    def _scales_at(self, address: np.ndarray) -> Tensor | None:
        if self.dtype != "int8":
            return None
        number, flat = self.locate(address)
        found = torch.empty(len(number), dtype=torch.float32)
        for i, mine in by_tensor(number):
            found[torch.from_numpy(mine)] = self.held[i].scales_at(flat[mine])
        return found
