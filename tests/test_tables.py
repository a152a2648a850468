"""Tables that are packed while they are read: every reader sees every cell, and each once."""

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq
import pytest

from esa_ray.storage import tables
from esa_ray.storage.store import SET_ASIDE, Store


@pytest.fixture(params=["directory", "bucket"])
def store(request, tmp_path, bucket):
    return Store(tmp_path if request.param == "directory" else bucket)


def cell(i, status="ok", **more):
    return {"cell_id": f"{i:016x}", "status": status, "metric": "m", "seed": 1, "k": i, "nll": [float(i)], **more}


def fill(store, numbers):
    for i in numbers:
        store.write("cells", f"m-{i:05d}", [cell(i)])


def test_packing_changes_no_row_and_leaves_one_file(store):
    fill(store, range(30))
    store.write("cells", "m-failed", [cell(99, "error", error="boom")])
    before = store.cells()
    assert store.pack(at_least=40) == 0
    assert store.pack(at_least=10) == 30
    assert len(store.names("cells")) == 2
    assert store.cells().equals(before)
    assert store.cells().num_rows == 31
    fill(store, range(30, 60))
    assert store.pack(at_least=10) == 31  # the earlier pack, and thirty more
    (name,) = tables.packed(store.names("cells"))
    assert tables.packed_rows(name) == 60
    assert store.cells()["k"].to_pylist() == [*range(60), 99]


def test_a_pack_of_many_rows_is_left_as_it_is(store, monkeypatch):
    monkeypatch.setattr("esa_ray.storage.store.PACK_ROWS", 20)
    fill(store, range(25))
    store.pack(at_least=1)
    fill(store, range(25, 30))
    assert store.pack(at_least=1) == 5
    assert sorted(tables.packed_rows(n) for n in store.names("cells")) == [5, 25]


def test_a_cell_that_stands_twice_is_read_once_and_a_result_beats_an_error(store):
    store.write("cells", "a", [cell(1, "error"), cell(2)])
    store.write("cells", "b", [cell(1)])
    store.write("cells", "c", [cell(2, "error")])
    assert store.cell_statuses() == {f"{1:016x}": "ok", f"{2:016x}": "ok"}
    assert store.cells(["nll"])["nll"].to_pylist() == [[1.0], [2.0]]


def test_readers_see_every_cell_once_while_others_write_and_pack(tmp_path):
    store, wrong, done = Store(tmp_path), [], threading.Event()
    fill(store, range(60))

    def read():
        while not done.is_set():
            found = store.cells(["k"])["k"].to_pylist()
            if found[:60] != list(range(60)) or len(set(found)) < len(found):
                wrong.append(found)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for start in range(60, 300, 20):
        fill(store, range(start, start + 20))
        store.pack(at_least=1)
    done.set()
    for reader in readers:
        reader.join()
    assert not wrong
    assert store.cells(["k"])["k"].to_pylist() == list(range(300))


def test_a_listing_that_missed_a_pack_is_made_anew(tmp_path, monkeypatch):
    # The moment that threads hit by chance alone: while names are listed a pack appears and the small files vanish,
    # and the walk sees neither.
    store, real, listed = Store(tmp_path), tables.names, []
    fill(store, range(5))
    store.write("cells", "m-failed", [cell(99, "error")])

    def late(place, table):
        listed.append(real(place, table))
        if len(listed) > 1:
            return listed[-1]
        store.pack(at_least=1)
        return ["m-failed"]

    monkeypatch.setattr(Store, "names", lambda self, table: real(self.location, table))
    monkeypatch.setattr(tables, "names", late)
    assert tables.read(store.location, "cells", ["k"])["k"].to_pylist() == [0, 1, 2, 3, 4, 99]


def test_a_damaged_file_says_so_across_processes(tmp_path):
    error = tables.UnreadableError("cells/a.parquet", "cells/a.parquet is damaged", damaged=True)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.file, again.damaged) == (str(error), error.file, True)


def test_two_packers_at_once_lose_nothing(tmp_path):
    store = Store(tmp_path)
    fill(store, range(200))
    with ThreadPoolExecutor(3) as packers:  # an exception in one of them is raised here
        list(packers.map(lambda _: [Store(tmp_path).pack(at_least=1) for _ in range(20)], range(3)))
    assert store.cells(["k"])["k"].to_pylist() == list(range(200))


def test_a_pack_that_reads_back_otherwise_deletes_nothing(tmp_path, monkeypatch):
    store = Store(tmp_path)
    fill(store, range(5))
    real = Store.write
    monkeypatch.setattr(Store, "write", lambda self, table, name, rows: real(self, table, name, rows.slice(1)))
    with pytest.raises(Exception, match="nothing was deleted"):
        store.pack(at_least=1)
    assert len([n for n in store.names("cells") if n.startswith("m-")]) == 5


def test_mending_sets_damaged_files_aside_and_sweeps_what_killed_processes_left(store):
    fill(store, range(3))
    name = tables.file("cells", "m-00001")
    store.location.write(name, store.location.read(name)[:-9])
    store.location.write("rankings/x.parquet", b"")
    local = store.location.path
    if local:
        (local / "cells" / ".m-00009.parquet.77.tmp").write_bytes(b"half")
        (local / ".study.json.77.tmp").write_bytes(b"half")
    assert sorted(store.quarantine()) == [name, "rankings/x.parquet"]
    assert store.quarantine() == []
    assert store.cells(["k"])["k"].to_pylist() == [0, 2]
    assert store.location.exists(name + SET_ASIDE)
    if local:
        assert not list(local.rglob("*.tmp"))


def test_older_files_without_newer_columns_are_read(store):
    fill(store, range(2))
    old = store.read("cells", "m-00000").drop_columns(["worker", "loops"])
    store.location.write(tables.file("cells", "m-00000"), tables.encoded(old))
    assert store.cells()["worker"].to_pylist() == [None, None]
    assert store.cells(["worker", "k"])["k"].to_pylist() == [0, 1]


def test_users_can_read_a_study_with_any_parquet_reader(tmp_path):
    store = Store(tmp_path)
    fill(store, range(12))
    store.pack(at_least=1)
    fill(store, range(12, 15))
    assert sorted(pq.read_table(tmp_path / "cells")["k"].to_pylist()) == list(range(15))
