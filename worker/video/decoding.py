"""Decoding apart: a recorded file is read by a process of its own, limited and watched.

Whatever is in the file, the worker only reads checked messages. One process per file and slice
(:mod:`worker.video.decoding_child`); it is gone when the context ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import structlog

from worker.core.sampling import ChangePolicy, IntervalPolicy, SamplingPolicy
from worker.core.types import ImageArray, SizePx
from worker.errors import (
    InputInvalid,
    RisError,
    SetupFailed,
    StorageFailed,
    VideoInvalid,
    VideoKilledDecoder,
    VideoTooSlow,
    VideoUnreadable,
)
from worker.video.container import check_file
from worker.video.decode import check_sizes
from worker.video.decoding_wire import (
    HEAD,
    Json,
    Kind,
    Request,
    Sampling,
    WireBroken,
    error_from_json,
    frame_from_json,
    info_from_json,
    network_from_json,
    read_head,
    read_object,
    report_from_json,
)
from worker.video.values import DecodeReport, SampledFrame, VideoInfo

log = structlog.get_logger()

_ERRORS = (VideoUnreadable, VideoInvalid, VideoKilledDecoder, StorageFailed, InputInvalid)
_PIPE_BYTES = 1024 * 1024
_START_S = 60.0
_END_S = 5.0
_KEPT_DEADLINES = 10
"""How many deadlines the next kept picture may take, beside the footage it lies behind."""
_NOTHING_YET = DecodeReport(0, 0, 0, 0, truncated=False, last_pts=None, frames_expected=None)


class Started(Protocol):
    """A decoding process that was given its file and its request."""

    pid: int
    out_fd: int

    def wait(self, timeout_s: float) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""

    def kill(self) -> None:
        """End it now."""


Start = Callable[[int, bytes], Started]
"""Starts a decoding process on an open file and a request."""


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


def spawn(fd: int, request: bytes) -> Started:
    """Start the program in a session of its own with an environment that holds no secrets."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    process = subprocess.Popen(  # noqa: S603 - our own program
        child_command(fd),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=(fd,),
        start_new_session=True,
        env=kept
        | {
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            "LC_ALL": "C.UTF-8",
            # Threads and heaps that are never used would only take up address space.
            "OPENBLAS_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "2",
        },
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died already: its silence tells
        process.stdin.write(request)
        process.stdin.close()
    return _Spawned(process)


def probe_apart(
    path: Path, max_px: int, *, deadline_s: float, start: Start = spawn
) -> VideoInfo:
    """What :func:`worker.video.probe.probe` says of a file, found by a process of its own.

    Raises what that raises, and :class:`VideoKilledDecoder`, :class:`VideoTooSlow` when the file
    is too much for it.
    """
    request = Request(str(path), max_px, 1, deadline_s, None)
    with _open(path) as fd, _Child(start, fd, request, _KEPT_DEADLINES * deadline_s) as child:
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
    with _open(path) as fd, _Child(start, fd, request, kept_s) as child:
        info = child.info()
        if resume_after_pts is not None:
            child.grant(max(0.0, info.t_s(resume_after_pts)))
        yield SampledApart(info, child)


def network_of_decoders() -> str:
    """How far a decoding process gets its network taken away here: ``none`` or ``unlimited``.

    Raises :class:`SetupFailed` when it cannot be started at all.
    """
    request = Request(os.devnull, 1, 1, _START_S, None)
    fd = os.open(os.devnull, os.O_RDONLY)
    try:
        with _Child(spawn, fd, request, _START_S) as child:
            return child.network
    finally:
        os.close(fd)


class SampledApart:
    """Iterator over the kept pictures of one file; made by :func:`sample_apart`."""

    def __init__(self, info: VideoInfo, child: _Child) -> None:
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


