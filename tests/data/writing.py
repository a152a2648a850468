"""Files of rows as users' tools write them."""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

from esa_ray.data import read_documents
from esa_ray.spec import DataSpec

#: Documents in which everything stands that a format could trip over.
HARD = [
    "plain",
    "zweites ü, 漢字 🙂",
    "a\nb\r\nc\rd",
    'quotes " and "" and \' and \\ and \\"',
    "comma, semicolon; tab\t bar| end",
    "two\u2028lines\u2029and\x85more\x0bof\x0cthem",
    "\ufeff in the middle \ufeff",
    "[1, 2], {}",
    "  spaces around  ",
    "long " * 60_000,  # beyond the csv module's field limit, and many reads
    "last",
]


def json_lines(rows: list[str], end: str = "\n") -> str:
    """Every other row as pure ASCII."""
    return end.join(json.dumps({"id": i, "text": row}, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows))


def json_array(rows: list[str], indent: int | None = None) -> str:
    return json.dumps([{"text": row, "id": [i, {"text": "no"}]} for i, row in enumerate(rows)], indent=indent)


def json_objects(rows: list[str]) -> str:
    """Over lines and one after the other, as jq writes them."""
    return "\n".join(json.dumps({"text": row, "n": None}, indent=2) for row in rows)


def table(rows: list[str], delimiter: str = ",", end: str = "\r\n") -> str:
    stream = io.StringIO(newline="")
    # Where lines end otherwise the writer doesn't see that a line feed in a text needs quotes.
    quoting = csv.QUOTE_ALL if end == "\r" else csv.QUOTE_MINIMAL
    made = csv.writer(stream, delimiter=delimiter, lineterminator=end, quoting=quoting)
    made.writerows([("", "text"), *enumerate(rows)])
    return stream.getvalue()


def parquet(rows: list[str]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": range(len(rows)), "text": rows}), sink, row_group_size=3)
    return sink.getvalue().to_pybytes()


def feather(rows: list[str]) -> bytes:
    sink = pa.BufferOutputStream()
    pyarrow.feather.write_feather(pa.table({"id": range(len(rows)), "text": rows}), sink, chunksize=3)
    return sink.getvalue().to_pybytes()


def arrow_stream(rows: list[str]) -> bytes:
    found, sink = pa.table({"text": pa.array(rows).dictionary_encode()}), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, found.schema) as writer:
        writer.write_table(found, max_chunksize=4)
    return sink.getvalue().to_pybytes()


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": lambda raw: pa.compress(raw, codec="zstd", asbytes=True),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}

#: File name → its content, all of the same rows.
TEXTS: dict[str, Callable[[list[str]], str]] = {
    "a.jsonl": json_lines,
    "a.ndjson": lambda rows: json_lines(rows, "\n \n") + "\n\n",
    "a.json": json_lines,
    "array.json": json_array,
    "pretty.json": lambda rows: json_array(rows, indent=2) + "\n",
    "objects.json": json_objects,
    "a.csv": table,
    "semicolon.csv": lambda rows: table(rows, ";"),
    "said.csv": lambda rows: "sep=|\r\n" + table(rows, "|"),
    "a.tsv": lambda rows: table(rows, "\t", "\n"),
}
TABLES: dict[str, Callable[[list[str]], bytes]] = {
    "a.parquet": parquet,
    "a.PQ": parquet,
    "a.feather": feather,
    "a.arrow": arrow_stream,
}


def read(path: Path, **fields) -> list[str]:
    """The documents of a file."""
    return read_documents(DataSpec(source=str(path), **fields))
