"""A file that can't be read right is refused in a sentence that names the file and its line or row."""

import contextlib
import io
import os
import re
import tempfile
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from esa_ray.data import csv_rows, json_rows, lines, read_documents
from esa_ray.data import pieces as pieces_module
from esa_ray.data.faults import Fault
from esa_ray.data.pieces import pieces
from esa_ray.data.reading import read_piece
from esa_ray.errors import EsaError
from esa_ray.spec import DataSpec
from tests.data.writing import COMPRESSIONS, json_array, json_lines, read

GOOD = json_lines([f"row {i}" for i in range(200)]) + "\n"


def refusal(path, **fields) -> str:
    """The sentence that follows the file's name."""
    with pytest.raises(EsaError) as caught:
        read(path, **fields)
    sentence = str(caught.value)
    assert sentence.startswith(f"--data {path}")
    assert "\n" not in sentence
    return sentence.removeprefix(f"--data {path}").removeprefix(", ")


LINES = [
    ('{"text": "abc', "line 201 isn't JSON: Unterminated string at character 10"),
    ('{"text": "abc"', "line 201 isn't JSON"),
    ('{"text": 5}\n', "line 201 has 5 in 'text', which is no text"),
    ('\n\n{"text": 5}\n', "line 203 has 5 in 'text', which is no text"),
    ('{"text": true}', "line 201 has True in 'text'"),
    ('{"text": NaN}', "line 201 has nan in 'text'"),
    ('{"text": ["a", "b"]}', "line 201 has ['a', 'b'] in 'text', which is no text"),
    ('{"text": {"a": 1}}', "line 201 has {'a': 1} in 'text', which is no text"),
    ('{"body": "x", "Text": "y"}', "line 201 has no column 'text' but body, Text; name one with --text-column"),
    ('{"a\\nb": "x"}', r"line 201 has no column 'text' but 'a\nb'; name"),
    ("{}", "line 201 has no column 'text' but none at all"),
    ('"a string"', "line 201 holds 'a string', which is no JSON object"),
    ("[1, 2]", "line 201 holds [1, 2], which is no JSON object; if this is JSON over several lines, or in one array"),
    ('[\n{"text": "x"}\n]', "line 201 holds no more than [; if this is JSON over several lines, or in one array, name"),
    ('{\n"text": "x"\n}', "line 201 holds no more than {; if this is JSON over several lines"),
    ("null", "line 201 holds None, which is no JSON object"),
    ('{"text": "a", "n": 1, "text": "b"}', "line 201 isn't JSON: 'text' stands twice in an object"),
    ('{"text": "a",}', "line 201 isn't JSON"),
    ('{"text": "a"},', "line 201 isn't JSON: Extra data at character 14"),
    ("{'text': 'a'}", "line 201 isn't JSON: Expecting property name"),
    ('{"text": "a\tb"}', "line 201 isn't JSON: Invalid control character"),
    ('{"text": "x", "n": ' + "9" * 5000 + "}", "line 201 isn't JSON: Exceeds the limit"),
    ('{"text": ' + "[" * 100_000, "line 201 isn't JSON: nested too deeply"),
    ("<html>", "line 201 isn't JSON: Expecting value"),
    ('{"messages": [{"role": "user", "content": "x"}]}', "line 201 has no column 'text' but messages; chat rows are"),
    ('{"text": [{"from": "human", "value": "x"}]}', "line 201 has chat messages in 'text'; add --chat"),
    ('{"version": "2", "data": [{"text": "x"}]}', r"or make the rows in 'data' lines: jq -c '.[\"data\"][]'"),
]


@pytest.mark.parametrize(("bad", "sentence"), LINES)
def test_json_lines_name_the_line(tmp_path, bad, sentence):
    (tmp_path / "a.jsonl").write_text(GOOD + bad)
    assert sentence in refusal(tmp_path / "a.jsonl").replace('"data"', '\\"data\\"')


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [(bad, words) for bad, words in LINES if bad[0] == "{" and "Extra" not in words and "no more" not in words],
)
def test_json_lines_under_the_name_of_json_name_the_line(tmp_path, bad, sentence):
    (tmp_path / "a.json").write_text(GOOD + bad)
    assert sentence in refusal(tmp_path / "a.json").replace('"data"', '\\"data\\"')


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("piece_bytes", [1, 50, 10**6])
def test_a_line_has_its_number_in_the_file_and_not_in_the_piece(tmp_path, suffix, piece_bytes):
    for i, end in enumerate(["\n", "\r\n"]):
        path = tmp_path / f"{i}.jsonl{suffix}"
        path.write_bytes(COMPRESSIONS[suffix]((GOOD.replace("\n", end) + '{"text": 5}' + end).encode()))
        spec = DataSpec(source=str(path))
        parts = pieces(spec, piece_bytes)
        with pytest.raises(EsaError, match=rf"--data {path}, line 201 has 5 in 'text'"):
            list(chain.from_iterable(read_piece(part, spec) for part in parts))


