"""The process that live decoders are forked from, whose decoders do what a stream might make them.

``python -m tests.video.bad_live WHAT FD``: they do it at pictures 208 wide. Limits, line and
request are the real ones.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

from worker.video import live_child, live_forker
from worker.video.live import LiveVideo
from worker.video.live_child import Line
from worker.video.live_wire import HEAD, Said, failure_to_json, pack, size_to_bytes

WHAT = sys.argv.pop(1)
BAD_W_PX = 208
REAL = LiveVideo.step, Line.say


def step(video: LiveVideo):
    pictures = REAL[0](video)
    if pictures and pictures[0].picture.width == BAD_W_PX:
        wrong()
    return pictures


def say(line: Line, said: Said, body=b"", pixels=()) -> None:
    if BAD_LINE:
        match WHAT, said:
            case "noise", Said.SEEN:
                line._connection.sendall(b"\xa5" * 4096)
            case "long", Said.SEEN:
                line._connection.sendall(HEAD.pack(b"RIS2", Said.SEEN, 2**32 - 1))
            case "not a number", Said.SEEN:
                body = b"\xff" * len(body)
            case "large", Said.PIXELS:
                line._connection.sendall(pack(said, size_to_bytes((2**31, 2**31))))  # type: ignore[arg-type]
            case "telling", Said.SEEN:
                told = failure_to_json("auth", f"says {sys.orig_argv} {SECRETS}")
                line.say_object(Said.FAILED, told)
    REAL[1](line, said, body, pixels)


SECRETS: list[str] = []
BAD_LINE = False


def wrong() -> None:
    global BAD_LINE  # noqa: PLW0603
    match WHAT:
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
        case "greedy":
            taken = []
            while True:
                taken.append(bytearray(64 * 1024 * 1024))
        case "unforeseen":
            raise ZeroDivisionError("by zero")
        case "reading":
            tell(lambda: Path("/proc/self/environ").read_bytes())
        case "writing":
            tell(lambda: Path("/tmp/ris-decoder-wrote").write_text("x"))
        case "connecting":
            tell(lambda: socket.create_connection((os.environ["HOST"], int(os.environ["PORT"])), 1))
        case "opening":
            tell(lambda: [os.dup(0) for _ in range(100)])
        case "environment":
            raise AssertionError(str(sorted(os.environ)))
        case _:
            BAD_LINE = True


def tell(attempt) -> None:
    try:
        attempt()
    except OSError as error:
        raise AssertionError(f"errno {error.errno}") from None
    raise AssertionError("it went through")


def main() -> None:
    real = live_child.serve

    def serve(request, line, source_fd) -> None:
        SECRETS.append(request.url)
        real(request, line, source_fd)

    live_child.serve = serve
    LiveVideo.step = step  # type: ignore[method-assign, assignment]
    Line.say = say  # type: ignore[method-assign, assignment]
    if WHAT == "no name space":
        live_child.leave_network = lambda: False  # type: ignore[attr-defined]
    live_forker.main()


if __name__ == "__main__":
    main()
