"""One driver at a time, in a directory and in a bucket; what a dead one left is taken over."""

import json
import os
import subprocess
import sys

import psutil
import pytest

from esa_ray import lease, machine
from esa_ray.errors import EsaError
from esa_ray.lease import Holder, held, holder
from esa_ray.place import Place
from esa_ray.store import RUNNING


@pytest.fixture(params=["directory", "bucket"])
def place(request, tmp_path, bucket):
    return Place(tmp_path if request.param == "directory" else bucket)


def leave(place, **changes):
    content = vars(Holder.myself()) | {"owner": "other"} | changes
    place.write(RUNNING, json.dumps(content).encode())


def test_the_second_is_refused_by_the_name_of_the_first(place):
    with held(place):
        with pytest.raises(EsaError, match=f"process {os.getpid()} on ") as caught, held(place):
            pass
        assert "\n" not in str(caught.value)
        assert holder(place).pid == os.getpid()
    assert holder(place) is None
    with held(place):
        pass


def test_what_a_killed_process_of_this_machine_left_is_taken_over_at_once(place):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    leave(place, pid=child.pid, born=machine.born(child.pid))
    with pytest.raises(EsaError, match=str(child.pid)), held(place):
        pass
    child.kill()
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:  # dead, though nobody has asked for its status
        pass
    with held(place):
        assert holder(place).pid == os.getpid()
    child.wait()
    leave(place, pid=child.pid)
    with held(place):
        pass


def test_a_process_number_that_was_given_to_another_process_is_no_sign_of_life(place):
    leave(place, born="0")
    with held(place):
        pass


def test_a_driver_of_another_machine_is_taken_over_once_it_is_silent(place, monkeypatch):
    monkeypatch.setattr(lease, "STALE", 0.6)
    monkeypatch.setattr(lease, "BEAT", 0.1)
    leave(place, host="elsewhere", machine="another")
    told = []
    with held(place, told.append):
        assert holder(place).host != "elsewhere"
    assert "elsewhere" in told[0]


def test_a_driver_of_another_machine_that_lives_is_not(place, monkeypatch):
    monkeypatch.setattr(lease, "STALE", 5.0)
    monkeypatch.setattr(lease, "BEAT", 0.1)
    leave(place, host="elsewhere", machine="another")
    beats = iter(range(1, 10**6))
    real = lease.holder

    def beating(where):
        leave(place, host="elsewhere", machine="another", beat=next(beats))
        return real(where)

    monkeypatch.setattr(lease, "holder", beating)
    with pytest.raises(EsaError, match="elsewhere"), held(place):
        pass


def test_who_seemed_dead_and_was_taken_over_learns_it_and_leaves_the_other_alone(place, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.05)
    with held(place) as mine:
        leave(place, host="elsewhere", machine="another")
        mine._thread.join(5)
        assert "elsewhere" in mine.lost
    assert holder(place).host == "elsewhere"


def test_signs_of_life_are_given(place, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.05)
    with held(place) as mine:
        for _ in range(200):
            if (holder(place) or mine.mine).beat >= 2:
                break
            mine._ended.wait(0.05)
        assert holder(place).beat >= 2


def test_two_containers_of_one_name_are_told_apart(place, monkeypatch):
    monkeypatch.setattr(lease, "STALE", 0.3)
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    leave(place, machine="another boot", pid=int(child.stdout))  # a number that nobody has here
    told = []
    with held(place, told.append):
        assert told  # it was given time


def test_a_failing_network_ends_no_sign_of_life(place, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.05)
    real, calls = lease.holder, []

    def failing(where):
        calls.append(where)
        if len(calls) in (3, 4):
            raise EsaError("503 SlowDown")
        return real(where)

    monkeypatch.setattr(lease, "holder", failing)
    with held(place) as mine:
        while len(calls) < 6:
            mine._ended.wait(0.05)
        assert mine._thread.is_alive()
        leave(place, host="elsewhere", machine="another")
        mine._thread.join(5)
        assert "elsewhere" in mine.lost


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"null", b'{"pid": "12"}'])
def test_a_broken_file_holds_nobody_off(place, content):
    place.write(RUNNING, content)
    with held(place):
        pass