def test_lines_are_counted_where_a_carriage_return_ends_what_is_read_at_once(tmp_path):
    line = b'{"text": "' + b"x" * (2**20 - 13) + b'"}'
    assert len(line) == 2**20 - 1  # so that the first block ends between \r and \n
    (tmp_path / "a.jsonl").write_bytes(line + b"\r\n" + b'{"text": "y"}\r\n' + b'{"text": 5}\r\n')
    spec = DataSpec(source=str(tmp_path / "a.jsonl"))
    *_, last = pieces(spec, 1)
    with pytest.raises(EsaError, match="line 3 has 5"):
        list(read_piece(last, spec))


ROWS = [f"row {i}" for i in range(3)]
ARRAY = json_array(ROWS, indent=1)  # {, "text", "id" over five lines, }: 11 lines a row


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (ARRAY.replace('"row 2"', "5"), f"line {ARRAY[: ARRAY.index('row 2')].count(chr(10))} has 5 in 'text'"),
        (ARRAY.replace('"row 2"', '"row 2'), f"line {ARRAY[: ARRAY.index('row 2')].count(chr(10)) + 1} isn't JSON"),
        (ARRAY[:-3], "isn't JSON: Expecting ',' delimiter"),
        (ARRAY[:-1], f"line {ARRAY.count(chr(10)) + 1} isn't JSON: no comma, nor the array's end, behind a value"),
        (ARRAY[:-1] + ",\n]", "isn't JSON: a comma without a value behind it"),
        (ARRAY[:-1] + ",", "isn't JSON: the array has no end"),
        ("[", "line 1 isn't JSON: the array has no end"),
        (ARRAY + "\n{}", f"line {ARRAY.count(chr(10)) + 2} isn't JSON: something behind the array's end"),
        (ARRAY.replace("},\n", "}\n", 1), "isn't JSON: no comma"),
        ("[,]", "line 1 isn't JSON: Expecting value at character 2"),
        ('\n\n["one",\n"two"]', "line 3 holds 'one', which is no JSON object"),
        ("12", "line 1 holds 12, which is no JSON object"),
        (
            '{"text": {"0": "a", "1": "b"}}',
            "line 1 has {'0': 'a', '1': 'b'} in 'text': columns, where rows belong; write",
        ),
        ('\n{"id": [1, 2], "text": ["a", null]}', "line 2 has ['a', None] in 'text': columns, where rows belong"),
        ('{"text": {"0": 1}}', "line 1 has {'0': 1} in 'text', which is no text"),
        ('{\n"data": [\n{"text": "x"}]}', "line 1 has no column 'text' but data; name one with --text-column, or make"),
        ('{"text": "a"}\n{"text": "b"},\n{"text": "c"}', "line 2 isn't JSON: Expecting value"),
        ('[{"text": tru}]', "line 1 isn't JSON: Expecting value at character 11"),
        (
            '[{"text": "' + "x" * 400_000 + '"}, {"text": tru}]',
            "line 1 isn't JSON: Expecting value at character 400025",
        ),
    ],
)
def test_json_over_lines_names_the_line(tmp_path, text, sentence):
    (tmp_path / "a.json").write_text(text)
    assert sentence in refusal(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("id,text\n1,a\n2,b,c\n", "line 3 has 3 fields and the header 2; write texts in quotes"),
        ('id,text\n1,"a\nb\nc"\n\n2\n', "line 6 has 1 fields and the header 2"),
        ('id,text\n1,"a\n2,b\n', "line 2 isn't CSV: unexpected end of data"),
        ('id,text\n1,a\n2,"b" c\n', "line 3 isn't CSV: ',' expected after '\"'"),
        ("id,body\n1,a\n", "line 1 has no column 'text' but id, body; name one with --text-column"),
        ("sep=;\nid;body\n1;a\n", "line 2 has no column 'text' but id, body"),
        ("\n\nid;body;url\n1;a;b\n", "line 3 has no column 'text' but id, body, url"),
        (",body\n0,a\n", "line 1 has no column 'text' but (no name), body"),
        ("text,n,text\na,1,b\n", "line 1 has the column 'text' twice"),
        ("messages\nx\n", "line 1 has no column 'text' but messages; chat rows are read by --chat"),
    ],
)
def test_csv_names_the_line(tmp_path, text, sentence):
    (tmp_path / "a.csv").write_text(text)
    assert sentence in refusal(tmp_path / "a.csv")


