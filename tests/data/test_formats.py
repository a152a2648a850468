"""The same rows are the same documents, however a file holds them."""

import json
import re
import sqlite3
import tracemalloc
import zipfile

import numpy as np
import pandas as pd
import pytest

from esa_ray.data import json_rows, text_fingerprint
from esa_ray.data.pieces import pieces
from esa_ray.data.reading import read_piece
from esa_ray.errors import EsaError
from esa_ray.spec import DataSpec
from tests.data.writing import COMPRESSIONS, HARD, TABLES, TEXTS, json_array, json_lines, parquet, read, table


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("name", TEXTS)
def test_rows_are_the_same_documents_in_every_format_and_compression(tmp_path, name, suffix):
    path = tmp_path / (name + suffix)
    path.write_bytes(COMPRESSIONS[suffix](TEXTS[name](HARD).encode()))
    assert read(path) == HARD


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_the_same_documents_and_the_same_text(tmp_path, name):
    (tmp_path / name).write_bytes(TABLES[name](HARD))
    found = read(tmp_path / name)
    assert found == HARD
    (tmp_path / "a.jsonl").write_text(json_lines(HARD))
    assert text_fingerprint(found) == text_fingerprint(read(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("name", [n for n in TEXTS if n.endswith((".jsonl", ".json", ".csv"))])
def test_suffixes_count_in_any_case(tmp_path, name):
    (tmp_path / name.upper()).write_text(TEXTS[name](HARD), newline="")
    assert read(tmp_path / name.upper()) == HARD


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", TEXTS)
def test_a_mark_of_unicode_says_the_encoding_and_is_no_text(tmp_path, name, suffix, encoding):
    raw = TEXTS[name](HARD).encode(encoding)
    assert raw[:2] in (b"\xef\xbb", b"\xff\xfe")
    (tmp_path / (name + suffix)).write_bytes(COMPRESSIONS[suffix](raw))
    assert read(tmp_path / (name + suffix)) == HARD


@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-32-be"])
def test_big_endian_text_is_read_by_its_mark(tmp_path, encoding):
    (tmp_path / "a.jsonl").write_bytes(("\ufeff" + json_lines(HARD)).encode(encoding))
    assert read(tmp_path / "a.jsonl") == HARD


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_as_any_editor_ends_them(tmp_path, end):
    rows = ["one", "two\nlines", "", "three"]
    (tmp_path / "a.jsonl").write_bytes((json_lines(rows, end) + end).encode())
    (tmp_path / "a.json").write_bytes((json_lines(rows, end) + end).encode())
    (tmp_path / "a.csv").write_bytes(table(rows, end=end).encode())
    (tmp_path / "a.txt").write_bytes(end.join(["one", "two", "", "three"]).encode())
    for name in ("a.jsonl", "a.json", "a.csv"):
        assert read(tmp_path / name) == ["one", "two\nlines", "three"]
    assert read(tmp_path / "a.txt") == ["one\ntwo\n\nthree"]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.rst", "LICENSE", "a.html", "a.log"])
def test_a_file_of_prose_is_one_document(tmp_path, name):
    for suffix, compress in COMPRESSIONS.items():
        (tmp_path / (name + suffix)).write_bytes(compress("one\n\n{{ zwei }} ü\n".encode()))
        assert read(tmp_path / (name + suffix)) == ["one\n\n{{ zwei }} ü\n"]


def test_json_lines_that_are_called_txt_stay_the_document_that_they_were(tmp_path):
    (tmp_path / "a.txt").write_text('{"text": "x"}\n')
    assert read(tmp_path / "a.txt") == ['{"text": "x"}\n']


@pytest.mark.parametrize("name", ["rows", "rows.jsonl.1", "rows.jsonl.bak", "rows.ipynb", "rows.gz"])
@pytest.mark.parametrize("content", [json_lines, json_array])
def test_json_under_a_name_that_does_not_say_so_is_refused_and_not_read_as_one_document(tmp_path, name, content):
    compress = COMPRESSIONS[".gz" if name.endswith(".gz") else ""]
    (tmp_path / name).write_bytes(compress(content(HARD).encode()))
    with pytest.raises(EsaError, match=rf"{name} looks like JSON; name it \.jsonl"):
        read(tmp_path / name)


def test_what_a_file_is_compressed_by_is_seen_in_it_and_not_in_its_name(tmp_path):
    raw = json_lines(HARD).encode()
    (tmp_path / "packed.jsonl").write_bytes(COMPRESSIONS[".gz"](raw))
    (tmp_path / "plain.jsonl.gz").write_bytes(raw)  # as browsers save what they have unpacked already
    (tmp_path / "other.jsonl.gz").write_bytes(COMPRESSIONS[".zst"](raw))
    for name in ("packed.jsonl", "plain.jsonl.gz", "other.jsonl.gz"):
        assert read(tmp_path / name) == HARD


@pytest.mark.parametrize("suffix", [s for s in COMPRESSIONS if s])
def test_compressed_files_that_were_joined_are_read_to_the_end(tmp_path, suffix):
    parts = [COMPRESSIONS[suffix](json_lines([row]).encode() + b"\n") for row in HARD]
    (tmp_path / f"a.jsonl{suffix}").write_bytes(b"".join(parts))
    assert read(tmp_path / f"a.jsonl{suffix}") == HARD


@pytest.mark.parametrize("characters", [1, 2, 7, 100])
@pytest.mark.parametrize("name", ["a.json", "array.json", "pretty.json", "objects.json"])
def test_json_is_the_same_wherever_reading_stops_in_between(tmp_path, name, characters, monkeypatch):
    monkeypatch.setattr(json_rows, "CHARACTERS", characters)
    rows = ["one", 'ü \u2028 🙂 \\ " \\u00e9', "", 'x": [1.5e-3, true, -Infinity', "{", "]", "last"]
    (tmp_path / name).write_text(TEXTS[name](rows))
    assert read(tmp_path / name) == [row for row in rows if row]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "array.json", "a.csv", "a.tsv"])
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_is_read_without_being_held(tmp_path, name, suffix):
    path, rows = tmp_path / (name + suffix), [f"{i} " + "words " * 150 for i in range(9_000)]
    path.write_bytes(COMPRESSIONS[suffix](TEXTS[name](rows).encode()))
    spec = DataSpec(source=str(path))
    (piece,) = pieces(spec)
    tracemalloc.start()
    size = sum(map(len, read_piece(piece, spec)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 8_000_000
    assert peak < 2_000_000


def test_a_json_file_of_one_object_is_one_document(tmp_path):
    (tmp_path / "a.json").write_text('\n{\n  "id": 1,\n  "text": "one"\n}\n')
    assert read(tmp_path / "a.json") == ["one"]


def test_an_empty_array_or_table_holds_no_text(tmp_path):
    for name, text in {"a.json": "[ ]", "b.json": " ", "a.csv": "text\n", "b.csv": "", "a.jsonl": "\n"}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(EsaError, match=f"{name} holds no text"):
            read(tmp_path / name)


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("sep", [",", ";", "\t", "|"])
def test_csv_by_pandas_is_what_pandas_was_given(tmp_path, sep, index):
    frame = pd.DataFrame({"url": "a,b;c", "text": HARD, "n": 1.5})
    frame.to_csv(tmp_path / "a.csv", sep=sep, index=index)
    assert read(tmp_path / "a.csv") == HARD


def test_csv_with_a_space_behind_every_comma_is_what_it_says(tmp_path):
    (tmp_path / "a.csv").write_text('id, text\n1, "one, and  more"\n2, two\n')
    (tmp_path / "b.csv").write_text('"id", "text"\n1, " one"\n')
    (tmp_path / "c.csv").write_text('"id, or","text"\n1, one\n')
    assert [read(tmp_path / name) for name in ("a.csv", "b.csv", "c.csv")] == [
        ["one, and  more", "two"],
        [" one"],
        [" one"],
    ]


@pytest.mark.parametrize("orient", ["columns", "list"])
def test_what_is_told_of_a_json_file_of_columns_makes_it_one_of_rows(tmp_path, orient):
    frame = pd.DataFrame({"id": [1, 2], "text": ["one", "two"]})
    (tmp_path / "a.json").write_text(frame.to_json() if orient == "columns" else json.dumps(frame.to_dict("list")))
    with pytest.raises(EsaError, match=r"columns, where rows belong; write them as rows: (.*), NEW ending") as caught:
        read(tmp_path / "a.json")
    mend = re.search(r"as rows: (.*), NEW", str(caught.value))[1]
    exec(mend, {"pandas": pd, "FILE": tmp_path / "a.json", "NEW": tmp_path / "b.json"})
    assert read(tmp_path / "b.json") == ["one", "two"]


def test_a_missing_text_is_left_out_in_every_format(tmp_path):
    frame = pd.DataFrame({"text": ["one", None, "", " \n", "two"], "n": range(5)})
    frame.to_csv(tmp_path / "a.csv")
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    frame.to_json(tmp_path / "a.json", orient="records")
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_feather(tmp_path / "a.feather")
    for path in tmp_path.iterdir():
        assert read(path) == ["one", "two"]


def test_a_data_set_that_the_datasets_library_saved_is_read_and_its_notes_are_not(tmp_path):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"text": HARD, "label": list(range(len(HARD)))})
    datasets.DatasetDict({"train": made}).save_to_disk(tmp_path / "saved", num_shards={"train": 3})
    again = datasets.load_from_disk(tmp_path / "saved" / "train")
    again.map(lambda row: {"text": "changed"}, load_from_cache_file=False)  # leaves its result beside the data
    assert len(list((tmp_path / "saved" / "train").glob("*.arrow"))) > 3
    assert read(tmp_path / "saved" / "train") == HARD
    with pytest.raises(EsaError, match="saved/train has some: give that"):
        read(tmp_path / "saved")


