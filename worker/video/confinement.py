"""What a decoding process gives up before it looks at a byte: memory, time, files, the network.

Linux only. Everything here is the process's own doing and needs no privilege; it cannot be undone.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Network = Literal["none", "unlimited"]
"""``none``: the process has no network at all. ``unlimited``: the kernel did not let it go, and
only FFmpeg's list of protocols keeps it from being used."""

_LIMITED_CLOCK = -8
"""What the kernel compares RLIMIT_CPU with (CPUCLOCK_PROF of this process): by its ticks, of which
a process that wakes with them is charged whole ones. `getrusage` tells what was really used."""
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER = 0x1000_0000
_CLONE_NEWNET = 0x4000_0000

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
"""The same on every architecture."""
_LANDLOCK_ASK_VERSION = 1
_LANDLOCK_PATH, _LANDLOCK_NET_PORT = 1, 2
_READ_FILE, _CONNECT_TCP = 4, 2
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # by version of Landlock; 16 since
_CAPABILITIES_V3 = 0x2008_0522

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
    """Give up what decoding a file never needs; call with one thread, after all imports."""
    first_to_go()
    alone = leave_network()
    give_up_rest(None)
    return "none" if alone else "unlimited"


def first_to_go() -> None:
    """If the machine runs out of memory, this process is to go, not the worker."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def leave_network() -> bool:
    """Move into a name space whose only network is a loopback that is down; False: not allowed.

    The user it takes for that has no power over anything outside, also where we are root.
    """
    libc = ctypes.CDLL(None)
    return any(
        libc.unshare(flags) == 0 for flags in (_CLONE_NEWUSER | _CLONE_NEWNET, _CLONE_NEWNET)
    )


def give_up_rest(connect_port: int | None) -> Rest:
    """Everything but the network: to open files, to write, to gain rights.

    ``connect_port``: the only one that may still be connected to, where the kernel can tell.
    """
    _program_bytes()  # while it can be read
    os.umask(0o077)
    os.chdir("/")
    _lower(resource.RLIMIT_NOFILE, _MAX_FILES)
    _lower(resource.RLIMIT_FSIZE, 0)
    _lower(resource.RLIMIT_CORE, 0)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    version = _landlock(libc, connect_port)
    _drop_capabilities(libc)
    return Rest(no_files=version >= 1, one_port=version >= 4)


@dataclass(frozen=True, slots=True)
class Rest:
    """What the kernel could be asked for: ``no_files`` can be opened, ``one_port`` be reached."""

    no_files: bool
    one_port: bool


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathRule(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("fd", ctypes.c_int32))


class _PortRule(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("port", ctypes.c_uint64))


def _landlock(libc: ctypes.CDLL, connect_port: int | None) -> int:
    """Let this process open no file but of random numbers, and connect to one port at most.

    Returns the version used, 0 where there is none.
    """
    call = libc.syscall
    call.restype = ctypes.c_long
    number, size = ctypes.c_long, ctypes.c_size_t
    version = int(call(number(_LANDLOCK_CREATE), None, size(0), number(_LANDLOCK_ASK_VERSION)))
    if version < 1:
        return 0
    rules = _Ruleset(fs=(1 << _FILE_RIGHTS.get(version, 16)) - 1, net=3, scoped=3)
    # An older kernel refuses what it does not know.
    known = 8 if version < 4 else 16 if version < 6 else 24
    fd = int(call(number(_LANDLOCK_CREATE), ctypes.byref(rules), size(known), number(0)))
    if fd < 0:
        return 0
    try:
        _allow_random(call, fd)
        if connect_port is not None and version >= 4:
            allowed = _PortRule(allowed=_CONNECT_TCP, port=connect_port)
            kind = number(_LANDLOCK_NET_PORT)
            call(number(_LANDLOCK_ADD), number(fd), kind, ctypes.byref(allowed), number(0))
        return version if call(number(_LANDLOCK_RESTRICT), number(fd), number(0)) == 0 else 0
    finally:
        os.close(fd)


def _allow_random(call: Any, ruleset_fd: int) -> None:
    """Let random numbers be read: without them FFmpeg makes its own, for a second."""
    with contextlib.suppress(OSError):
        fd = os.open("/dev/urandom", os.O_PATH | os.O_CLOEXEC)
        try:
            allowed = _PathRule(allowed=_READ_FILE, fd=fd)
            number = ctypes.c_long
            call(
                *(number(_LANDLOCK_ADD), number(ruleset_fd), number(_LANDLOCK_PATH)),
                *(ctypes.byref(allowed), number(0)),
            )
        finally:
            os.close(fd)


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Also those over the name space that this process made for itself."""
    head = (ctypes.c_uint32 * 2)(_CAPABILITIES_V3, 0)
    libc.capset(head, (ctypes.c_uint32 * 6)())


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
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    until_s = math.ceil(time.clock_gettime(_LIMITED_CLOCK) + further_s) + 1
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