def test_columnar_files_name_the_row(tmp_path):
    values = pa.array([None, "a"] * 50 + [None, "b"])
    bad = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.array([0, 1, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"a\xffc")]
    )
    table = pa.table({"text": pa.chunked_array([values, bad]), "n": [[1]] * 105})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    pa.feather.write_feather(table, tmp_path / "a.feather", compression="uncompressed", chunksize=10)
    for name in ("a.parquet", "a.feather"):
        assert "row 104 holds text that is no UTF-8" in refusal(tmp_path / name)
        assert "row 1 has [1] in 'n', which is no text" in refusal(tmp_path / name, text_column="n")
        assert refusal(tmp_path / name, text_column="body").strip().startswith("has no column 'body' but text, n")
        assert "has no column 'n.a' but text, n" in refusal(tmp_path / name, text_column="n.a")


def test_pieces_of_parquet_name_the_row_of_the_file(tmp_path):
    kinds = pa.array([b"x"] * 30, pa.binary())
    pq.write_table(pa.table({"text": kinds}), tmp_path / "a.parquet", row_group_size=10)
    spec = DataSpec(source=str(tmp_path / "a.parquet"))
    parts = list(pieces(spec, 1))
    assert [(part.start, part.stop) for part in parts] == [(0, 1), (1, 2), (2, 3)]
    with pytest.raises(EsaError, match="row 21 has b'x' in 'text'"):
        list(read_piece(parts[2], spec))


LATIN = "Fünf".encode("latin-1")


@pytest.mark.parametrize(
    ("name", "raw", "sentence"),
    [
        ("a.txt", b"one\ntwo\n" + LATIN, "line 3 holds 0xFC as byte 2, which is no UTF-8; convert the file, from"),
        ("a.txt", b"one\n" + "zwölf ".encode() + LATIN, "line 2 holds 0xFC as byte 9"),
        ("a.txt", b"one\r\ntwo\r\n" + LATIN, "line 3 holds 0xFC as byte 2"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "' + LATIN + b'"}\n', "line 2 holds 0xFC as byte 12, which is no UTF-8"),
        ("a.json", b'[{"text": "x"},\n\n{"text": "' + LATIN + b'"}]', "line 3 holds 0xFC as byte 12"),
        ("a.csv", b'text\n"a\nb"\n' + LATIN, "line 4 holds 0xFC as byte 2"),
        ("a.txt", b"one\ntwo\0", "line 2 holds a NUL byte"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\0"}\n', "line 2 holds a NUL byte"),
        ("a.csv", b"text\nx\0y\n", "line 2 holds a NUL byte"),
        ("a.txt", "one\n".encode("utf-16-le"), "line 1 holds a NUL byte.*UTF-16 without its mark.*iconv -f UTF-16LE"),
        ("a.txt", "\ufeffone\ntwo".encode("utf-16-le")[:-1], "can't be read .it ends within a character"),
        ("a.jsonl", b'{"text": "\xed\xa0\xbd"}', "line 1 holds 0xED as byte 11, which is no UTF-8"),
    ],
)  # fmt: skip
def test_bytes_that_are_no_text_name_the_line_and_the_byte(tmp_path, name, raw, sentence):
    (tmp_path / name).write_bytes(raw)
    assert re.search(sentence, refusal(tmp_path / name))


@pytest.mark.parametrize("suffix", [s for s in COMPRESSIONS if s])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_a_compressed_file_that_was_cut_off_is_refused(tmp_path, name, suffix):
    text = "text\n" + "some words\n" * 200 if name == "a.csv" else GOOD
    raw = COMPRESSIONS[suffix](text.encode())
    (tmp_path / (name + suffix)).write_bytes(raw[: len(raw) - 20])
    assert re.search(r"can't be read", refusal(tmp_path / (name + suffix)))


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("missing.txt", None),
        ("empty.txt", b""),
        ("blank.txt", b" \n\n"),
        ("null.jsonl", b'{"text": null}\n'),
        ("broken.parquet", b"PAR1garbage"),
        ("broken.arrow", b"ARROW1\0\0garbage"),
        ("stream.arrow", b"\xff\xff\xff\xff\0\1"),
    ],
)
def test_a_text_that_cannot_be_read_is_an_esa_error_that_names_it(tmp_path, name, raw):
    path = tmp_path / name
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(EsaError) as caught:
        read_documents(DataSpec(source=str(path)))
    assert name in str(caught.value)


