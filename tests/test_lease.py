"""One driver at a time, in a directory and in a bucket; what a dead one left is taken over."""

import json
import os
import subprocess
import sys
import threading

import psutil
import pytest

from esa_ray.errors import EsaError
from esa_ray.host import machine
from esa_ray.storage import lease
from esa_ray.storage.lease import BEAT, STALE, Clock, Holder, held, holder
from esa_ray.storage.location import Location
from esa_ray.storage.store import RUNNING


@pytest.fixture(params=["directory", "bucket"])
def place(request, tmp_path, bucket):
    return Location(tmp_path if request.param == "directory" else bucket)


class Standing(Clock):
    """A clock that goes on only when it is told to, or when somebody does nothing but wait for it."""

    def __init__(self):
        self.time, self.waiting, self._moved = 0.0, 0, threading.Condition()

    def now(self):
        return self.time

    def pause(self, seconds):
        self.time += seconds

    def ended(self, end, seconds):
        with self._moved:
            until, self.waiting = self.time + seconds, self.waiting + 1
            self._moved.notify_all()
            while self.time < until and not end.is_set():
                self._moved.wait(0.01)  # whoever sets the end doesn't know of this clock
            return end.is_set()

    def beats(self, lease, n=1):
        """Let a lease give signs of life: back once it waits again, or has given up."""
        for _ in range(n):
            with self._moved:
                while not self.waiting and lease._thread.is_alive():
                    self._moved.wait(0.01)
                before, self.time = self.waiting, self.time + BEAT
                self._moved.notify_all()
                while self.waiting == before and lease._thread.is_alive():
                    self._moved.wait(0.01)


@pytest.fixture
def clock():
    return Standing()


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


def test_a_driver_of_another_machine_is_taken_over_once_it_is_silent(place, clock):
    leave(place, host="elsewhere", machine="another")
    told = []
    with held(place, told.append, clock):
        assert holder(place).host != "elsewhere"
        assert STALE <= clock.time < STALE + BEAT
    assert "elsewhere" in told[0]


def test_a_driver_of_another_machine_that_lives_is_not(place, clock):
    leave(place, host="elsewhere", machine="another")

    class Beating(Standing):
        def pause(self, seconds):
            super().pause(seconds)
            if self.time > STALE - BEAT:  # the last moment
                leave(place, host="elsewhere", machine="another", beat=1)

    with pytest.raises(EsaError, match="elsewhere"), held(place, clock=Beating()):
        pass


def test_a_driver_that_ends_while_it_is_waited_for_leaves_the_place_at_once(place):
    leave(place, host="elsewhere", machine="another")

    class Ending(Standing):
        def pause(self, seconds):
            super().pause(seconds)
            place.delete([RUNNING])

    clock = Ending()
    with held(place, clock=clock):
        assert clock.time < STALE


def test_who_seemed_dead_and_was_taken_over_learns_it_and_leaves_the_other_alone(place, clock):
    with held(place, clock=clock) as mine:
        leave(place, host="elsewhere", machine="another")
        clock.beats(mine)
        assert "elsewhere" in mine.lost
    assert holder(place).host == "elsewhere"


def test_signs_of_life_are_given(place, clock):
    with held(place, clock=clock) as mine:
        for beat in range(3):
            assert holder(place).beat == beat
            clock.beats(mine)


def test_the_real_clock_goes_and_an_end_is_not_waited_for(place):
    clock, end = Clock(), threading.Event()
    before = clock.now()
    clock.pause(0.01)
    assert clock.now() >= before + 0.01
    assert not clock.ended(end, 0.01)
    end.set()
    assert clock.ended(end, 10**6)


def test_two_containers_of_one_name_are_told_apart(place, clock):
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    leave(place, machine="another boot", pid=int(child.stdout))  # a number that nobody has here
    told = []
    with held(place, told.append, clock):
        assert told  # it was given time


def test_a_failing_network_ends_no_sign_of_life(place, clock, monkeypatch):
    real, fails = lease.holder, []

    def failing(where):
        if fails:
            raise EsaError(fails.pop())
        return real(where)

    monkeypatch.setattr(lease, "holder", failing)
    with held(place, clock=clock) as mine:
        fails += ["503 SlowDown", "503 SlowDown"]
        clock.beats(mine, 2)
        assert not fails
        assert holder(place).beat == 0
        clock.beats(mine, 2)
        assert holder(place).beat == 2
        leave(place, host="elsewhere", machine="another")
        clock.beats(mine)
        assert "elsewhere" in mine.lost


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"null", b'{"pid": "12"}'])
def test_a_broken_file_holds_nobody_off(place, content):
    place.write(RUNNING, content)
    with held(place):
        pass
