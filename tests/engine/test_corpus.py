"""A corpus streamed in pieces gives the windows that the plain route makes of it in memory."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from esa_ray import data
from esa_ray.data import packing
from esa_ray.data.pieces import pieces
from esa_ray.data.reading import read_piece
from esa_ray.engine import corpus
from esa_ray.errors import EsaError
from esa_ray.models.load import load_tokenizer
from esa_ray.models.sources import find
from esa_ray.spec import DataSpec, ModelSpec
from tests.data.writing import COMPRESSIONS, TEXTS
from tests.tiny import BOS_ID, FIRST_BYTE, byte_tokenizer

SEEDS = (3, 8)


@pytest.fixture(scope="module")
def source(model_dir):
    return find(ModelSpec(source=model_dir))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ESA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "packed"


@pytest.fixture
def here(monkeypatch):
    """Pieces are tokenised in this process, without Ray; counts how often."""
    calls = []

    def tokenised(parts, spec, source):
        calls.append(len(parts))
        yield from corpus._Tokeniser(spec, source)(pa.Table.from_pylist([dataclasses.asdict(p) for p in parts]))

    monkeypatch.setattr(corpus, "_tokenised", tokenised)
    return calls


def random_rows(seed: int, n: int) -> list[str | None]:
    """Texts of all lengths and alphabets, some empty, some missing, some that stood before."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(n):
        kind = rng.integers(0, 10)
        low, high = [(32, 127), (0xE0, 0x250), (0x4E00, 0x4F00), (0x1F600, 0x1F640)][rng.integers(0, 4)]
        text = "".join(map(chr, rng.integers(low, high, rng.integers(0, 120))))
        earlier = rows[rng.integers(0, len(rows))] if rows else "first"
        rows.append({0: None, 1: "", 2: " \n", 3: earlier, 4: earlier}.get(kind, text))
    return rows


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": pa.array(rows, pa.string())}), path, row_group_size=7)
    else:
        lines = (json.dumps({"text": row}, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows))
        path.write_text("\n".join(lines), encoding="utf-8")
    return DataSpec(source=str(path), window=24, calibration_windows=8, evaluation_windows=5)


def assert_same(found, spec, tokenizer=None):
    """Against the plain route, which reads, packs and splits in memory."""
    windows, text = found
    documents = data.read_documents(spec, tokenizer)
    wanted = data.windows(spec, tokenizer or byte_tokenizer(), SEEDS, documents)
    assert text == data.text_fingerprint(documents)
    assert (windows.bos, windows.total, windows.pool) == (wanted.bos, len(wanted.tokens), len(wanted.pool_index))
    assert windows.evaluation.dtype == wanted.evaluation.dtype
    assert windows.evaluation.tolist() == wanted.evaluation.tolist()
    for seed in SEEDS:
        assert windows.calibration(seed).tolist() == wanted.calibration(seed).tolist()