LONE = ["ok \ud83d bad", "\udc00", "\ude00\ud83d", "x\udfff"]
WHOLE = ["ok \ufffd bad", "\ufffd", "\ufffd\ufffd", "x\ufffd"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "array.json"])
def test_a_lone_surrogate_is_read_as_the_replacement_character(tmp_path, name):
    (tmp_path / name).write_bytes(
        json_array([*LONE, "\U0001f600"]).encode("ascii")
        if name == "array.json"
        else b"\n".join(b'{"text": "%s"}' % row.encode("ascii", "backslashreplace") for row in [*LONE, "\ud83d\ude00"])
    )
    assert read(tmp_path / name) == [*WHOLE, "\U0001f600"]


def test_a_lone_surrogate_in_utf_16_is_read_as_the_replacement_character(tmp_path):
    (tmp_path / "a.txt").write_bytes(("\ufeff" + "".join(LONE)).encode("utf-16-le", "surrogatepass"))
    # What stands lone in a row may stand in a pair in the whole: \udc00 follows nothing high here.
    assert read(tmp_path / "a.txt") == ["".join(WHOLE)]


def _sqlite(path):
    with sqlite3.connect(path) as database:
        database.execute("create table t (text)")


def _zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rows.csv", "text\nx\n")


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("a.zip", _zip, "is a zip archive"),
        ("a.docx", _zip, "is a zip archive"),
        ("a.jsonl.zip", _zip, "is a zip archive"),
        ("a.csv", _zip, "is a zip archive"),
        ("a.pdf", lambda path: path.write_bytes(b"%PDF-1.7\n"), "is a PDF"),
        ("a.db", _sqlite, "is an SQLite database; export"),
        ("a.npy", lambda path: np.save(path, np.arange(3)), "is a NumPy array"),
        ("a.npz", lambda path: np.savez(path, x=np.arange(3)), "is a zip archive"),
        ("a.rtf", lambda path: path.write_bytes(b"{\\rtf1 x}"), "is RTF"),
        ("a.pt", lambda path: path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."), "line 1 holds 0x80"),
        ("model.safetensors", lambda path: path.write_bytes(bytes(8) + b"{}"), "line 1 holds a NUL byte"),
        ("a.gguf", lambda path: path.write_bytes(b"GGUF\x03\0\0\0"), "is a GGUF model; give it to --model"),
        ("a.parquet", lambda path: path.write_bytes(b"text\nx\n"), "is no Parquet, whatever its name says"),
        ("a.parquet", lambda path: path.write_bytes(b""), "is no Parquet"),
        ("a.arrow", lambda path: path.write_bytes(b"FEA1\0\0"), "is Feather of version 1; write it as Parquet"),
        ("a.feather", lambda path: path.write_bytes(b"text"), "is no Arrow"),
        ("a.parquet.gz", lambda path: path.write_bytes(COMPRESSIONS[".gz"](parquet(["x"]))), "Parquet in gzip.*unpack"),
        (
            "a.txt",
            lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
            "is a pointer of Git LFS; fetch the file itself with git lfs pull",
        ),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused_by_what_it_is(tmp_path, name, make, words):
    make(tmp_path / name)
    with pytest.raises(EsaError, match=rf"--data .*{name}.* ?{words}"):
        read(tmp_path / name)


def test_a_tar_archive_is_refused_packed_or_not(tmp_path):
    import tarfile

    (tmp_path / "rows.jsonl").write_text(json_lines(["x"]))
    for name, mode in {"a.tar": "w", "a.tar.gz": "w:gz", "a.tgz": "w:gz", "a.tar.xz": "w:xz"}.items():
        with tarfile.open(tmp_path / name, mode) as archive:
            archive.add(tmp_path / "rows.jsonl")
        with pytest.raises(EsaError, match=f"{name} is a tar archive; unpack it"):
            read(tmp_path / name)


def test_columns_are_told_from_rows_by_content_where_the_name_is_another(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(parquet(HARD))
    assert read(tmp_path / "rows.jsonl") == HARD
