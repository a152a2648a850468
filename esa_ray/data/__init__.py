"""Text → token windows, and which windows calibrate and which evaluate.

Packing: documents are tokenised one by one without special tokens, joined by the tokens of a blank
line, and the stream is cut into windows of T tokens (those included that each begins with); a remainder
shorter than a window is dropped. Everything is plain and deterministic, and the draw of windows
depends on hashes alone, so no library's random generator can change it.

``documents`` reads sources: ``files`` finds them, ``formats`` tells what they are, ``pieces`` cuts them and ``reading``
reads these, with a module for each kind of rows. ``packing`` makes windows of documents and ``splitting`` divides
these. All of it works in parts, so that :mod:`esa_ray.engine.corpus` can do the same with a corpus larger than memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from esa_ray.data.documents import read_documents, text_fingerprint
from esa_ray.data.files import anchored, is_large
from esa_ray.data.first_tokens import opening, shown
from esa_ray.data.packing import pack
from esa_ray.data.splitting import Windows, split
from esa_ray.spec import DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Windows",
    "anchored",
    "is_large",
    "opening",
    "pack",
    "read_documents",
    "shown",
    "split",
    "text_fingerprint",
    "windows",
]


def windows(
    spec: DataSpec,
    tokenizer: PreTrainedTokenizerBase,
    seeds: tuple[int, ...] = (0,),
    documents: list[str] | None = None,
) -> Windows:
    """Read (unless ``documents`` are given), pack and split a text in one step."""
    tokens = pack(documents if documents is not None else read_documents(spec, tokenizer), tokenizer, spec)
    return split(tokens, spec, seeds, opening=shown(opening(spec, tokenizer), tokenizer))