@pytest.mark.parametrize("case", range(6))
@pytest.mark.parametrize("piece_bytes", [1, 150, 4000, 10**7])
def test_pieces_of_any_size_give_the_windows_of_the_plain_route(case, piece_bytes, tmp_path, source, here, monkeypatch):
    monkeypatch.setattr(corpus, "BATCH_BYTES", [1, 300, 10**6][case % 3])
    monkeypatch.setattr(packing, "GATHERED", [10, 700, 10**6][case % 3])
    spec = write(tmp_path / f"a.{['jsonl', 'parquet'][case % 2]}", random_rows(case, 80))
    spec = spec.model_copy(update={"bos": ["auto", "never", "always"][case // 2]})
    assert_same(corpus.prepare(spec, source, SEEDS, piece_bytes=piece_bytes), spec)
    assert here[0] > 10 or piece_bytes > 150


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", ["a.jsonl", "array.json", "a.csv"])
def test_files_that_cannot_be_cut_give_the_windows_of_the_plain_route(name, suffix, tmp_path, source, here):
    path = tmp_path / (name + suffix)
    path.write_bytes(COMPRESSIONS[suffix](TEXTS[name]([row for row in random_rows(1, 80) if row]).encode()))
    spec = DataSpec(source=str(path), window=24, calibration_windows=8, evaluation_windows=5)
    assert_same(corpus.prepare(spec, source, SEEDS, piece_bytes=150), spec)


def test_a_pattern_of_prose_gives_the_windows_of_the_plain_route(tmp_path, source, here):
    for i, row in enumerate(filter(None, random_rows(2, 80))):
        (tmp_path / f"{i:02d}.txt").write_text(row, encoding="utf-8")
    spec = DataSpec(source=f"{tmp_path}/*.txt", window=24, calibration_windows=8, evaluation_windows=5)
    assert_same(corpus.prepare(spec, source, SEEDS), spec)


def test_a_hub_data_set_is_packed_as_it_comes_and_found_again(tmp_path, source, here, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    (tmp_path / "set").mkdir()
    for i in range(3):
        write(tmp_path / "set" / f"train-{i}.parquet", random_rows(i, 60))
    spec = DataSpec(source=f"hf:{tmp_path}/set", window=24, calibration_windows=8, evaluation_windows=5)
    assert_same(corpus.prepare(spec, source, SEEDS), spec)
    assert_same(corpus.prepare(spec, source, SEEDS), spec)
    assert here == [3]
    write(tmp_path / "set" / "train-1.parquet", random_rows(5, 60))
    data.hub._loaded.cache_clear()
    assert_same(corpus.prepare(spec, source, SEEDS), spec)
    assert here == [3, 3]


def test_chat_rows_are_packed_by_the_template_that_the_model_has_now(tmp_path, model_dir, here):
    rows = [{"messages": [{"role": "user", "content": row}]} for row in random_rows(1, 80) if row]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spec = DataSpec(
        source=str(tmp_path / "a.jsonl"), text_column="messages", chat=True, window=24, calibration_windows=8,
        evaluation_windows=5,
    )  # fmt: skip
    mine = shutil.copytree(model_dir, tmp_path / "model")
    for i, shape in enumerate(["{{ bos_token }}<{{ messages[0].content }}>", "[{{ messages[0].content }}]"]):
        (mine / "chat_template.jinja").write_text(shape)
        model = find(ModelSpec(source=str(mine)))
        assert_same(corpus.prepare(spec, model, SEEDS), spec, load_tokenizer(model))
        assert len(here) == i + 1


def test_the_packed_file_is_the_text_cut_by_hand(tmp_path, source, here, cache):
    rows = ["ab", "zweites ü", "", "c" * 30]
    spec = write(tmp_path / "a.jsonl", rows).model_copy(update={"window": 6})
    with pytest.raises(EsaError, match="different windows"):  # too short to split, but packed
        corpus.prepare(spec, source, SEEDS, piece_bytes=1)
    raw = "\n\n".join(row for row in rows if row).encode()
    wanted = [[BOS_ID, *(b + FIRST_BYTE for b in raw[i : i + 5])] for i in range(0, len(raw) - 4, 5)]
    (packed,) = cache.glob("*.tokens")
    assert np.fromfile(packed, "<u4").reshape(-1, 6).tolist() == wanted


@pytest.fixture
def mixed(tmp_path):
    """A directory of JSONL and Parquet files."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    write(folder / "b.jsonl", random_rows(1, 150))
    write(folder / "c.parquet", random_rows(2, 60))
    return write(folder / "a.jsonl", random_rows(3, 20)).model_copy(update={"source": str(folder)})


@pytest.mark.ray
def test_ray_data_gives_the_windows_of_the_plain_route(ray_cluster, mixed, source):
    assert_same(corpus.prepare(mixed, source, SEEDS, piece_bytes=700), mixed)
    import ray

    context = ray.data.DataContext.get_current()
    assert not context.execution_options.preserve_order  # other data sets of the process are as before
    assert context.target_max_block_size > 2 * corpus.BATCH_BYTES


@pytest.mark.ray
def test_ray_data_runs_inside_a_task_without_a_cpu_and_an_error_comes_out_as_its_sentence(
    ray_cluster, mixed, source, cache
):
    import ray

    @ray.remote(num_cpus=0, max_retries=0)
    def task(spec):
        os.environ["ESA_CACHE"] = str(cache.parent)
        try:
            return corpus.prepare(spec, source, SEEDS, piece_bytes=700)
        except EsaError as error:
            return str(error)

    assert_same(ray.get(task.remote(mixed)), mixed)
    broken = os.path.join(mixed.source, "b.jsonl")
    with open(broken, "a", encoding="utf-8") as file:
        file.write("\n{not json}\n")
    with pytest.raises(EsaError, match=r"b\.jsonl") as plain:
        data.read_documents(mixed)
    assert ray.get(task.remote(mixed)) == str(plain.value)


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("broken.jsonl", b'{"text": "x"}\n{not json}\n{"body": 1}\n'),
        ("column.jsonl", b'{"text": "x"}\n{"body": "x"}\n'),
        ("number.jsonl", b'{"text": "x"}\n{"text": 3}\n'),
        ("list.jsonl", b'{"text": "x"}\n[1, 2]\n'),
        ("latin.jsonl", b'{"text": "x"}\n\xff\xfe\n'),
        ("empty.jsonl", b""),
        ("null.jsonl", b'{"text": null}\n{"text": " "}\n'),
        ("broken.parquet", b"PAR1garbage"),
        ("short.jsonl", b'{"text": "a text too short for all windows"}\n'),
        ("missing.jsonl", None),
    ],
)
def test_errors_are_those_of_the_plain_route_and_leave_nothing_half_done(tmp_path, source, here, cache, name, raw):
    spec = DataSpec(source=str(tmp_path / name), window=24)
    if raw is not None:
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(EsaError) as plain:
        data.windows(spec, byte_tokenizer(), SEEDS)
    with pytest.raises(EsaError) as streamed:
        corpus.prepare(spec, source, SEEDS)
    assert str(streamed.value) == str(plain.value)
    assert not list(cache.glob("*.part"))


def test_a_parquet_file_without_the_column_is_refused_as_in_the_plain_route(tmp_path, source, here):
    spec = write(tmp_path / "a.parquet", random_rows(0, 30)).model_copy(update={"text_column": "body"})
    for route in (data.read_documents, lambda spec: corpus.prepare(spec, source, SEEDS)):
        with pytest.raises(EsaError, match=r"a\.parquet has no column 'body' but text; name one with --text-column"):
            route(spec)


def test_a_second_study_finds_the_packed_corpus_whatever_it_draws(tmp_path, source, here):
    spec = write(tmp_path / "a.jsonl", random_rows(0, 80))
    _, text = corpus.prepare(spec, source, (3,))
    other = spec.model_copy(update={"evaluation_windows": 9, "calibration_windows": 4})
    assert_same(corpus.prepare(other, source, SEEDS, piece_bytes=10), other)
    assert len(here) == 1
    for change in ({"window": 20}, {"bos": "never"}):
        assert_same(corpus.prepare(changed := spec.model_copy(update=change), source, SEEDS), changed)
    assert len(here) == 3
    write(tmp_path / "a.jsonl", random_rows(1, 80))  # the same name, another text
    found, renewed = corpus.prepare(spec, source, SEEDS)
    assert len(here) == 4
    assert renewed != text
    assert_same((found, renewed), spec)


@pytest.mark.parametrize("damage", ["short", "gone", "json", "no json", "wrong json"])
def test_a_damaged_cache_is_built_again(tmp_path, source, here, cache, damage):
    spec = write(tmp_path / "a.jsonl", random_rows(0, 80))
    corpus.prepare(spec, source, SEEDS)
    (tokens,), (facts,) = cache.glob("*.tokens"), cache.glob("*.json")
    {
        "short": lambda: tokens.write_bytes(tokens.read_bytes()[:-4]),
        "gone": tokens.unlink,
        "json": lambda: facts.write_text("{"),
        "no json": facts.unlink,
        "wrong json": lambda: facts.write_text('["windows"]'),
    }[damage]()
    assert_same(corpus.prepare(spec, source, SEEDS), spec)
    assert len(here) == 2


def test_what_killed_processes_left_is_removed_and_what_living_ones_write_is_not(tmp_path, source, here, cache):
    spec = write(tmp_path / "a.jsonl", random_rows(0, 80))
    mine = corpus._key(data.anchored(spec), source)
    cache.mkdir(parents=True)
    for key in ("dead", "alive", mine):
        (cache / f"{key}.tokens.part").write_bytes(b"half a token")
    with FileLock(cache / "alive.lock"):
        assert_same(corpus.prepare(spec, source, SEEDS), spec)
    assert [path.name for path in cache.glob("*.part")] == ["alive.tokens.part"]


def test_a_part_that_is_left_while_we_wait_for_its_lock_is_not_gone_on_with(tmp_path, source, here, cache, monkeypatch):
    spec = write(tmp_path / "a.jsonl", random_rows(0, 80))
    cache.mkdir(parents=True)
    (cache / f"{corpus._key(data.anchored(spec), source)}.tokens.part").write_bytes(b"half a token")
    monkeypatch.setattr(corpus, "_sweep_up", lambda folder: None)
    assert_same(corpus.prepare(spec, source, SEEDS), spec)


def test_a_corpus_that_changes_while_it_is_read_is_refused(tmp_path, source, here, monkeypatch):
    spec = write(tmp_path / "a.jsonl", random_rows(0, 80))
    path, write_tokens = tmp_path / "a.jsonl", corpus._write

    def touched(*arguments):
        found = write_tokens(*arguments)
        os.utime(path, ns=(1, 1))
        return found

    monkeypatch.setattr(corpus, "_write", touched)
    with pytest.raises(EsaError, match="changed while"):
        corpus.prepare(spec, source, SEEDS)
    monkeypatch.setattr(corpus, "_write", write_tokens)
    parts = list(pieces(spec))
    path.write_text(path.read_text() + "\n")
    with pytest.raises(EsaError, match="another file"):
        list(read_piece(parts[0], spec))


def test_a_cache_that_cannot_be_written_is_refused_with_its_name(tmp_path, source, here, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ESA_CACHE", str(tmp_path / "file"))
    spec = write(tmp_path / "a.jsonl", random_rows(0, 80))
    with pytest.raises(EsaError, match=r"file.*ESA_CACHE"):
        corpus.prepare(spec, source, SEEDS)