@contextlib.contextmanager
def nobody():
    """Not as root, who may read everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize(
    ("closed", "asked", "named"),
    [("a.jsonl", "a.jsonl", "a.jsonl"), ("a.jsonl", "*.jsonl", "a.jsonl"), ("a.jsonl", ".", "a.jsonl"),
     (".", "a.jsonl", "a.jsonl"), (".", ".", "")],
)  # fmt: skip
def test_what_may_not_be_read_is_refused_with_the_reason(closed, asked, named):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        Path(folder, "a.jsonl").write_text(GOOD)
        os.chmod(Path(folder, closed), 0)
        with nobody(), pytest.raises(EsaError, match=f"{Path(folder, named)} can't be read: permission denied; "):
            read(Path(folder, asked))
        os.chmod(folder, 0o755)


@pytest.fixture
def short_records(monkeypatch):
    """Rows of up to 300 characters."""
    for module in (lines, json_rows, csv_rows):
        monkeypatch.setattr(module, "RECORD", 300)
    monkeypatch.setattr(json_rows, "CHARACTERS", 64)


def row_of(characters: int) -> str:
    """A JSON line of so many characters, its end included."""
    return '{"text": "' + "é" * (characters - 13) + '"}\n'


@pytest.mark.parametrize("piece_bytes", [1, 700, 10**6])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_line_longer_than_a_record_is_named_by_its_number_and_the_longest_is_read(
    tmp_path, short_records, suffix, piece_bytes
):
    path = tmp_path / f"a.jsonl{suffix}"
    pack = COMPRESSIONS[suffix] if suffix else bytes
    path.write_bytes(pack((row_of(300) * 3).encode()))
    assert read(path) == ["é" * 287] * 3
    path.write_bytes(pack((row_of(300) * 3 + row_of(301) + row_of(20)).encode()))
    spec = DataSpec(source=str(path))
    with pytest.raises(EsaError, match=rf"{re.escape(path.name)}, line 4 has more than 300 characters without an end"):
        [*chain.from_iterable(read_piece(piece, spec) for piece in pieces(spec, piece_bytes))]


def test_values_and_fields_longer_than_a_record_are_named_by_their_line(tmp_path, short_records):
    (array := tmp_path / "a.json").write_text('[\n{"text": "x"},\n{"text": "' + "y" * 9000 + '"}]')
    assert refusal(array).startswith("line 3 has more than 300 characters in one value")
    (table := tmp_path / "a.csv").write_text('id,text\n1,x\n2,"y\n' + "3,z\n" * 9000)  # a quote that nobody closes
    assert refusal(table).startswith("line 3 has more than 300 characters in one field")
    (wide := tmp_path / "b.csv").write_text("id,text\n1," + "x" * 9000)
    assert refusal(wide).startswith("line 2 has more than 300 characters without an end of line")


class Endless(io.RawIOBase):
    """A file that begins somehow, and goes on without an end."""

    def __init__(self, begin: bytes, on: bytes):
        self._next, self._on, self.given = begin, on, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        part = (self._next + self._on * len(buffer))[: len(buffer)]
        self._next = b""
        buffer[:] = part
        self.given += len(part)
        return len(part)


@pytest.mark.parametrize(
    ("read_rows", "begin", "on", "newline"),
    [
        (json_rows.json_lines, b'{"text": "', b"x", None),
        (json_rows.json_values, b'{"text": "', b"x", None),
        (json_rows.json_values, b'[{"text": "', b"x", None),
        (csv_rows.csv_rows, b"id,text\n1,", b"x", ""),
        (csv_rows.csv_rows, b'id,text\n1,"', b"x\n", ""),
    ],
)
def test_a_row_without_an_end_is_refused_before_the_memory_is_full(short_records, read_rows, begin, on, newline):
    stream = Endless(begin, on)
    with pytest.raises(Fault, match="has more than 300 characters"):
        next(iter(read_rows(lines.Text(io.BufferedReader(stream), "utf-8", newline), "text")))
    assert stream.given < 50_000


def test_the_end_of_a_long_line_is_looked_for_in_parts(tmp_path, monkeypatch):
    (path := tmp_path / "a.jsonl").write_bytes(b"x" * 1000 + b"\n" + b"y" * 10 + b"\n")
    monkeypatch.setattr(pieces_module, "PIECE_BYTES", 16)
    assert [(p.start, p.stop) for p in pieces(DataSpec(source=str(path)), 4)] == [(0, 1001), (1001, 1012)]
