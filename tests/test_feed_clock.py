"""Times of live pictures: always rising, whatever clocks do; sampling goes on meanwhile."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.backoff import retry_delay_s
from worker.core.feed_clock import HELD_STEP_S, FeedClock

START_S = 1_700_000_000.0


@given(
    steps=st.lists(
        st.tuples(
            st.floats(0.01, 20),  # of the stream's clock
            st.floats(-2, 20),  # how late it came
            st.none() | st.floats(-100, 100),  # how wrong the camera's clock is
            st.booleans(),  # reconnected before
        ),
        max_size=60,
    ),
    last=st.none() | st.floats(-3000, 3000),
)
def test_times_always_rise_and_so_do_those_of_sampling(steps, last):
    clock = FeedClock(None if last is None else START_S + last, 30.0)
    stream_s, times = 0.0, [] if last is None else [START_S + last]
    samples: list[float] = []
    for step_s, late_s, wrong_s, reconnected in steps:
        if reconnected:
            clock.reconnected()
        stream_s += step_s
        arrival_s = START_S + stream_s + late_s
        timed = clock.at(stream_s, arrival_s, None if wrong_s is None else arrival_s + wrong_s)
        times.append(timed.t_s)
        samples.append(timed.sample_s)
    assert all(before < after for before, after in pairwise(times))
    assert all(before < after for before, after in pairwise(samples))


def at(clock: FeedClock, second: float, wrong_s: float | None = None):
    arrival_s = START_S + second
    return clock.at(second, arrival_s, None if wrong_s is None else arrival_s + wrong_s)


def test_a_cameras_clock_is_believed_within_the_tolerance_only():
    clock = FeedClock(None, 10.0)
    assert (at(clock, 0, 3).t_s, at(clock, 1, 3).source) == (START_S + 3, "ntp")
    beyond = at(clock, 60, 3600)
    assert (beyond.t_s, beyond.source, beyond.jumped) == (START_S + 60, "arrival", True)


def test_a_clock_that_is_set_back_holds_time_but_not_sampling():
    clock = FeedClock(None, 60.0)
    ahead = at(clock, 0, 30)
    held = [at(clock, second, 0) for second in range(1, 31)]
    assert {timed.source for timed in held} == {"held"}
    steps_s = [after.t_s - before.t_s for before, after in pairwise([ahead, *held])]
    assert steps_s == pytest.approx([HELD_STEP_S] * 30, rel=0.001)
    evenly = [START_S + 30 + second for second in range(1, 31)]
    assert [timed.sample_s for timed in held] == evenly
    again = at(clock, 32, 0)
    assert (again.t_s, again.source) == (START_S + 32, "ntp")


def test_times_are_skipped_only_when_a_clock_goes_forward():
    """A camera whose clock is heard of after its first pictures, set forward, back and forward."""
    clock = FeedClock(None, 60.0)
    wrong_s = [None, 0.2, 0.2, 30, 30, 0, 0, 30, 30, 3600]
    found = [at(clock, second, given).skipped for second, given in enumerate(wrong_s)]
    assert [second for second, skipped in enumerate(found) if skipped] == [3, 7]
    clock.reconnected()
    assert not at(clock, 100, 0).skipped


def test_a_new_connection_starts_by_arrival_however_short_the_last_one_was():
    clock = FeedClock(None, 10.0)
    at(clock, 1)
    clock.reconnected()
    timed = clock.at(0.0, START_S + 6, None)
    assert (timed.t_s, timed.jumped) == (START_S + 6, True)


def test_late_pictures_keep_their_times():
    """The network stood still and hands out at once what it held."""
    clock = FeedClock(None, 10.0)
    at(clock, 0)
    late = [clock.at(second, START_S + 8, None).t_s for second in (1, 2, 3)]
    assert late == [START_S + 1, START_S + 2, START_S + 3]


def test_this_machines_own_clock_was_a_year_ahead():
    clock = FeedClock(START_S + 3.15e7, 10.0)
    assert at(clock, 0).t_s == START_S


def test_waits_grow_up_to_the_cap_and_differ():
    assert [retry_delay_s(n, 0.25, 2.0, 1.0) for n in (1, 2, 3, 4, 5, 5000)] == [
        0.25, 0.5, 1.0, 2.0, 2.0, 2.0,
    ]  # fmt: skip
    assert retry_delay_s(9, 0.25, 2.0, 0.0) == 1.0