class _Child:
    """The watched end of the line to one decoding process."""

    def __init__(self, start: Start, fd: int, request: Request, kept_s: float) -> None:
        self._start, self._fd, self._request = start, fd, request
        self._kept_s = self._left_s = kept_s
        self._ended = False
        self.report = _NOTHING_YET
        self.network = ""

    def __enter__(self) -> _Child:
        self._started = self._start(self._fd, self._request.to_bytes())
        self.pid = self._started.pid
        try:
            os.set_blocking(self._started.out_fd, False)
            with contextlib.suppress(OSError):  # past what this user may have: smaller, slower
                fcntl.fcntl(self._started.out_fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            self._greet()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._started.kill()
        if self._started.wait(_END_S) is None:
            log.warning("decoder_does_not_end", pid=self.pid)  # it waits for a disk

    def grant(self, further_s: float) -> None:
        """Let the next kept picture take that much longer, once."""
        self._left_s += further_s

    def info(self) -> VideoInfo:
        """What the file is; the first thing that is told."""
        with self._believing():
            kind, told = self._message()
            if kind is not Kind.INFO:
                raise WireBroken(f"{kind.name} out of turn")
            return info_from_json(told)

    def next_frame(self) -> SampledFrame | None:
        """The next kept picture, None when there are no more."""
        if self._ended:
            return None
        with self._believing():
            kind, told = self._message()
            if kind is Kind.FRAME and self._request.sampling is not None:
                return self._frame(told, self._request.sampling)
            if kind is not Kind.END:
                raise WireBroken(f"{kind.name} out of turn")
            if self._request.sampling is not None:
                self.report = report_from_json(told.get("report"))
            self._ended = True
            return None

    def _frame(self, told: Json, wanted: Sampling) -> SampledFrame:
        head = frame_from_json(told, wanted.picture_max_side_px)
        last_pts = wanted.resume_after_pts
        if self.report.frames_kept:
            last_pts = self._last_pts
        if last_pts is not None and head.pts <= last_pts:
            raise WireBroken("a picture whose time goes back")
        until_s = time.monotonic() + self._request.stretch_s
        img_input_hwc = self._picture(wanted.input_size, until_s)
        img_picture_hwc = self._picture(head.picture, until_s)
        self._left_s, self.report, self._last_pts = self._kept_s, head.report, head.pts
        return SampledFrame(head.pts, head.t_s, head.keyframe, img_input_hwc, img_picture_hwc)

    def _greet(self) -> None:
        """Wait until the limits hold: before that, no byte of the file was looked at."""
        try:
            kind, told = self._receive(time.monotonic() + max(_START_S, self._request.stretch_s))
            if kind is not Kind.READY:
                raise WireBroken(f"{kind.name} out of turn")
            self.network = network_from_json(told)
        except (WireBroken, _Late, EOFError) as error:
            status = self._started.wait(_END_S if isinstance(error, EOFError) else 0)
            raise SetupFailed(
                f"the process that decodes video did not start (status {status},"
                f" {error or 'it said nothing'}); the log above says why"
            ) from error

    def _message(self) -> tuple[Kind, Json]:
        """The next message that is more than a sign of life. Raises the error that it tells."""
        while True:
            began_s = time.monotonic()
            patience_s = min(self._request.stretch_s, max(0.0, self._left_s))
            kind, told = self._receive(began_s + patience_s)
            self._left_s -= time.monotonic() - began_s
            if kind is Kind.FAILED:
                raise error_from_json(told, _ERRORS)
            if kind is not Kind.ALIVE:
                return kind, told

    def _receive(self, until_s: float) -> tuple[Kind, Json]:
        head = bytearray(HEAD.size)
        self._fill(memoryview(head), until_s)
        kind, length = read_head(bytes(head))
        body = bytearray(length)
        self._fill(memoryview(body), until_s)
        return kind, read_object(bytes(body))

    def _picture(self, size: SizePx, until_s: float) -> ImageArray:
        img_hwc = np.empty((*size, 3), np.uint8)
        self._fill(memoryview(img_hwc).cast("B"), until_s)
        return img_hwc

    def _fill(self, room: memoryview, until_s: float) -> None:
        """Read exactly so much. Raises :class:`_Late`, and ``EOFError`` when no more comes."""
        fd, filled = self._started.out_fd, 0
        ready = select.poll()
        ready.register(fd, select.POLLIN)
        while filled < len(room):
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                raise _Late
            if not ready.poll(left_s * 1000):
                continue
            try:
                count = os.readv(fd, [room[filled:]])
            except BlockingIOError:
                continue
            if count == 0:
                raise EOFError
            filled += count

    @contextmanager
    def _believing(self) -> Iterator[None]:
        """Tell what went wrong with the process as a typed error about its file."""
        name = self._request.name
        try:
            yield
        except WireBroken as error:
            raise VideoKilledDecoder(
                f"{name} made its decoder answer nonsense ({error}); convert the file"
            ) from error
        except _Late:
            raise self._late(name) from None
        except EOFError:
            raise _death(name, self._started.wait(_END_S), self._request.stretch_s) from None

    def _late(self, name: str) -> RisError:
        if _waits_for_disk(self.pid):
            return StorageFailed(f"reading {name} hangs; check the disk or the network it is on")
        return VideoTooSlow(
            f"{name} gave its decoder nothing to show within the deadline of"
            f" {self._request.stretch_s:g} s (RIS_DECODE_DEADLINE_S); convert the file"
        )


class _Late(Exception):
    """The deadline is over."""


def _death(name: str, status: int | None, deadline_s: float) -> RisError:
    if status is not None and status < 0:
        with contextlib.suppress(ValueError):
            number = signal.Signals(-status)
            if number is signal.SIGXCPU:
                return VideoTooSlow(
                    f"{name} kept its decoder busy beyond the deadline of {deadline_s:g} s"
                    " (RIS_DECODE_DEADLINE_S); convert the file"
                )
            return VideoKilledDecoder(
                f"{name} ended the process that decoded it ({number.name}); convert the file"
            )
    return VideoKilledDecoder(
        f"{name} ended the process that decoded it (status {status}); convert the file"
    )


def _waits_for_disk(pid: int) -> bool:
    try:
        told = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return told.rpartition(")")[2].split()[:1] == ["D"]


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
    """The file, open for reading. Raises :class:`VideoUnreadable`, :class:`VideoInvalid`."""
    check_file(path)
    try:
        # Without waiting: what was a file a moment ago may be a pipe by now.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise VideoUnreadable(f"{path} cannot be read ({error.strerror})") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise VideoUnreadable(f"{path} is not a regular file; give the path of one video file")
        yield fd
    finally:
        os.close(fd)
