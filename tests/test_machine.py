"""Machines and processes are told apart, and only what the dead left is deleted."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from esa_ray.host.machine import born, own_directory, this_machine


def child(code):
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_process_was_born_once_and_is_gone_when_it_has_ended_though_nobody_asked():
    process = child("input()")
    begun = born(process.pid)
    assert begun == born(process.pid) != born(os.getpid())
    process.stdin.close()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended and is still listed
    assert born(process.pid) is None
    process.wait()
    assert born(process.pid) is None


def test_every_process_of_a_machine_says_the_same_of_it():
    code = "from esa_ray.host.machine import this_machine; print(this_machine())"
    assert child(code).communicate()[0].strip() == this_machine()


def test_directories_of_dead_processes_are_deleted_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = child("")
    dead.wait()
    left = [tmp_path / f"esa-x-{pid}-abc" for pid in (dead.pid, os.getppid())]
    for folder in [*left, tmp_path / "esa-x-notes", tmp_path / f"other-{dead.pid}-abc"]:
        folder.mkdir()
    mine = Path(own_directory("esa-x-"))
    assert mine.is_dir()
    assert [folder.exists() for folder in left] == [False, True]
    assert (tmp_path / "esa-x-notes").exists()
    assert (tmp_path / f"other-{dead.pid}-abc").exists()
