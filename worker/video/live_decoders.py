"""Starts the processes that live feeds are decoded by, from one that has loaded their program."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Final

from worker.errors import FeedFailed, SetupFailed
from worker.video.decoding import decoder_env
from worker.video.live_forker import FORKED, STATUS

_START_S: Final = 60.0
_TRIES: Final = 2


def forker_command(fd: int) -> list[str]:
    """The program that decoders are forked from, for a socket."""
    return [sys.executable, "-P", "-s", "-m", "worker.video.live_forker", str(fd)]


class LiveDecoder:
    """One running decoder: its line, and what it takes to end it. ``line`` is non-blocking."""

    def __init__(self, pid: int, pidfd: int, status_fd: int, line: socket.socket) -> None:
        self.pid, self.line = pid, line
        self._pidfd, self._status_fd = pidfd, status_fd

    def wait(self, timeout_s: float) -> int | None:
        """Its exit status, negative for a signal; None while it runs, or when nobody knows."""
        ended = select.poll()
        ended.register(self._status_fd, select.POLLIN)
        if not ended.poll(timeout_s * 1000):
            return None
        told = os.read(self._status_fd, STATUS.size)
        return int(STATUS.unpack(told)[0]) if len(told) == STATUS.size else None

    def kill(self) -> None:
        """End it now; used once, and last."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self.line.close()
        os.close(self._pidfd)
        os.close(self._status_fd)


class LiveDecoders:
    """The forker of this process, started when it is first needed, and again when it is gone.

    ``command``: its program, for a socket's descriptor.
    """

    def __init__(self, command: Callable[[int], Sequence[str]] = forker_command) -> None:
        self._command = command
        self._lock = threading.Lock()
        self._forker: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def start(self, given_fds: Sequence[int]) -> LiveDecoder:
        """A new decoder with these descriptors; what it is to do is told over its line.

        Raises :class:`FeedFailed` where the machine has no room for it, :class:`SetupFailed` where
        the program cannot be started at all.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs, self._lock:
                pid, fds = self._forked([theirs.fileno(), *given_fds])
        except BaseException:
            ours.close()
            raise
        ours.setblocking(False)
        return LiveDecoder(pid, fds[0], fds[1], ours)

    def _forked(self, fds: Sequence[int]) -> tuple[int, list[int]]:
        for tried in range(_TRIES):
            control = self._running()
            try:
                socket.send_fds(control, [b"fork"], list(fds))
                told, got, _, _ = socket.recv_fds(control, FORKED.size, 2)
            except OSError as error:
                told, got = b"", []
                cause: OSError | None = error
            else:
                cause = None
            if len(told) == FORKED.size:
                pid, number = FORKED.unpack(told)
                if len(got) == 2:
                    return pid, got
                text = f"no process could be started to decode it ({os.strerror(number)})"
                raise FeedFailed(text, reason="decoder_killed")
            self._end()
            if tried + 1 == _TRIES:
                text = "the process that starts live decoders does not start; the log says why"
                raise SetupFailed(text) from cause
        raise AssertionError

    def _running(self) -> socket.socket:
        if self._control is not None:
            return self._control
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._forker = subprocess.Popen(  # noqa: S603 - our own program
                    self._command(theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                    env=decoder_env(),
                )
            except OSError as error:
                ours.close()
                raise FeedFailed(
                    f"no process could be started to decode it ({error.strerror})",
                    reason="decoder_killed",
                ) from error
        ours.settimeout(_START_S)
        self._control = ours
        return ours

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._forker is not None:
            self._forker.kill()
            self._forker.wait()
            self._forker = None


DECODERS: Final = LiveDecoders()
"""Of this process."""
