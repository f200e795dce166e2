"""Decoding apart: a recorded file is read by a process of its own, limited and watched.

Whatever is in the file, the worker only reads checked messages. One process per file and slice
(:mod:`worker.video.decoding_child`); it is gone when the context ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worker.core.sampling import ChangePolicy, IntervalPolicy, SamplingPolicy
from worker.core.types import SizePx
from worker.errors import VideoUnreadable
from worker.video.container import check_file
from worker.video.decode import check_sizes
from worker.video.decoding_line import START_S, Child, Start, Started
from worker.video.decoding_wire import Request, Sampling
from worker.video.frame_store import storage_error
from worker.video.values import DecodeReport, SampledFrame, VideoInfo

_OF_THE_MACHINE = {
    *(errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    errno.ESTALE,
}
_KEPT_DEADLINES = 10
"""How many deadlines the next kept picture may take, beside the footage it lies behind."""


class _Spawned:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self._process = process
        self.pid = process.pid
        self.out_fd = process.stdout.fileno()

    def wait(self, timeout_s: float) -> int | None:
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        self._process.kill()
        assert self._process.stdout is not None
        self._process.stdout.close()


def child_command(fd: int) -> list[str]:
    """The decoding program for an open file."""
    name = "worker.video.decoding_child"
    return [sys.executable, "-P", "-s", "-m", name, str(fd), str(os.getpid())]


def decoder_env() -> dict[str, str]:
    """The environment of a process that decodes: without settings, without secrets."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return kept | {
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "LC_ALL": "C.UTF-8",
        # Threads and heaps that are never used would only take up address space.
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "2",
    }


def spawn(fd: int, request: bytes) -> Started:
    """Start the program in a session of its own with an environment that holds no secrets.

    Raises :class:`StorageFailed` where the machine cannot start it now.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - our own program
            child_command(fd),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(fd,),
            start_new_session=True,
            env=decoder_env(),
        )
    except OSError as error:  # too many processes or files: it goes on when there are fewer
        raise storage_error(error, Path(sys.executable)) from error
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died already: its silence tells
        process.stdin.write(request)
        process.stdin.close()
    return _Spawned(process)


def probe_apart(path: Path, max_px: int, *, deadline_s: float, start: Start = spawn) -> VideoInfo:
    """What :func:`worker.video.probe.probe` says of a file, found by a process of its own.

    Raises what that raises, and :class:`VideoKilledDecoder`, :class:`VideoTooSlow` when the file
    is too much for it.
    """
    request = Request(str(path), max_px, 1, deadline_s, None)
    with _open(path) as fd, Child(start, fd, request, _KEPT_DEADLINES * deadline_s) as child:
        info = child.info()
        child.next_frame()
        return info


@contextmanager
def sample_apart(
    path: Path,
    policy: SamplingPolicy,
    *,
    input_size: SizePx,
    picture_max_side_px: int,
    max_px: int,
    deadline_s: float,
    resume_after_pts: int | None = None,
    threads: int = 0,
    start: Start = spawn,
) -> Iterator[SampledApart]:
    """What :func:`worker.video.decode.sample_video` gives, decoded by a process of its own.

    ``deadline_s``: how long it may show no progress. The next kept picture may take ten times
    that, and the time of the footage it lies behind. Raises what ``sample_video`` raises, and
    while iterating also :class:`VideoKilledDecoder` and :class:`VideoTooSlow`: what came before
    is good.
    """
    check_sizes(input_size, picture_max_side_px)
    wanted = Sampling(policy, input_size, picture_max_side_px, resume_after_pts)
    request = Request(str(path), max_px, threads, deadline_s, wanted)
    kept_s = _KEPT_DEADLINES * deadline_s + _gap_s(policy)
    with _open(path) as fd, Child(start, fd, request, kept_s) as child:
        info = child.info()
        if resume_after_pts is not None:
            child.grant(max(0.0, info.t_s(resume_after_pts)))
        yield SampledApart(info, child)


def network_of_decoders() -> str:
    """How far a decoding process gets its network taken away here: ``none`` or ``unlimited``.

    Raises :class:`SetupFailed` when it cannot be started at all.
    """
    request = Request(os.devnull, 1, 1, START_S, None)
    fd = os.open(os.devnull, os.O_RDONLY)
    try:
        with Child(spawn, fd, request, START_S) as child:
            return child.network
    finally:
        os.close(fd)


class SampledApart:
    """Iterator over the kept pictures of one file; made by :func:`sample_apart`."""

    def __init__(self, info: VideoInfo, child: Child) -> None:
        self.info = info
        self._child = child

    def __iter__(self) -> Iterator[SampledFrame]:
        return self

    def __next__(self) -> SampledFrame:
        frame = self._child.next_frame()
        if frame is None:
            raise StopIteration
        return frame

    @property
    def report(self) -> DecodeReport:
        """Counts up to the picture that was given last; complete once there are no more."""
        return self._child.report

    @property
    def pid(self) -> int:
        """Of the process that decodes."""
        return self._child.pid


def _gap_s(policy: SamplingPolicy) -> float:
    """Seconds of footage that may lie between two kept pictures."""
    match policy:
        case IntervalPolicy():
            return policy.every_s
        case ChangePolicy():
            return policy.max_gap_s
        case _:
            return policy.min_gap_s


@contextmanager
def _open(path: Path) -> Iterator[int]:
    """The file, open for reading. Raises :class:`VideoUnreadable`, :class:`VideoInvalid`, and
    :class:`StorageFailed` where it is the disk or the machine that fails, not the path."""
    check_file(path)
    try:
        # Without waiting: what was a file a moment ago may be a pipe by now.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _OF_THE_MACHINE:
            raise storage_error(error, path) from error
        raise VideoUnreadable(f"{path} cannot be read ({error.strerror})") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise VideoUnreadable(f"{path} is not a regular file; give the path of one video file")
        yield fd
    finally:
        os.close(fd)
