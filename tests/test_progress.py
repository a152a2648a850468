"""How long a phase takes yet, by a clock that is ours."""

import pytest
from rich.progress import Progress

from esa_ray.progress import Lines, Tally, _Left


class Clock:
    """A clock that stands where it is put."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def shown(tally, total, done):
    """What the column of the bars says."""
    bars = Progress()
    task = bars.add_task("tunings", total=total, tally=tally)
    bars.update(task, completed=done)
    return _Left().render(bars.tasks[task]).plain


@pytest.mark.parametrize("seconds", [0.01, 1.0, 45.0, 900.0])
def test_steps_of_one_length_leave_as_many_times_that_length_however_long_they_are(clock, seconds):
    tally = Tally(clock=clock)
    for done in range(1, 9):
        clock.now += seconds
        tally.add(1)
        assert tally.left(10) == pytest.approx((10 - done) * seconds)


def test_the_time_left_runs_down_between_steps_and_grows_while_one_hangs(clock):
    tally = Tally(clock=clock)
    assert shown(tally, 4, 0) == "--:--"
    clock.now += 100
    tally.add(1)
    said = []
    for _ in range(3):
        said.append(shown(tally, 4, 1))
        clock.now += 40
    assert said == ["05:00", "04:20", "03:40"]
    clock.now = 100 + 400  # the second step alone has taken 300 s: it is at least 200 s a step, and two more follow
    assert tally.left(4) == 400
    clock.now = 100 + 800
    assert tally.left(4) == 800


def test_a_phase_that_is_done_has_no_time_left(clock):
    tally = Tally(clock=clock)
    clock.now += 10
    tally.add(4)
    assert (tally.left(4), shown(tally, 4, 4)) == (0, "")


def test_many_steps_at_once_count_as_many(clock):
    tally = Tally(clock=clock)
    clock.now += 30
    tally.add(15)
    assert tally.left(20) == pytest.approx(10)


def test_a_line_without_a_step_done_foresees_nothing(capsys):
    lines = Lines(every=0.0)
    lines.phase("tunings", 3)
    lines.advance(0, "one was killed")
    lines.advance(3, "all")
    first, second = capsys.readouterr().err.splitlines()
    assert first == "tunings: 0/3, one was killed"
    assert second.startswith("tunings: 3/3, ")
    assert ", 0 s left, all" in second
