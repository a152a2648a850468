"""Documents → windows of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from esa_ray.data.documents import SEPARATOR
from esa_ray.data.first_tokens import opening
from esa_ray.errors import EsaError
from esa_ray.spec import DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Tokens that are gathered before they are cut.
GATHERED = 2**20
#: Windows of a file that are read for one that is asked for, rather than to read each by itself.
NEAR = 32


def encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], np.ndarray]:
    """Text → its tokens without special ones, uint32."""

    def encode(text: str) -> np.ndarray:
        return np.asarray(tokenizer(text, add_special_tokens=False, verbose=False).input_ids, dtype=np.uint32)

    return encode


def windows_of(
    encoded: Iterable[np.ndarray], tokenizer: PreTrainedTokenizerBase, spec: DataSpec
) -> Iterator[np.ndarray]:
    """Encoded documents → windows of them all, as they come: arrays of shape (some, T), uint32."""
    first = opening(spec, tokenizer)
    if len(first) >= spec.window:
        raise EsaError(f"--window {spec.window} has no room for text behind the {len(first)} tokens that begin each")
    return _cut(_joined(encoded, encoder(tokenizer)(SEPARATOR)), np.asarray(first, np.uint32), spec.window)


def _joined(encoded: Iterable[np.ndarray], separator: np.ndarray) -> Iterator[np.ndarray]:
    begun = False
    for tokens in encoded:
        if begun:
            yield separator
        begun = begun or len(tokens) > 0
        yield tokens


def _cut(stream: Iterable[np.ndarray], prefix: np.ndarray, window: int) -> Iterator[np.ndarray]:
    """Windows of a stream that comes in parts of any length; what is left over at its end is dropped."""
    width, parts, held = window - len(prefix), [np.empty(0, np.uint32)], 0

    def cut() -> tuple[np.ndarray, np.ndarray]:
        flat, n = np.concatenate(parts), held // width
        body = flat[: n * width].reshape(n, width)
        return np.concatenate([np.tile(prefix, (n, 1)), body], axis=1), flat[n * width :]

    for part in stream:
        parts.append(part)
        held += len(part)
        if held >= max(GATHERED, width):
            found, rest = cut()
            parts, held = [rest], len(rest)
            yield found
    yield cut()[0]


def pack(documents: list[str], tokenizer: PreTrainedTokenizerBase, spec: DataSpec) -> np.ndarray:
    """Token windows of a text, int64 of shape (windows, T), as :mod:`esa_ray.data` describes."""
    found = windows_of(map(encoder(tokenizer), documents), tokenizer, spec)
    return np.concatenate([*found], dtype=np.int64)


@dataclass(frozen=True)
class Packed:
    """Windows in a file, (N, T) in uint32, of which only what is asked for comes into memory."""

    path: Path
    shape: tuple[int, int]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        # Read, not mapped: a map of a file counts as this process' memory, and touching a row may map megabytes.
        if isinstance(index, slice):
            start, stop, _ = index.indices(len(self))
            return self._rows(start, stop)
        first, last = int(index.min()), int(index.max()) + 1
        if last - first <= NEAR * len(index):
            return self._rows(first, last)[index - first]
        return np.concatenate([self._rows(i, i + 1) for i in index.tolist()])

    def _rows(self, start: int, stop: int) -> np.ndarray:
        width = self.shape[1]
        return np.fromfile(self.path, np.uint32, (stop - start) * width, offset=start * width * 4).reshape(-1, width)
