"""A corpus larger than memory → the windows of a study, the same as :mod:`esa_ray.data` makes of a small one.

Ray Data tokenises pieces of the files wherever there is a CPU; this process takes the documents in their order,
joins and cuts them and appends the windows to a file. So no more of the text is in memory than the pieces in
flight, and what comes out depends neither on the pieces nor on who read them. The file is kept for the next run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
from collections.abc import Generator, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from filelock import FileLock

from esa_ray.data import Windows, anchored, hub, opening, shown, split
from esa_ray.data.chat import renderer, template
from esa_ray.data.documents import Fingerprint, framed, no_text
from esa_ray.data.files import files
from esa_ray.data.packing import Packed, encoder, windows_of
from esa_ray.data.pieces import PIECE_BYTES, Piece, pieces
from esa_ray.data.reading import read_piece
from esa_ray.errors import EsaError
from esa_ray.host.machine import cache_dir
from esa_ray.models.sources import Source
from esa_ray.spec import DataSpec

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

#: To be raised whenever the same corpus would be packed otherwise than before.
VERSION = 3
#: Bytes of text that leave a tokenising process together.
BATCH_BYTES = 4 * 2**20
#: Pieces that a process has at a time: one in work and one waiting.
IN_FLIGHT = 2


def prepare(
    spec: DataSpec, source: Source, seeds: tuple[int, ...], *, piece_bytes: int = PIECE_BYTES
) -> tuple[Windows, str]:
    """The evaluation windows of a corpus, what ``seeds`` calibrate on, and the text's fingerprint.

    The same, bit for bit, as ``data.windows(spec, tokenizer, seeds).for_seeds(seeds)`` and
    ``data.text_fingerprint``. To be called where Ray is connected. The packed corpus stays in ``packed`` of
    :func:`esa_ray.host.machine.cache_dir`, where the next call on this machine finds it.

    Parameters
    ----------
    spec
        A file, directory or pattern that every node sees by the same path, or a hub data set.
    source
        The model whose tokenizer is used.
    piece_bytes
        How much a process reads at a time; the result doesn't depend on it.

    Raises
    ------
    EsaError
        For what :func:`esa_ray.data.windows` refuses too, a corpus that changes meanwhile, and a full disk.
    """
    spec = anchored(spec)
    packed, facts = _packed(spec, source, piece_bytes)
    return split(packed, spec, seeds, opening=tuple(facts["opening"])).for_seeds(seeds), facts["text"]


def _key(spec: DataSpec, source: Source) -> str:
    from esa_ray.models.load import load_tokenizer

    states = [(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files(spec)]
    question = {
        "version": VERSION,
        "files": states or hub.state(spec),
        "split": spec.split,
        "column": spec.text_column,
        "chat": template(load_tokenizer(source)) if spec.chat else None,
        "model": [source.kind, source.fingerprint],
        "tokenizers": importlib.metadata.version("tokenizers"),
        "window": spec.window,
        "bos": spec.bos,
    }
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:32]


def _packed(spec: DataSpec, source: Source, piece_bytes: int) -> tuple[Packed, dict[str, Any]]:
    """A corpus' windows, from the cache if they are there; with ``text`` (fingerprint), ``opening`` and ``windows``."""
    folder, key = cache_dir() / "packed", _key(spec, source)
    with _storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _sweep_up(folder)
        lock = FileLock(folder / f"{key}.lock").acquire()
    with lock:
        if (known := _known(folder, key, spec)) is None:
            _pack(folder, key, spec, source, piece_bytes)
            known = _known(folder, key, spec)
    assert known
    return known


@contextlib.contextmanager
def _storing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EsaError(f"{folder} can't be written ({error.strerror}); name another place with ESA_CACHE") from None


def _known(folder: Path, key: str, spec: DataSpec) -> tuple[Packed, dict[str, Any]] | None:
    """What the cache holds under a key, if that is whole."""
    path = folder / f"{key}.tokens"
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        facts = json.loads((folder / f"{key}.json").read_text())
        if path.stat().st_size == facts["windows"] * spec.window * 4:
            return Packed(path, (facts["windows"], spec.window)), facts
    return None


def _sweep_up(folder: Path) -> None:
    """Remove what killed processes began: a part whose lock is free (a timeout else) is nobody's."""
    for part in folder.glob("*.part"):
        with contextlib.suppress(OSError), FileLock(folder / f"{part.name.split('.')[0]}.lock", timeout=0):
            part.unlink(missing_ok=True)


def _pack(folder: Path, key: str, spec: DataSpec, source: Source, piece_bytes: int) -> None:
    """Write a corpus' windows, then what is known of them; each file whole or not at all."""
    from esa_ray.models.load import load_tokenizer

    tokenizer, parts = load_tokenizer(source), list(pieces(spec, piece_bytes))
    windows, facts = folder / f"{key}.tokens.part", folder / f"{key}.json.part"
    try:
        with contextlib.closing(_tokenised(parts, spec, source)) as tables:
            found = _write(tables, tokenizer, spec, windows)
        if _key(spec, source) != key:
            raise EsaError(f"--data {spec.source} changed while it was read; run this again once it stays as it is")
        with _storing(folder):
            facts.write_text(json.dumps(found))
            for part in (windows, facts):
                os.replace(part, part.with_suffix(""))
    finally:
        windows.unlink(missing_ok=True)
        facts.unlink(missing_ok=True)


