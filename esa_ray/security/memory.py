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
from esa_ray.errors import EsaError
from esa_ray.perturb.edit import Applied, Edit
from esa_ray.security.critical import critical
from esa_ray.security.layout import Layout, Stretch, by_tensor
from esa_ray.security.numbers import TORCH, held_as, patterns, read, stored, with_parity
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
        Says dtype, components and protection. "parity-zero" puts parity in the last bit.
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
        self._scales = [_scales(stretch) if self.dtype == "int8" else None for stretch in self.layout.stretches]
        #: What was made once of the intact model, by what it is.
        self.remembered: dict[Hashable, Any] = {}
        self._kept = Kept()
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
        return np.array([self._largest_of(i) for i in range(len(self.layout.stretches))])

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
            found[mine] = patterns(self._held(i, flat[mine]))
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
        self._standing.append((address, codes))
        try:
            yield
        finally:
            self._standing.pop()

    def __enter__(self) -> Self:
        try:
            assert len(self.largest) == len(self.tensors)  # known before anything is written
            for i, stretch in enumerate(self.layout.stretches):
                if not self._as_held(stretch.tensor):
                    self._kept.write(stretch.tensor, self._as_read(i))
        except BaseException:
            self._kept.take_back()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._kept.take_back()

    def _as_held(self, tensor: WeightTensor) -> bool:
        """Whether the model holds just what is stored."""
        return self.spec.protect != "parity-zero" and (self.dtype == "fp32" or TORCH[self.dtype] == tensor.dtype)

    def _changes(self, address: np.ndarray, codes: np.ndarray) -> Iterator[tuple[WeightTensor, np.ndarray, np.ndarray]]:
        number, flat = self.locate(address)
        values = self.values(address, codes)
        for i, mine in by_tensor(number):
            yield self.tensors[i], flat[mine], values[mine]

    def _held(self, i: int, flat: np.ndarray) -> Tensor:
        """Stored weights of a tensor without what stands of edits."""
        source = self._kept.before(self.tensors[i])
        found = source[torch.from_numpy(flat).to(source.device)].cpu()
        return self._parity(stored(found, self.dtype, self._scales_of(i, flat)))

    def _scales_of(self, i: int, flat: np.ndarray) -> Tensor | None:
        scales = self._scales[i]
        return None if scales is None else scales.flatten()[torch.from_numpy(self.layout.stretches[i].line(flat))]

    def _scales_at(self, address: np.ndarray) -> Tensor | None:
        if self.dtype != "int8":
            return None
        number, flat = self.locate(address)
        found = torch.empty(len(number), dtype=torch.float32)
        for i, mine in by_tensor(number):
            scales = self._scales_of(i, flat[mine])
            assert scales is not None
            found[torch.from_numpy(mine)] = scales
        return found

    def _parity(self, held: Tensor) -> Tensor:
        return with_parity(held) if self.spec.protect == "parity-zero" else held

    def _as_read(self, i: int) -> Tensor:
        """All weights of a tensor, those that aren't stored as they are, the others as they read."""
        stretch, tensor = self.layout.stretches[i], self.tensors[i]
        new = tensor.flat_weights().clone()
        old_ERC = stretch.part(new).clone()
        scales_ER1 = self._spread(i, new.device)
        read_ERC = read(self._parity(stored(old_ERC, self.dtype, scales_ER1)), scales_ER1).to(new.dtype)
        if bool((read_ERC.isinf() & old_ERC.isfinite()).any()):
            most = float(old_ERC[old_ERC.isfinite()].abs().max())
            raise EsaError(f"{tensor.name} holds {most:g}, which {self.dtype} can't; store it in another --dtype")
        stretch.put(new, read_ERC)
        return new

    def _spread(self, i: int, device: torch.device) -> Tensor | None:
        """Scales of a tensor's stored rows as they broadcast to (E, R, C)."""
        scales, stretch = self._scales[i], self.layout.stretches[i]
        if scales is None:
            return None
        mine = scales if stretch.rows is None or stretch.vector else scales[:, torch.as_tensor(stretch.rows)]
        return mine.unsqueeze(-1).to(device)

    def _largest_of(self, i: int) -> float:
        whole_ERC = self.layout.stretches[i].part(self._kept.before(self.tensors[i]))
        if self.spec.protect == "parity-zero":
            scales_ER1 = self._spread(i, whole_ERC.device)
            return float(read(self._parity(stored(whole_ERC, self.dtype, scales_ER1)), scales_ER1).abs().max())
        if (scales_ER1 := self._spread(i, torch.device("cpu"))) is not None:
            return float((127 * scales_ER1).max())
        return float(whole_ERC.abs().max().to(TORCH[self.dtype]))  # rounding keeps the order


def _scales(stretch: Stretch) -> Tensor:
    """Scales of a tensor's rows, (E, R), on the host."""
    whole = stretch.matrix(stretch.tensor.flat_weights())
    largest = whole.abs().amax(-1).float().cpu()
    if not bool(largest.isfinite().all()):
        raise EsaError(f"{stretch.tensor.name} holds numbers that aren't finite, which int8 can't; use another --dtype")
    return largest / 127
