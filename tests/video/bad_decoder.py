"""The decoding program with one thing that a hostile file might make it do.

``python -m tests.video.bad_decoder WHAT FD PARENT``: limits, line and request are the real ones.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time

from worker.errors import RisError
from worker.video import decoding_child
from worker.video.decoding_child import Line
from worker.video.decoding_wire import HEAD, Kind

WHAT = sys.argv.pop(1)


def killed_after(frames: int, what: str):
    """An answer that goes wrong behind so many kept pictures."""

    class Failing(Line):
        said = 0

        def say(self, kind, told, imgs_hwc=()):
            if kind is Kind.FRAME:
                if self.said == frames:
                    wrong(what, self)
                self.said += 1
            super().say(kind, told, imgs_hwc)

    return Failing


def wrong(what: str, line: Line) -> None:
    fd = line._fd
    match what:
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "crashed":
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGSEGV)
        case "left":
            os._exit(3)
        case "asleep":
            time.sleep(600)
        case "busy":
            while True:
                pass
        case "alive for ever":
            while True:
                time.sleep(0.1)
                line.alive()
        case "greedy":
            taken = []
            while True:
                taken.append(bytearray(64 * 1024 * 1024))
        case "noise":
            os.write(fd, b"\xa5" * 4096)
        case "long":
            os.write(fd, HEAD.pack(b"RIS1", Kind.FRAME, 2**32 - 1))
        case "nested":
            body = b"[" * 30_000
            os.write(fd, HEAD.pack(b"RIS1", Kind.FRAME, len(body)) + body)
        case "unforeseen":
            raise ZeroDivisionError("by zero")
        case "untyped":
            raise AssertionError
        case "connecting":
            tell(fd, lambda: socket.create_connection(("127.0.0.1", int(os.environ["PORT"])), 1))
        case "writing":
            tell(fd, lambda: _write("/tmp/ris-decoder-wrote"))
        case "opening":
            tell(fd, lambda: [os.dup(0) for _ in range(100)])
        case "telling":
            raise RisError(str(sorted(os.environ)))


def tell(fd: int, attempt) -> None:
    try:
        attempt()
    except OSError as error:
        raise AssertionError(f"errno {error.errno}") from None
    raise AssertionError("it went through")


def _write(path: str) -> None:
    with open(path, "w") as file:  # noqa: PTH123
        file.write("x")


def start_failing() -> None:
    frames, _, what = WHAT.partition(":")
    decoding_child.Line = killed_after(int(frames), what)  # type: ignore[misc]
    if what == "before ready":
        sys.exit("no such luck")
    decoding_child.main()


if __name__ == "__main__":
    start_failing()
