"""Checkpoints of units that take long."""

import math
from types import SimpleNamespace

import pytest

from esa_ray.errors import EsaError
from esa_ray.measurements import unfinished
from esa_ray.measurements.unfinished import Unfinished, clear_all
from esa_ray.storage.location import Location

ROWS = [{"steps": 2, "nll": [0.1, math.inf], "saved": None}]


@pytest.fixture(params=["directory", "bucket"])
def place(request, tmp_path):
    """A study's place: a directory, and a bucket behind an S3 API server."""
    return Location(tmp_path if request.param == "directory" else request.getfixturevalue("bucket"))


def test_a_checkpoint_reads_back_bit_by_bit_until_it_is_cleared(place):
    state = bytes(range(256)) + b"\n{}\n"
    one, other = Unfinished(place, "1" * 16, "torch=2"), Unfinished(place, "2" * 16, "torch=2")
    assert one.read() == ([], None)
    one.keep(ROWS, lambda: state)
    assert Unfinished(place, "1" * 16, "torch=2").read() == (ROWS, state)
    assert Unfinished(place, "1" * 16, "torch=3").read() == ([], None)
    assert other.read() == ([], None)
    other.keep([], lambda: b"")
    one.clear()
    one.clear()  # none is no error
    assert (one.read(), other.read()) == (([], None), ([], b""))
    clear_all(place)
    clear_all(place)
    assert place.names("unfinished") == []


def test_writing_takes_a_tenth_of_the_time_at_most(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(unfinished, "time", SimpleNamespace(monotonic=lambda: clock.now))
    slow, written = Unfinished(Location(tmp_path), "1" * 16, "v"), []

    def state():
        written.append(clock.now)
        clock.now += 2.0  # so long a checkpoint takes
        return b"x"

    while clock.now < 200:
        slow.keep([], state)
        clock.now += 0.5
    assert written == [100.0, 120.0, 140.0, 160.0, 180.0]


def test_a_checkpoint_that_cant_be_written_costs_time_alone_and_isnt_tried_again(tmp_path, monkeypatch):
    place = Location(tmp_path)

    def full(*_):
        raise EsaError("no space is left")

    monkeypatch.setattr(place, "write", full)
    one = Unfinished(place, "1" * 16, "v")
    one.keep(ROWS, lambda: b"x")
    one.keep(ROWS, lambda: 1 / 0)
    assert one.read() == ([], None)
