"""What a decoding process gives up before it looks at a file: memory, time, files, the network.

Linux only. Everything here is the process's own doing and needs no privilege; it cannot be undone.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
import signal
from pathlib import Path
from typing import Literal

Network = Literal["none", "unlimited"]
"""``none``: the process has no network at all. ``unlimited``: the kernel did not let it go, and
only FFmpeg's list of protocols keeps it from being used."""

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER = 0x1000_0000
_CLONE_NEWNET = 0x4000_0000

_MAX_FILES = 32
_SPARE_BYTES = 512 * 1024 * 1024
"""Stacks and heaps of decoder threads, demuxer, and what a picture's conversion needs."""
_BYTES_PER_PX = 3
"""4:2:0 in 16-bit numbers; 4:2:2 and 4:4:4 of 8 bits fit too."""
_HELD_PICTURES = 17
"""References that H.264 and HEVC may keep, and the picture that is made."""
_USUAL_PX = 3840 * 2160


def die_with(parent_pid: int) -> None:
    """End when the thread that started this process does, however it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent_pid:  # it ended before the line above
        os._exit(1)


def confine() -> Network:
    """Give up what decoding never needs; call while there is one thread, after all imports."""
    libc = ctypes.CDLL(None)
    with contextlib.suppress(OSError):
        # If the machine runs out of memory, this process is to go, not the worker.
        Path("/proc/self/oom_score_adj").write_text("1000")
    # A name space of its own has no network but a loopback that is down; the new user it takes
    # has no power over anything outside, also where we are root.
    alone = any(
        libc.unshare(flags) == 0 for flags in (_CLONE_NEWUSER | _CLONE_NEWNET, _CLONE_NEWNET)
    )
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    os.umask(0o077)
    os.chdir("/")
    _lower(resource.RLIMIT_NOFILE, _MAX_FILES)
    _lower(resource.RLIMIT_FSIZE, 0)
    _lower(resource.RLIMIT_CORE, 0)
    return "none" if alone else "unlimited"


def memory_needed(px: int, threads: int) -> int:
    """Bytes that decoding pictures of ``px`` pixels may take beside the program itself."""
    return _SPARE_BYTES + (_HELD_PICTURES + decoder_threads(threads)) * _BYTES_PER_PX * px


def memory_for(coded_px: int, max_px: int, threads: int) -> int:
    """The same for a stream that begins with pictures of ``coded_px``: they may quadruple."""
    return memory_needed(min(max_px, max(4 * coded_px, _USUAL_PX)), threads)


def decoder_threads(threads: int) -> int:
    """How many threads decode; FFmpeg takes 16 at most when it may take all cores (0)."""
    return threads or min((os.cpu_count() or 1) + 1, 16)


def limit_memory(beyond_bytes: int) -> None:
    """Let this process's address space have ``beyond_bytes`` besides what it had at first."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = _program_bytes() + beyond_bytes
    resource.setrlimit(resource.RLIMIT_AS, (_at_most(wanted, hard), hard))


def renew_cpu(further_s: float) -> None:
    """Let this process use ``further_s`` more seconds of processor time before it is killed."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    until_s = math.ceil(used.ru_utime + used.ru_stime + further_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (_at_most(until_s, hard), hard))


_program: list[int] = []


def _program_bytes() -> int:
    """Address space of the program before it decoded anything."""
    if not _program:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _program.append(pages * resource.getpagesize())
    return _program[0]


def _lower(what: int, to: int) -> None:
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (_at_most(to, hard), _at_most(to, hard)))


def _at_most(wanted: int, hard: int) -> int:
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
