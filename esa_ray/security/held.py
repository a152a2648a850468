"""One tensor's weights as they are stored, without a fault."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.errors import EsaError
from esa_ray.host.mapped import in_file
from esa_ray.security.numbers import TORCH, read, stored, with_parity
from esa_ray.security.rotation import reflected

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.applications.kept import Kept
    from esa_ray.models.addressing import WeightTensor
    from esa_ray.security.layout import Stretch


class Held:
    """The stored weights of a stretch.

    What a weight is stored as is told from the weight as it was before anything was written to the model; only of
    reflected rows the stored weights wait in a file.

    Parameters
    ----------
    kept
        Knows what the tensor held before.
    """

    def __init__(self, stretch: Stretch, dtype: str, protect: str, kept: Kept):
        self.stretch, self.dtype, self._kept = stretch, dtype, kept
        #: Whether its rows are stored reflected; a vector has none.
        self.reflected = protect == "rotation" and not stretch.vector
        self._parity = protect == "parity-zero"
        #: int8: scales of the rows, (E, R), on the host.
        self.scales = self._measured() if dtype == "int8" else None

    @property
    def tensor(self) -> WeightTensor:
        """The tensor."""
        return self.stretch.tensor

    @property
    def as_it_is(self) -> bool:
        """Whether the model holds just what is stored."""
        same = self.dtype == "fp32" or TORCH[self.dtype] == self.tensor.dtype
        return same and not self._parity and not self.reflected

    @cached_property
    def largest(self) -> float:
        """The largest |w| that it reads; of reflected rows before they are reflected back."""
        if self.reflected:
            held_ERC = self._stored_rows(self.stretch.matrix(self._mirrored))
        elif self._parity:
            held_ERC = self._stored(self.stretch.part(self._before))
        else:  # rounding keeps the order
            scales = self._of_rows(torch.device("cpu"))
            most = self.stretch.part(self._before).abs().max() if scales is None else 127 * scales.max()
            return float(most if scales is not None else most.to(TORCH[self.dtype]))
        return float(read(held_ERC, self._of_rows(held_ERC.device)).abs().max())

    def at(self, flat: np.ndarray) -> Tensor:
        """Stored weights at flat indices."""
        if self.reflected:
            return self._mirrored[torch.from_numpy(flat)]
        source = self._before
        found = source[torch.from_numpy(flat).to(source.device)].cpu()
        scales = None if self.scales is None else self.scales_at(flat)
        return self._with_parity(stored(found, self.dtype, scales))

    def scales_at(self, flat: np.ndarray) -> Tensor:
        """int8: the scales of the weights at flat indices."""
        assert self.scales is not None
        return self.scales.flatten()[torch.from_numpy(self.stretch.line(flat))]

    def as_read(self) -> Tensor:
        """All weights of the tensor, 1-D: those that aren't stored as they are, the others as they read.

        Raises
        ------
        EsaError
            If one is beyond what the dtype of storage, or the model's own, can hold.
        """
        new = self.tensor.flat_weights().clone()
        old_ERC = self.stretch.part(new)
        held_ERC = self._stored_rows(self.stretch.matrix(self._mirrored)) if self.reflected else self._stored(old_ERC)
        scales, wide = self._of_rows(new.device), None if self.reflected else new.dtype
        read_ERC = read(held_ERC.to(new.device), scales, wide)
        read_ERC = reflected(read_ERC).to(new.dtype) if self.reflected else read_ERC
        if bool((~read_ERC.isfinite() & old_ERC.isfinite()).any()):
            most = float(old_ERC[old_ERC.isfinite()].abs().max())
            raise EsaError(f"{self.tensor.name} holds {most:g}, which {self.dtype} can't; store it in another --dtype")
        self.stretch.put(new, read_ERC)
        return new

    @property
    def _before(self) -> Tensor:
        return self._kept.before(self.tensor)

    @cached_property
    def _mirrored(self) -> Tensor:
        """All rows reflected and as they are stored, in the order of the tensor's weights; in a file."""
        whole_ERC = reflected(self.stretch.matrix(self._before))
        held_ERC = stored(whole_ERC, self.dtype, self._of_all_rows(whole_ERC.device))
        found = torch.empty(self.tensor.size, dtype=held_ERC.dtype)
        self.stretch.matrix(found).copy_(held_ERC)
        return in_file(found)

    def _stored(self, values_ERC: Tensor) -> Tensor:
        return self._with_parity(stored(values_ERC, self.dtype, self._of_rows(values_ERC.device)))

    def _with_parity(self, held: Tensor) -> Tensor:
        return with_parity(held.contiguous()) if self._parity else held

    def _stored_rows(self, whole_ERC: Tensor) -> Tensor:
        return whole_ERC if self.stretch.rows is None else whole_ERC[:, torch.as_tensor(self.stretch.rows)]

    def _of_all_rows(self, device: torch.device) -> Tensor | None:
        return None if self.scales is None else self.scales.unsqueeze(-1).to(device)

    def _of_rows(self, device: torch.device) -> Tensor | None:
        """Scales of the stored rows as they broadcast to (E, R, C)."""
        scales, stretch = self._of_all_rows(device), self.stretch
        if scales is None or stretch.rows is None or stretch.vector:
            return scales
        return scales[:, torch.as_tensor(stretch.rows, device=device)]

    def _measured(self) -> Tensor:
        whole_ERC = self.stretch.matrix(self._before)
        largest = (reflected(whole_ERC) if self.reflected else whole_ERC).abs().amax(-1).float().cpu()
        if not bool(largest.isfinite().all()):
            raise EsaError(f"{self.tensor.name} holds infinite or NaN weights, which int8 can't; use another --dtype")
        return largest / 127