def _write(
    tables: Iterable[pa.Table], tokenizer: PreTrainedTokenizerBase, spec: DataSpec, path: Path
) -> dict[str, Any]:
    """Write the windows of tokenised documents to a file as they come; returns what is known of the text."""
    text, documents, total = Fingerprint(), 0, 0

    def encoded() -> Iterator[np.ndarray]:
        nonlocal documents
        for table in tables:
            for error in table["error"].drop_null().to_pylist():
                raise EsaError(error)
            for chunk in table["text"].chunks:
                raw, ends = _bytes_of(chunk)
                text.add(raw[ends[0] : ends[-1]].data)
            for chunk in table["tokens"].chunks:
                raw, ends = _bytes_of(chunk)
                documents += len(chunk)
                yield from (raw[a:b].view(np.uint32) for a, b in itertools.pairwise(ends.tolist()))

    path.unlink(missing_ok=True)
    for windows in windows_of(encoded(), tokenizer, spec):
        with _storing(path.parent), path.open("ab") as file:
            windows.tofile(file)
        total += len(windows)
    if not documents:
        raise no_text(spec)
    first = shown(opening(spec, tokenizer), tokenizer)
    return {"data": spec.source, "text": str(text), "opening": first, "windows": total}


def _bytes_of(chunk: pa.LargeBinaryArray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes under a column, and where in them its values begin and the last one ends, without a copy."""
    if not len(chunk):  # without any buffers, perhaps
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    _, offsets, values = chunk.buffers()
    ends = np.frombuffer(offsets, np.int64, len(chunk) + 1, chunk.offset * 8)
    return np.frombuffer(values or b"", np.uint8), ends


def _table(texts: list[bytes], tokens: list[bytes], error: str | None = None) -> pa.Table:
    """A document a row: its framed text, and its tokens in uint32; or an error alone."""
    import pyarrow as pa

    columns = {
        "text": pa.array(texts, pa.large_binary()),
        "tokens": pa.array(tokens, pa.large_binary()),
        "error": pa.array([None] * len(texts), pa.string()),
    }
    if error is not None:
        columns = {name: pa.array([error if name == "error" else b""], c.type) for name, c in columns.items()}
    return pa.table(columns)


class _Tokeniser:
    """Reads pieces of a corpus and tokenises their documents; a process of the pool has one."""

    def __init__(self, spec: DataSpec, source: Source):
        self.spec, self.source = spec, source

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        from esa_ray.models.load import load_tokenizer

        return load_tokenizer(self.source)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Rows of :class:`Piece` → tables of documents; what the user can mend is a row too, in its place."""
        for row in batch.to_pylist():
            try:
                yield from self._tables(Piece(**row))
            except EsaError as error:
                yield _table([], [], str(error))

    def _tables(self, piece: Piece) -> Iterator[pa.Table]:
        texts: list[bytes] = []
        tokens: list[bytes] = []
        held, encode = 0, encoder(self._tokenizer)
        for document in read_piece(piece, self.spec, renderer(self._tokenizer) if self.spec.chat else None):
            texts.append(framed(document))
            tokens.append(encode(document).tobytes())
            held += len(texts[-1])
            if held >= BATCH_BYTES:
                yield _table(texts, tokens)
                texts, tokens, held = [], [], 0
        yield _table(texts, tokens)


def _tokenised(parts: list[Piece], spec: DataSpec, source: Source) -> Generator[pa.Table, None, None]:
    """Tables of a corpus' documents, in order, tokenised in as many processes as the cluster has CPUs."""
    if not parts:
        return
    import ray.data  # takes seconds

    processes = min(max(1, int(ray.cluster_resources().get("CPU", 1))), len(parts))
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=processes, max_tasks_in_flight_per_actor=IN_FLIGHT)
    with _context():
        rows = ray.data.from_items([dataclasses.asdict(part) for part in parts], override_num_blocks=len(parts))
        tables = rows.map_batches(
            _Tokeniser, fn_constructor_args=(spec, source), compute=pool, batch_size=1, batch_format="pyarrow"
        )
    yield from tables.iter_batches(batch_size=None, batch_format="pyarrow")


@contextlib.contextmanager
def _context() -> Iterator[None]:
    """Data sets that are made herein keep their order, hand over small blocks and say nothing."""
    context = ray.data.DataContext.get_current()
    wanted = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "target_max_block_size": 2 * BATCH_BYTES,
    }
    before = {name: getattr(context, name) for name in wanted if hasattr(context, name)}
    ordered = context.execution_options.preserve_order
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        for name in before:
            setattr(context, name, wanted[name])
        context.execution_options.preserve_order = True
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        context.execution_options.preserve_order = ordered
