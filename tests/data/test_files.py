"""Which files a source is, how large they are, and into which pieces they are cut."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from esa_ray.data import anchored, is_large, read_documents
from esa_ray.data import files as files_module
from esa_ray.data.pieces import pieces
from esa_ray.data.reading import read_piece
from esa_ray.errors import EsaError
from esa_ray.spec import DataSpec
from tests.data.writing import COMPRESSIONS, json_array, json_lines, parquet, read


def write_rows(path, rows, end="\n"):
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": pa.array(rows, pa.string())}), path, row_group_size=3)
    else:
        lines = [json.dumps({"text": row}, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows)]
        path.write_bytes(end.join(lines).encode())


ROWS = ["one", "", "zweites ü, 漢字 🙂", None, "a\nb\r\nc", "  ", "long " * 40, "x", "two\u2028lines", "one"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.parquet", "A.JSONL"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\n \n", "\r"])
def test_pieces_of_any_size_hold_the_rows_of_the_file(tmp_path, name, end):
    write_rows(tmp_path / name, ROWS, end=end)
    mine, counts = DataSpec(source=str(tmp_path / name)), set()
    for piece_bytes in (1, 2, 10, 37, 100, 10**6):
        parts = list(pieces(mine, piece_bytes))
        found = [document for part in parts for document in read_piece(part, mine)]
        assert found == [row for row in ROWS if row and row.strip()]
        counts.add(len(parts))
    assert max(counts) >= 4 or end == "\r"  # which is no line end to cut at
    assert min(counts) == 1


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_mark_of_unicode_stands_in_the_first_piece_alone(tmp_path, encoding):
    rows = ["one", "\ufefftwo", "three"]
    (tmp_path / "a.jsonl").write_bytes("\n".join(f'{{"text": "{row}"}}' for row in rows).encode(encoding))
    mine = DataSpec(source=str(tmp_path / "a.jsonl"))
    parts = list(pieces(mine, 1))
    assert len(parts) == (3 if encoding == "utf-8-sig" else 1)
    assert [document for part in parts for document in read_piece(part, mine)] == rows


def test_what_cannot_be_read_from_its_middle_is_one_piece(tmp_path):
    for name, content in {"a.json": json_lines, "b.json": json_array}.items():
        (tmp_path / name).write_text(content(["one", "two"]))
    for suffix, compress in COMPRESSIONS.items():
        (tmp_path / f"c.jsonl{suffix}").write_bytes(compress(json_lines(["one", "two"]).encode()))
    for path in tmp_path.iterdir():
        assert len(list(pieces(DataSpec(source=str(path)), 1))) == (2 if path.name == "c.jsonl" else 1)


def test_a_directory_is_read_by_name_and_other_files_in_it_are_left_out(tmp_path):
    write_rows(tmp_path / "b.jsonl", ["third", "fourth"])
    write_rows(tmp_path / "a.parquet", ["first", "second"])
    write_rows(tmp_path / "c.ndjson", ["fifth"])
    (tmp_path / "README.md").write_text("no document")
    (tmp_path / "config.json").write_text('{"no": "document"}')
    (tmp_path / "metadata.csv").write_text("no,document")
    for hidden in (".a.jsonl", "._b.jsonl"):
        (tmp_path / hidden).write_text("no document")
    (tmp_path / "d.jsonl").mkdir()
    assert read_documents(DataSpec(source=str(tmp_path))) == ["first", "second", "third", "fourth", "fifth"]
    with pytest.raises(EsaError, match=r"d\.jsonl is a directory without files of rows; give one"):
        read_documents(DataSpec(source=str(tmp_path / "d.jsonl")))


def test_one_file_compressed_in_several_ways_is_one_file(tmp_path):
    for suffix in (".gz", ".zst", ".bz2"):
        (tmp_path / f"a.jsonl{suffix}").write_bytes(COMPRESSIONS[suffix](json_lines(["one", "two"]).encode()))
    assert read(tmp_path) == ["one", "two"]


def test_compressed_files_of_a_directory_join_unless_they_are_copies(tmp_path):
    for name in ("a", "b"):
        write_rows(tmp_path / f"{name}.jsonl", [name])
        (tmp_path / f"{name}.jsonl.gz").write_bytes(COMPRESSIONS[".gz"]((tmp_path / f"{name}.jsonl").read_bytes()))
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "C.JSONL").write_text(json_lines(["c"]))
    assert read(tmp_path) == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a.json", "b.csv", "c.arrow", "d.parquet"], ["d.parquet"]),
        (["a.json", "b.csv", "c.arrow"], ["c.arrow"]),
        (["a.json", "b.csv", "c.TSV"], ["b.csv", "c.TSV"]),
        (["a.json", "B.json", "dataset_info.json"], ["B.json", "a.json"]),
    ],
)
def test_a_directory_is_read_by_the_first_family_of_formats_that_it_has(tmp_path, names, found):
    for name in names:
        (tmp_path / name).write_text("")
    assert [path.name for path in files_module.files(DataSpec(source=str(tmp_path)))] == found


def test_a_directory_of_other_files_or_of_directories_is_told_what_to_say(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("one")
    with pytest.raises(EsaError, match=r"as a document give a pattern such as '.*texts/\*\.txt'"):
        read(tmp_path / "texts")
    (tmp_path / "rows").mkdir()
    write_rows(tmp_path / "rows" / "a.jsonl", ["one"])
    with pytest.raises(EsaError, match="rows has some: give that, or a pattern"):
        read(tmp_path)


def test_a_pattern_is_every_file_that_it_matches_by_name(tmp_path):
    for name in ("b.txt", "a.txt", "c.md", "inner/d.txt", ".hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    write_rows(tmp_path / "e.jsonl", ["row 1", "row 2"])
    assert read(tmp_path / "*.txt") == ["a.txt", "b.txt"]
    assert read(tmp_path / "**" / "*.txt") == ["a.txt", "b.txt", "inner/d.txt"]
    assert read(tmp_path / "[ae].*") == ["a.txt", "row 1", "row 2"]
    with pytest.raises(EsaError, match="is no file"):
        read(tmp_path / "*.csv")
    with pytest.raises(EsaError, match="is no file"):
        read(tmp_path / "inne[r]")


def test_a_file_with_the_signs_of_a_pattern_in_its_name_is_that_file(tmp_path):
    (tmp_path / "a[1].txt").write_text("this")
    (tmp_path / "a1.txt").write_text("that")
    assert read(tmp_path / "a[1].txt") == ["this"]


def test_a_path_in_the_home_directory_is_found_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_rows(tmp_path / "a.jsonl", ["one"])
    for source in ("~/a.jsonl", "~/*.jsonl"):
        assert read_documents(DataSpec(source=source)) == ["one"]
        assert read_documents(anchored(DataSpec(source=source))) == ["one"]


def test_a_link_is_read_by_its_own_name_from_everywhere(tmp_path, monkeypatch):
    # As the hub's cache holds files: what the link leads to has a hash for its name.
    (tmp_path / "blobs").mkdir()
    write_rows(tmp_path / "blobs" / "0123abcd", ["one", "two"])
    (tmp_path / "train.jsonl").symlink_to("blobs/0123abcd")
    monkeypatch.chdir(tmp_path)
    there = anchored(DataSpec(source="train.jsonl"))
    monkeypatch.chdir("/")
    assert read_documents(there) == ["one", "two"]


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(EsaError, match="is a pipe or a device, and a text is read more than once; write it to a file"):
        read(tmp_path / "a.jsonl")


def test_a_file_that_every_process_sees_otherwise_is_refused(tmp_path):
    write_rows(tmp_path / "a.jsonl", ["one"])
    with (tmp_path / "a.jsonl").open() as stream, pytest.raises(EsaError, match="another file in every process"):
        read(f"/proc/self/fd/{stream.fileno()}")


def test_a_corpus_is_large_by_the_bytes_of_all_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr(files_module, "LARGE", 100)
    write_rows(tmp_path / "a.jsonl", ["x" * 50])
    assert not is_large(DataSpec(source=str(tmp_path)))
    write_rows(tmp_path / "b.jsonl", ["x" * 50])
    assert is_large(DataSpec(source=str(tmp_path)))
    assert not is_large(DataSpec(source="pydoc"))
    (tmp_path / "a.txt").write_text("x" * 101)
    with pytest.raises(EsaError, match=r"a\.txt.*one document a row"):
        is_large(DataSpec(source=str(tmp_path / "a.txt")))
    with pytest.raises(EsaError, match="missing"):
        is_large(DataSpec(source=str(tmp_path / "missing.jsonl")))


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_a_compressed_file_is_as_large_as_what_is_in_it(tmp_path, suffix, monkeypatch):
    raw = json_lines(["x" * 1000] * 1000).encode()
    monkeypatch.setattr(files_module, "LARGE", len(raw))
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESSIONS[suffix](raw))
    assert not is_large(DataSpec(source=str(path)))
    path.write_bytes(COMPRESSIONS[suffix](raw + b"\n"))
    assert is_large(DataSpec(source=str(path)))
    path.rename(tmp_path / f"a.txt{suffix}")
    with pytest.raises(EsaError, match="is a single document of more than"):
        is_large(DataSpec(source=str(tmp_path / f"a.txt{suffix}")))


def test_parquet_is_as_large_as_it_is_stored(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(parquet(["x" * 10_000]))
    monkeypatch.setattr(files_module, "LARGE", 9_000)
    assert not is_large(DataSpec(source=str(tmp_path / "a.parquet")))


def test_another_text_that_is_not_there_is_told_by_its_own_option(tmp_path):
    with pytest.raises(EsaError, match=r"^--other-data .*no\.txt is no file"):
        files_module.check_others([DataSpec(), DataSpec(source=str(tmp_path / "no.txt"))])
