"""The process that live decoders are forked from: it has loaded what they need, and knows nothing.

``python -m worker.video.live_forker FD``: each message on the socket ``FD`` brings the descriptors
of one decoder, its line first; back go a pidfd of it and a pipe that tells how it ended. Addresses
and passwords go past it, over the line. When the socket closes it ends, and all decoders with it.
"""

from __future__ import annotations

import gc
import os
import selectors
import signal
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Final

from worker.video import live_child
from worker.video.confinement import die_with

FORKED = struct.Struct("<ii")
"""Process id and error number; one of them is 0."""
STATUS = struct.Struct("<i")
MAX_FDS: Final = 4


@dataclass(frozen=True, slots=True)
class _Decoder:
    pid: int
    pidfd: int
    status_fd: int


def main() -> None:
    """Fork decoders until nobody is there to ask for one."""
    control = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    gc.freeze()  # what the collector does not touch stays shared with the decoders
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.data is not None:
                    selector.unregister(key.fileobj)
                    _reap(key.data)
                elif not _serve(control, selector):
                    return


def _serve(control: socket.socket, selector: selectors.BaseSelector) -> bool:
    """Fork one decoder; False when nobody asks any more."""
    message, fds, _, _ = socket.recv_fds(control, 16, MAX_FDS)
    if not message:
        return False
    try:
        forked = _fork(fds)
    except OSError as error:
        control.sendall(FORKED.pack(0, error.errno or 1))
        return True
    finally:
        for fd in fds:
            os.close(fd)
    decoder, told_fd = forked
    socket.send_fds(control, [FORKED.pack(decoder.pid, 0)], [decoder.pidfd, told_fd])
    os.close(told_fd)
    selector.register(decoder.pidfd, selectors.EVENT_READ, decoder)
    return True


def _fork(fds: list[int]) -> tuple[_Decoder, int]:
    told_fd, status_fd = os.pipe()
    own_pid = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        os.close(told_fd)
        os.close(status_fd)
        raise
    if pid == 0:
        _decode(fds, own_pid)
    return _Decoder(pid, os.pidfd_open(pid), status_fd), told_fd


def _decode(fds: list[int], forker_pid: int) -> None:
    """Be a decoder; does not return."""
    try:
        die_with(forker_pid)
        live_child.close_others(fds)
        line = socket.socket(fileno=fds[0])
        live_child.main(line, fds[1] if len(fds) > 1 else None)
        os._exit(0)  # nothing is left to tidy up, and libraries may be in no state to
    finally:
        os._exit(1)


def _reap(decoder: _Decoder) -> None:
    _, status = os.waitpid(decoder.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    try:
        os.write(decoder.status_fd, STATUS.pack(code))
    except BrokenPipeError:
        pass  # nobody asks any more
    finally:
        os.close(decoder.status_fd)
        os.close(decoder.pidfd)


if __name__ == "__main__":
    main()
