"""Text → token windows, and which windows calibrate and which evaluate.

Packing: documents are tokenised one by one without special tokens, joined by the tokens of a blank
line, and the stream is cut into windows of T tokens (BOS included where it is used); a remainder
shorter than a window is dropped. Everything is plain and deterministic, and the draw of windows
depends on hashes alone, so no library's random generator can change it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from esa_ray.errors import EsaError, first_line
from esa_ray.spec import DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEPARATOR = "\n\n"


def read_documents(spec: DataSpec) -> list[str]:
    """The documents of a text source, empty ones left out.

    ``pydoc`` is Python's own documentation (``pydoc_data.topics`` of the standard library); a path is a
    text file (one document), a JSONL or a Parquet file (a document per row of ``text_column``); and
    ``hf:NAME`` or ``hf:NAME:CONFIG`` is a hub data set (needs the ``hub`` extra).

    Raises
    ------
    EsaError
        If the source can't be found or read, or holds no text.
    """
    documents = []
    for document in _read(spec):
        if document is not None and not isinstance(document, str):
            raise EsaError(f"--data {spec.source}: {spec.text_column!r} holds {document!r:.40}, which is no text")
        if document and document.strip():
            documents.append(document)
    if not documents:
        raise EsaError(f"--data {spec.source} holds no text; give a file with some")
    return documents


def _read(spec: DataSpec) -> Iterator[str]:
    if spec.source == "pydoc":
        from pydoc_data.topics import topics

        yield from _unquoted(topics[name] for name in sorted(topics))
    elif spec.source.startswith("hf:"):
        yield from _read_hub(spec)
    else:
        yield from _read_file(Path(spec.source).expanduser(), spec.text_column)


def _unquoted(documents: Iterable[str]) -> Iterator[str]:
    """Documents without the paragraphs that stood before, in the same document or an earlier one.

    Python's topics quote each other at length: as they stand, half of an evaluation window can be found in
    the calibration pool.
    """
    seen: set[str] = set()
    for document in documents:
        kept = []
        for paragraph in document.split(SEPARATOR):
            if (words := " ".join(paragraph.split())) not in seen:
                seen.add(words)
                kept.append(paragraph)
        yield SEPARATOR.join(kept)


def _read_file(path: Path, column: str) -> Iterator[str]:
    try:
        there = path.is_file()
    except OSError:  # a name too long to be a path
        there = False
    if not there:
        raise EsaError(f"--data {path} is no file; give a .txt, .md, .jsonl or .parquet file, pydoc, or hf:NAME")
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            yield from pq.read_table(path, columns=[column]).column(column).to_pylist()
        elif path.suffix in (".jsonl", ".ndjson"):
            with path.open(encoding="utf-8") as lines:
                yield from (_row(line)[column] for line in lines if line.strip())
        else:
            yield path.read_text(encoding="utf-8")
    except KeyError as error:
        raise EsaError(f"--data {path} has no column {error}; name one with --text-column") from None
    except (ValueError, OSError) as error:
        raise EsaError(f"--data {path} can't be read: {error}") from None


def _row(line: str) -> dict:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"a line holds {line[:40]!r}, which is no JSON object")
    return row


def _read_hub(spec: DataSpec) -> Iterator[str]:
    try:
        import datasets
    except ImportError:
        raise EsaError("a hub data set needs the datasets library: pip install 'esa-ray[hub]'") from None
    name, _, config = spec.source.removeprefix("hf:").partition(":")
    try:
        rows = datasets.load_dataset(name, config or None, split=spec.split)
    except Exception as error:  # the library raises a dozen kinds for "not found" and "not reachable"
        raise EsaError(f"the data set {name!r} can't be loaded: {first_line(error)}") from None
    if spec.text_column not in rows.column_names:
        raise EsaError(
            f"the data set {name!r} has the columns {', '.join(rows.column_names)}; name one with --text-column"
        )
    yield from rows[spec.text_column]


def anchored(spec: DataSpec) -> DataSpec:
    """The same data with a file's absolute path, for processes that run in another directory."""
    if spec.source == "pydoc" or spec.source.startswith("hf:"):
        return spec
    return spec.model_copy(update={"source": str(Path(spec.source).expanduser().resolve())})


