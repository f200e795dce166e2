"""Ctrl-C is not lost in a library that swallows what it raises."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import pytest

from worker.admin.interrupts import heed_interrupts, pause


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    heed_interrupts()  # forgets what was asked
    for number, handler in before:
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_a_library_swallowed_is_raised_at_the_next_pause(number: signal.Signals) -> None:
    heed_interrupts()
    pause(0)
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(number)
    with pytest.raises(KeyboardInterrupt):
        pause(0)


def test_what_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    heed_interrupts()
    signal.raise_signal(signal.SIGINT)
    pause(0)
