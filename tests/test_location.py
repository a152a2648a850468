"""Places: the same files in a directory and in a bucket of a real S3 API server, whole or not at all."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from esa_ray.errors import EsaError
from esa_ray.storage.location import Location, below, last_part


@pytest.fixture(params=["directory", "bucket"])
def place(request, tmp_path, bucket):
    return Location(
        tmp_path / "deep" / "er" if request.param == "directory" else f"{bucket}".replace("?", "/deep/er?", 1)
    )


def test_what_was_written_is_read_listed_moved_and_deleted(place):
    assert place.names() == place.names("cells") == []
    place.write("cells/b.parquet", b"two")
    place.write("cells/a.parquet", b"one")
    place.write("study.json", b"{}")
    assert place.names("cells") == ["a.parquet", "b.parquet"]
    assert set(place.names()) == {"cells", "study.json"}
    assert place.read("cells/a.parquet") == b"one"
    assert place.exists("cells/a.parquet")
    assert not place.exists("cells")
    assert not place.exists("cells/c.parquet")
    place.write("cells/a.parquet", b"three")
    assert place.each(["cells/a.parquet", "cells/b.parquet"], place.read) == [b"three", b"two"]
    place.move("cells/b.parquet", "cells/b.parquet.unreadable")
    assert place.names("cells") == ["a.parquet", "b.parquet.unreadable"]
    place.delete(["cells/a.parquet", "cells/never.parquet"])
    assert place.names("cells") == ["b.parquet.unreadable"]
    with pytest.raises(FileNotFoundError):
        place.read("cells/a.parquet")


def test_a_file_of_many_megabytes_arrives_whole_and_so_do_many_at_once(place):
    large = os.urandom(2**20) * 12  # beyond what S3 takes in one part
    place.write("large", large)
    assert place.read("large") == large
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: place.write(f"many/{i:03d}", bytes([i])), range(40)))
    assert place.each([f"many/{i:03d}" for i in range(40)], place.read) == [bytes([i]) for i in range(40)]


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "a\\x", "a\0b"])
def test_a_name_never_leads_out_of_the_place(place, name):
    for use in (place.read, place.exists, lambda n: place.write(n, b""), lambda n: place.delete([n]), place.names):
        with pytest.raises(EsaError, match="outside"):
            use(name)


def test_a_place_goes_to_other_processes_by_its_location(place):
    place.write("x", b"1")
    assert Location(place.text).read("x") == b"1"
    function, arguments = place.__reduce__()
    assert function(*arguments).read("x") == b"1"


def test_a_bucket_that_is_not_there_is_one_sentence(bucket):
    with pytest.raises(EsaError) as caught:
        Location(bucket.replace("studies", "nowhere")).write("x", b"")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("location", [
        "s3://key:secret@bucket/x", "s3://key:sec/ret@bucket/secret", "s3://secret@bucket/x", "nosuch://bucket/x",
        "s3://b/x?nosuchoption=1",
    ],
)  # fmt: skip
def test_a_location_with_a_key_or_that_nobody_knows_is_refused_without_showing_it(location):
    with pytest.raises(EsaError) as caught:
        Location(location).names()
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_store_that_does_not_answer_and_a_name_too_long_are_one_sentence(tmp_path):
    dead = Location("s3://b/x?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1&connect_timeout=1")
    for place, name in ((dead, "x"), (Location(tmp_path), "x" * 300)):
        for action in (lambda place, name: place.move(name, "y"), lambda place, name: place.exists(name)):
            with pytest.raises(EsaError) as caught:
                action(place, name)
            assert "\n" not in str(caught.value)


def test_a_file_uri_is_a_path_and_so_is_one_with_a_question_mark(tmp_path):
    assert Location(f"file://{tmp_path}/a%20b").path == tmp_path / "a b"
    assert str(Location(tmp_path / "what?x")) == str(tmp_path / "what?x")


def test_a_full_disk_is_told_as_such_and_leaves_what_was_there(tmp_path, monkeypatch):
    place = Location(tmp_path)
    place.write("x", b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EsaError, match="no space"):
        place.write("x", b"new")
    assert os.listdir(tmp_path) == ["x"]
    assert place.read("x") == b"old"


def test_names_of_locations():
    assert last_part("s3://bucket/a/six/?region=eu") == "six"
    assert last_part("s3://bucket") == "bucket"
    assert below("s3://bucket/a/?region=eu", "m") == "s3://bucket/a/m?region=eu"
    assert str(Location("s3://bucket/a?endpoint_override=127.0.0.1:1")) == "s3://bucket/a"
    assert Location("file:///tmp/x").path == Location("/tmp/x").path