def text_fingerprint(documents: list[str]) -> str:
    """SHA-256 over the documents and their borders, as 16 hex digits."""
    digest = hashlib.sha256()
    for document in documents:
        raw = document.encode(errors="surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()[:16]


def uses_bos(spec: DataSpec, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether windows begin with BOS: as asked, or as the tokenizer does by default."""
    bos = tokenizer.bos_token_id
    if spec.bos == "auto":
        return bos is not None and tokenizer("a").input_ids[:1] == [bos]
    if spec.bos == "always" and bos is None:
        raise EsaError("bos=always, but this tokenizer has no BOS token; use --bos never")
    return spec.bos == "always"


def pack(documents: list[str], tokenizer: PreTrainedTokenizerBase, spec: DataSpec) -> np.ndarray:
    """Token windows of a text, int64 of shape (windows, T), as the module describes."""

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    separator = encode(SEPARATOR)
    stream: list[int] = []
    for document in documents:
        if stream:
            stream += separator
        stream += encode(document)
    prefix = [tokenizer.bos_token_id] if uses_bos(spec, tokenizer) else []
    width = spec.window - len(prefix)
    n = len(stream) // width
    body = np.asarray(stream[: n * width], dtype=np.int64).reshape(n, width)
    return np.concatenate([np.tile(np.asarray(prefix, np.int64), (n, 1)), body], axis=1)


def _shuffled(indices: np.ndarray, salt: str) -> np.ndarray:
    # Ordering by a hash is a permutation that no library version can change.
    keys = [hashlib.sha256(f"{salt}:{i}".encode()).digest() for i in indices]
    return indices[np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)]


def _repeats(tokens: np.ndarray, pool: np.ndarray, evaluation: np.ndarray) -> np.ndarray:
    """Which pool windows share half of their 16-token runs or more with evaluation windows, at any offset."""
    n = min(16, tokens.shape[1] - 1)
    odd = np.array([int.from_bytes(hashlib.sha256(bytes([i])).digest()[:8], "little") | 1 for i in range(n)], np.uint64)

    def runs(index: np.ndarray) -> np.ndarray:
        # BOS stands in every window and says nothing; a run is told by a 64-bit hash of its tokens.
        body = np.lib.stride_tricks.sliding_window_view(tokens[index, 1:].astype(np.uint64), n, axis=1)
        return (body * odd).sum(axis=2, dtype=np.uint64)

    known, found = np.unique(runs(evaluation)), np.zeros(len(pool), dtype=bool)
    for start in range(0, len(pool), 4096):  # a corpus of a million windows passes in pieces
        found[start : start + 4096] = np.isin(runs(pool[start : start + 4096]), known).mean(axis=1) >= 0.5
    return found


@dataclass(frozen=True)
class Windows:
    """All windows of a text, split once into evaluation windows and a pool to calibrate from."""

    tokens: np.ndarray
    evaluation_index: np.ndarray
    pool_index: np.ndarray
    calibration_windows: int
    bos: bool

    @property
    def evaluation(self) -> np.ndarray:
        """The evaluation windows, (N, T), in the order of their draw."""
        return self.tokens[self.evaluation_index]

    def calibration_index(self, seed: int) -> np.ndarray:
        """Which windows a seed calibrates on: drawn from the pool without replacement.

        In the order of the draw, so that the first n of them are a draw of n.
        """
        return _shuffled(self.pool_index, f"seed {seed}")[: self.calibration_windows]

    def calibration(self, seed: int) -> np.ndarray:
        """A seed's calibration windows, (N, T)."""
        return self.tokens[self.calibration_index(seed)]


def split(tokens: np.ndarray, spec: DataSpec, seeds: tuple[int, ...], *, bos: bool) -> Windows:
    """Set evaluation windows apart from the pool that calibration windows are drawn from.

    Raises
    ------
    EsaError
        If the text is too short for both, or so short that every seed would draw the same windows.
    """
    # A text that repeats itself would put the same window on both sides of the split.
    distinct = np.sort(np.unique(tokens, axis=0, return_index=True)[1]) if len(tokens) else np.arange(0)
    n, need = len(distinct), spec.evaluation_windows + spec.calibration_windows
    have = f"the text holds {n} different windows of {spec.window} tokens"
    if n < need:
        raise EsaError(
            f"{have}, and {spec.evaluation_windows} to evaluate plus {spec.calibration_windows} to calibrate "
            "are asked for; give a longer text, or lower --max-samples, --eval-windows or --window"
        )
    order = _shuffled(distinct, "split")
    # Evaluation windows stay in the order of the draw: a cell that stops early has then seen a draw, not a chapter.
    evaluation, pool = order[: spec.evaluation_windows], np.sort(order[spec.evaluation_windows :])
    pool = pool[~_repeats(tokens, pool, evaluation)]
    if len(pool) < spec.calibration_windows:
        raise EsaError(
            f"the text repeats itself: only {len(pool)} windows share little with the evaluation windows, and "
            f"{spec.calibration_windows} are asked for; give a text with less repetition"
        )
    found = Windows(
        tokens=tokens,
        evaluation_index=evaluation,
        pool_index=pool,
        calibration_windows=spec.calibration_windows,
        bos=bos,
    )
    if len({tuple(np.sort(found.calibration_index(seed))) for seed in seeds}) < len(set(seeds)):
        raise EsaError(
            f"{have}, so few that seeds calibrate on the same {spec.calibration_windows}; "
            "give a longer text or lower --max-samples"
        )
    return found


def windows(
    spec: DataSpec,
    tokenizer: PreTrainedTokenizerBase,
    seeds: tuple[int, ...] = (0,),
    documents: list[str] | None = None,
) -> Windows:
    """Read (unless ``documents`` are given), pack and split a text in one step."""
    tokens = pack(documents if documents is not None else read_documents(spec), tokenizer, spec)
    return split(tokens, spec, seeds, bos=uses_bos(spec, tokenizer))
