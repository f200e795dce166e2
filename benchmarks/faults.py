"""A process that dies, or whose disk or database fails it, at a step of its choice."""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import psycopg

KINDS = ("kill", "ENOSPC", "EIO", "lost")
"""kill -9; the disk is full; the disk is broken; the connection is lost at a commit."""
STRUCK = "at "
"""How the line begins in which a process says where it was struck."""
_STEPS = (
    "open",
    "pread",
    "preadv",
    "pwrite",
    "ftruncate",
    "fsync",
    "replace",
    "mkdir",
    "unlink",
    "rmdir",
    "sync",
)
_COMMITS = ("commit", "committed")


class Fault:
    """Counts steps of this thread, not those of the one that renews the lease, which come when they
    like; at the chosen one it dies, or is given an error.

    ``kind``: one of ``KINDS``. Commits count for kills and lost connections only, everything else
    not for the latter; sync, which cannot fail, for kills only.
    """

    def __init__(self, kind: str, step: int, half: bool, said: int) -> None:
        self.kind, self.step, self.half, self.said = kind, step, half, said
        self.counted = 0
        self.thread = threading.get_ident()

    def _counts(self, name: str) -> bool:
        if threading.get_ident() != self.thread:
            return False
        if self.kind == "kill":
            return True
        return (name in _COMMITS) == (self.kind == "lost") and name != "sync"

    def count(self, name: str, first: Callable[[], object] = lambda: None) -> None:
        if not self._counts(name):
            return
        self.counted += 1
        if self.counted == self.step:
            first()
            say(self.said, f"{STRUCK}{name}\n")
            if self.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.kind == "lost":
                raise psycopg.OperationalError("the connection is lost")
            number = int(getattr(errno, self.kind))
            raise OSError(number, os.strerror(number))

    def watch(self) -> None:
        """From here on every step of this process counts."""
        for name in _STEPS:
            setattr(os, name, self._watched(name, getattr(os, name)))
        builtins.open = io.open = self._watched("file", io.open)
        commit = psycopg.Connection.commit

        def watched(connection: Any) -> None:
            self.count("commit", connection.close)
            commit(connection)
            self.count("committed", connection.close)

        psycopg.Connection.commit = watched  # type: ignore[method-assign, assignment]

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*given: Any, **named: Any) -> Any:
            def half() -> None:
                descriptor, body, offset = given
                call(descriptor, body[: len(body) // 2], offset)

            self.count(name, half if name == "pwrite" and self.half else lambda: None)
            return call(*given, **named)

        return watched


def say(said: int, text: str) -> None:
    """Tell the parent; ``said`` is the descriptor that :func:`in_child` gives."""
    os.write(said, text.encode())


def in_child(work: Callable[[int], None]) -> list[str]:
    """Run ``work`` in a forked process until it ends or dies; the lines it wrote to the descriptor
    that it is given."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work(writing)
            os._exit(0)
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as stream:
        said = stream.read().split("\n")
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        raise SystemExit("a process failed; see above")
    return said
