"""Data sets of the hub: small ones through the library's own cache, large ones in a stream, none in memory at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from esa_ray.data.faults import no_column
from esa_ray.errors import EsaError
from esa_ray.spec import DataSpec

#: Rows that are in memory at a time.
ROWS = 1000
#: Bytes of a Parquet column that are fetched at a time.
BUFFER = 8 * 2**20
#: Rows of a piece of a data set that lies on disk.
PIECE_ROWS = 2**16


def is_hub(spec: DataSpec) -> bool:
    """Whether a source is a data set of the hub."""
    return spec.source.startswith("hf:")


def rows(spec: DataSpec) -> Iterator[tuple[int, object]]:
    """All rows of a data set: (row, value of the text column). It is downloaded once a machine.

    Raises
    ------
    EsaError
        If it can't be loaded, or has no such column.
    """
    yield from _values(_loaded(*_question(spec), streaming=False), spec)


def read(spec: DataSpec, shard: int, shards: int) -> Iterator[tuple[int, object]]:
    """The rows of one of the shards that :func:`shards` counts, as :func:`rows`."""
    found = _streamed(spec)
    if shards > 1:
        # Contiguous, so that all shards in their order are the data set in its order.
        found = found.shard(num_shards=shards, index=shard, contiguous=True)
    yield from _values(found, spec)


def shards(spec: DataSpec) -> int:
    """Into how many parts a data set can be taken apart."""
    found = _streamed(spec)
    return int(found.num_shards) if _streams(spec) else len(found) // PIECE_ROWS + 1


def size(spec: DataSpec, limit: int) -> int:
    """Bytes of a data set, as it says itself, or else counted in a stream; of a large one more than ``limit``."""
    return _size(*_question(spec), spec.text_column, limit)


def state(spec: DataSpec) -> str:
    """What changes whenever the data set does: its commit, or the states of its files."""
    name, config, _ = _question(spec)
    return str(_builder(name, config).cache_dir)


def revision(spec: DataSpec) -> str | None:
    """The commit of a data set, or a hash of its files' states; None for another source, or if it can't be had now."""
    with contextlib.suppress(EsaError):
        return str(_builder(*_question(spec)[:2]).hash) if is_hub(spec) else None
    return None


def _question(spec: DataSpec) -> tuple[str, str, str]:
    name, _, config = spec.source.removeprefix("hf:").partition(":")
    return name, config, spec.split


def _streams(spec: DataSpec) -> bool:
    """Whether rows are read as they come: not without a network, nor of a slice such as train[:1%]."""
    return spec.split.isidentifier() and not _datasets().config.HF_HUB_OFFLINE


def _streamed(spec: DataSpec) -> Any:
    return _loaded(*_question(spec), streaming=_streams(spec))


@lru_cache(maxsize=2)
def _loaded(name: str, config: str, split: str, streaming: bool) -> Any:
    if not streaming:
        with _loading(name):
            return _datasets().load_dataset(name, config or None, split=split)
    builder = _builder(name, config)
    if hasattr(builder.config, "fragment_scan_options"):  # Parquet, which Arrow otherwise holds whole files of
        from pyarrow.dataset import ParquetFragmentScanOptions

        builder.config.fragment_scan_options = ParquetFragmentScanOptions(
            pre_buffer=False, use_buffered_stream=True, buffer_size=BUFFER
        )
    with _loading(name):
        return builder.as_streaming_dataset(split=split)


def _builder(name: str, config: str) -> Any:
    with _loading(name):
        return _datasets().load_dataset_builder(name, config or None)


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise EsaError("a hub data set needs the datasets library: pip install 'esa-ray[hub]'") from None
    return datasets


@contextlib.contextmanager
def _loading(name: str) -> Iterator[None]:
    """What goes wrong while a data set is looked for, as a sentence."""
    try:
        yield
    except EsaError:
        raise
    except Exception as error:  # the library raises a dozen kinds for "not found" and "not reachable"
        # Which splits or configurations there are stands in later lines.
        what = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        mend = ""
        if any(word in what for word in ("gated", "authenticat", "private", "401")):
            mend = "; ask for access on its page, then say hf auth login"
        elif "onfig" in what and "vailable" in what:
            mend = f"; name one: hf:{name}:CONFIG"
        raise EsaError(f"the data set {name!r} can't be loaded: {what}{mend}") from None


@lru_cache(maxsize=16)
def _size(name: str, config: str, split: str, column: str, limit: int) -> int:
    splits = _builder(name, config).info.splits or {}
    if split in splits and splits[split].num_bytes:
        return int(splits[split].num_bytes)
    spec, found = DataSpec(source=f"hf:{name}:{config}", split=split, text_column=column), 0
    for _, value in _values(_streamed(spec), spec):
        found += len(value.encode(errors="replace")) if isinstance(value, str) else len(str(value))
        if found > limit:
            break
    return found


def _values(found: Any, spec: DataSpec) -> Iterator[tuple[int, object]]:
    name, column, number = _question(spec)[0], spec.text_column, 0
    if found.column_names is not None:
        _check(column, found.column_names, name)
        found = found.select_columns([column])
    batches = iter(found.iter(batch_size=ROWS))
    while True:
        with _loading(name):
            batch = next(batches, None)
        if batch is None:
            return
        _check(column, batch, name)
        yield from enumerate(batch[column], number + 1)
        number += len(batch[column])


def _check(column: str, names: Any, name: str) -> None:
    if column not in names:
        raise EsaError(f"the data set {name!r} {no_column(column, names)}")
