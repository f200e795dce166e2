"""Ctrl-C and SIGTERM end a command, also where a library swallowed what they raised."""

from __future__ import annotations

import signal
import threading
import time

_asked = threading.Event()


def heed_interrupts() -> None:
    """From now on both raise ``KeyboardInterrupt`` in the main thread, and :func:`pause` does so
    again: an exception that lands in a destructor or a bare ``except`` is lost."""
    _asked.clear()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell's background job has it
            signal.signal(number, _interrupt)


def pause(seconds: float) -> None:
    """Sleep between two looks at something that is waited for. Raises ``KeyboardInterrupt``."""
    if _asked.is_set():
        raise KeyboardInterrupt
    time.sleep(seconds)


def _interrupt(_number: int, _frame: object) -> None:
    _asked.set()
    raise KeyboardInterrupt
