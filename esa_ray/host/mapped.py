"""Memory-mapped tensors in unlinked temporary files: in the page cache, and gone after a crash."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def in_file(values: Tensor) -> Tensor:
    """A copy of a tensor in a file under ``$TMPDIR``, in its own dtype.

    Written past the mapping, and so it takes no memory of this process until it is read.

    >>> in_file(torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16)).tolist()
    [[1.0, 2.0]]
    """
    raw = values.detach().cpu().contiguous().view(torch.uint8).numpy()
    return _mapped(raw, values.shape, values.dtype, raw.nbytes)


def zeros_in_file(shape: Sequence[int]) -> Tensor:
    """Zeros in float32 in a file under ``$TMPDIR``."""
    return _mapped(None, shape, torch.float32, 4 * int(np.prod(shape)))


def _mapped(raw: np.ndarray | None, shape: Sequence[int], dtype: torch.dtype, size: int) -> Tensor:
    with tempfile.TemporaryFile(prefix="esa-scratch-") as file:
        if raw is None:
            file.truncate(size)
        else:
            raw.tofile(file)
            file.flush()
        return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=dtype).view(*shape)
