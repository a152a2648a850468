"""Data sets of the hub through their own library, which takes a folder for a data set's name: no hub is needed."""

import json

import pytest

from esa_ray.data import files, hub, is_large, read_documents
from esa_ray.data.pieces import pieces
from esa_ray.data.reading import read_piece
from esa_ray.errors import EsaError
from esa_ray.spec import DataSpec

datasets = pytest.importorskip("datasets")
ROWS = [f"document {i} über {i * i}" for i in range(10)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    hub._loaded.cache_clear()
    hub._size.cache_clear()


@pytest.fixture
def folder(tmp_path):
    """Three files of one split, and one of another."""
    path = tmp_path / "set"
    path.mkdir()
    for i, rows in enumerate([ROWS[:4], ROWS[4:5], ROWS[5:]]):
        (path / f"train-{i}.jsonl").write_text("".join(json.dumps({"id": 0, "body": row}) + "\n" for row in rows))
    (path / "test.jsonl").write_text('{"id": 0, "body": "tested"}\n')
    return path


def spec(folder, **fields) -> DataSpec:
    return DataSpec(**({"source": f"hf:{folder}", "text_column": "body"} | fields))


def streamed(mine: DataSpec) -> list[str]:
    return [document for piece in pieces(mine) for document in read_piece(piece, mine)]


def test_a_data_set_is_the_same_documents_by_either_route(folder):
    assert read_documents(spec(folder)) == ROWS
    assert streamed(spec(folder)) == ROWS
    assert len(list(pieces(spec(folder)))) == 3
    assert read_documents(spec(folder, split="test")) == streamed(spec(folder, split="test")) == ["tested"]


def test_a_slice_of_a_split_is_read_as_its_library_cuts_it(folder):
    assert read_documents(spec(folder, split="train[2:5]")) == streamed(spec(folder, split="train[2:5]")) == ROWS[2:5]
    assert streamed(spec(folder, split="test+train")) == ["tested", *ROWS]


def test_without_a_network_a_data_set_is_read_from_the_cache_in_parts(folder, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "PIECE_ROWS", 3)
    parts = list(pieces(spec(folder)))
    assert len(parts) == 4
    assert streamed(spec(folder)) == ROWS


def test_a_large_data_set_is_read_as_it_comes_and_no_further_than_asked(folder, monkeypatch):
    monkeypatch.setattr(hub, "ROWS", 4)
    (folder / "train-1.jsonl").write_text("{torn")
    rows = hub.read(spec(folder), 0, 1)
    assert [next(rows) for _ in range(4)] == list(enumerate(ROWS[:4], 1))
    with pytest.raises(EsaError, match="can't be loaded"):
        next(rows)


def test_a_data_set_is_large_by_what_it_says_or_else_by_its_text(folder, monkeypatch):
    limit = sum(len(row.encode()) for row in ROWS)
    monkeypatch.setattr(files, "LARGE", limit)
    assert not is_large(spec(folder))
    monkeypatch.setattr(files, "LARGE", limit - 1)
    assert is_large(spec(folder))
    assert not is_large(spec(folder, split="test"))
    read_documents(spec(folder))  # from now on the library knows the size of each split
    hub._size.cache_clear()
    said = datasets.load_dataset_builder(str(folder)).info.splits["train"].num_bytes
    assert said > limit
    assert [hub.size(spec(folder), n) for n in (1, 10**9)] == [said, said]


def test_what_a_data_set_says_of_its_state_changes_with_its_files(folder):
    before = hub.state(spec(folder))
    assert hub.state(spec(folder)) == before
    (folder / "train-2.jsonl").write_text('{"id": 0, "body": "other"}\n')
    assert hub.state(spec(folder)) != before


@pytest.mark.parametrize("route", [read_documents, streamed])
def test_a_row_that_holds_no_text_is_named_by_its_number(folder, route):
    (folder / "train-2.jsonl").write_text('{"id": 0, "body": "x"}\n' * 3)
    where = "row 1 has 0 in 'id'" if route is read_documents else "shard 1 of 3, row 1 has 0 in 'id'"
    with pytest.raises(EsaError, match=f"--data hf:{folder}, {where}, which is no text"):
        route(spec(folder, text_column="id"))


@pytest.mark.parametrize("route", [read_documents, streamed])
def test_a_column_that_is_not_there_is_refused_with_those_that_are(folder, route):
    with pytest.raises(EsaError, match="has no column 'text' but id, body; name one with --text-column"):
        route(spec(folder, text_column="text"))


@pytest.mark.parametrize("route", [read_documents, streamed])
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"split": "valid"}, "can't be loaded: .*valid.*'train', 'test'"),
        ({"source": "hf:{folder}:english"}, "can't be loaded: .*'english' not found.*'default'.*hf:{folder}:CONFIG"),
        ({"source": "hf:{folder}/nothing"}, "can't be loaded: Couldn't find any data file"),
    ],
)
def test_a_split_or_configuration_that_is_not_there_is_refused_with_those_that_are(folder, route, changes, sentence):
    changes = {name: value.format(folder=folder) for name, value in changes.items()}
    with pytest.raises(EsaError, match=sentence.format(folder=folder)):
        route(spec(folder, **changes))


@pytest.mark.parametrize(
    ("message", "mend"),
    [
        ("Dataset 'a/b' is a gated dataset on the Hub. You must be authenticated to access it.", "hf auth login"),
        ("401 Client Error", "hf auth login"),
        (
            "Config name is missing.\nPlease pick one among the available configs: ['en', 'de']",
            "'en', 'de'.*hf:a/b:CONF",
        ),
        ("", "ConnectionError"),
    ],
)
def test_what_the_library_says_is_one_sentence_with_a_mend(monkeypatch, message, mend):
    def refuse(*arguments, **options):
        raise ConnectionError(message)

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(EsaError, match=f"the data set 'a/b' can't be loaded: .*{mend}") as caught:
        read_documents(DataSpec(source="hf:a/b"))
    assert "\n" not in str(caught.value)
