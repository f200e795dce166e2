"""Damaged video by the thousand: every one ends, as `done`, `partial` or `failed` with a code.

    python -m benchmarks.fuzz_decode --inputs 50000
    python -m benchmarks.fuzz_decode --inputs 2000 --fresh 40

Clips of nine containers and eight codecs are made small, then damaged: bits flipped, runs of bytes
overwritten, cut out, doubled, moved or spliced from another clip, numbers set to extremes.
Each input gets a process of its own with the product's limits, line and deadline. Most of these are
forked from one that has imported PyAV, which saves the start of Python; the first `--fresh` are
started as the product starts them. Found inputs that break the rules are kept in `--keep`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.stream import VideoStream

from worker.core.sampling import IntervalPolicy, KeyframePolicy, SamplingPolicy
from worker.core.types import SizePx
from worker.errors import RisError
from worker.video.decoding import sample_apart, spawn
from worker.video.decoding_child import serve
from worker.video.decoding_line import Start, Started
from worker.video.decoding_wire import Request

SEEDS = [
    ("a.mp4", "libx264", "mp4", {}),
    ("b.mp4", "mpeg4", "mp4", {"movflags": "faststart"}),
    ("c.mp4", "libx264", "mp4", {"movflags": "frag_keyframe+empty_moov"}),
    ("d.mov", "mjpeg", "mov", {}),
    ("e.mkv", "libx264", "matroska", {}),
    ("f.webm", "libvpx", "webm", {}),
    ("g.avi", "mpeg4", "avi", {}),
    ("h.ts", "libx264", "mpegts", {}),
    ("i.ts", "mpeg2video", "mpegts", {}),
    ("j.flv", "flv", "flv", {}),
    ("k.mpg", "mpeg1video", "mpeg", {}),
    ("l.mjpeg", "mjpeg", "mjpeg", {}),
    ("m.mkv", "ffv1", "matroska", {}),
]
INPUT = SizePx(32, 32)
MAX_PX = 1_000_000
FRAMES = 24
EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\1")
SLACK_S = 5.0
"""A busy machine may end a process this much after its deadline."""


@dataclass(frozen=True)
class Ending:
    """How one input ended."""

    state: str
    code: str | None
    seconds: float
    decoded: int | None = None


class Forked:
    """A decoding process forked from this one, which has one thread."""

    def __init__(self, fd: int, request: bytes) -> None:
        self.out_fd, out = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self.out_fd)
                silent = os.open(os.devnull, os.O_RDWR)
                for taken in (0, 1, 2):
                    os.dup2(silent, taken)
                serve(Request.from_bytes(request), fd, out)
            finally:
                os._exit(0)
        os.close(out)
        self._status: int | None = None

    def wait(self, timeout_s: float) -> int | None:
        """As of :class:`worker.video.decoding.Started`."""
        if self._status is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                if select.select([pidfd], [], [], timeout_s)[0]:
                    self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            finally:
                os.close(pidfd)
        return self._status

    def kill(self) -> None:
        """As of :class:`worker.video.decoding.Started`."""
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
        os.close(self.out_fd)


def forked(fd: int, request: bytes) -> Started:
    """A :data:`worker.video.decoding.Start`."""
    return Forked(fd, request)


def make_seed(path: Path, codec: str, container: str, options: dict[str, str]) -> bytes:
    """A clip of 24 small moving pictures."""
    rng = np.random.default_rng(5)
    ground = rng.integers(0, 255, (48, 64, 3), np.uint8)
    with av.open(str(path), "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=25)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.gop_size = 64, 48, 8
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.roll(ground, number, axis=1), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path.read_bytes()


def damaged(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """A copy with one to six faults; most of them early, where the headers are, or at the end."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        _damage(found, other, rng)
    return bytes(found)


def _place(length: int, rng: random.Random) -> int:
    near = min(length, 1200)
    return rng.choice(
        (rng.randrange(near), length - 1 - rng.randrange(near), rng.randrange(length))
    )


def _damage(found: bytearray, other: bytes, rng: random.Random) -> None:
    if len(found) < 64:
        found.extend(other[:2000])
    at, run = _place(len(found), rng), rng.choice((1, 4, 16, 200, 2000))
    match rng.randrange(9):
        case 0 | 1:
            found[at] ^= 1 << rng.randrange(8)
        case 2:
            found[at : at + run] = rng.randbytes(len(found[at : at + run]))
        case 3:
            found[at : at + 4] = rng.choice(EXTREMES)
        case 4:
            del found[at : at + run]
        case 5:
            found[at:at] = found[at : at + run] * rng.choice((1, 3, 20))
        case 6:
            there = rng.randrange(len(other))
            found[at : at + run] = other[there : there + run]
        case 7:
            del found[at:]
        case _:
            moved = bytes(found[at : at + run])
            del found[at : at + run]
            to = rng.randrange(len(found) + 1)
            found[to:to] = moved


def decode(path: Path, policy: SamplingPolicy, deadline_s: float, start: Start) -> Ending:
    """Decode one input as an ingest would, and say how it ended."""
    began_s = time.monotonic()
    kept, decoded = 0, None
    state, code = "done", None
    try:
        with sample_apart(
            path,
            policy,
            input_size=INPUT,
            picture_max_side_px=64,
            max_px=MAX_PX,
            deadline_s=deadline_s,
            threads=1,
            start=start,
        ) as video:
            for _ in video:
                kept += 1
            report = video.report
            decoded = None if isinstance(policy, KeyframePolicy) else report.frames_decoded
        miscounted = report.frames_listed not in (None, report.frames_decoded)
        if report.truncated or report.decode_errors or report.frames_out_of_order or miscounted:
            state = "partial"
    except RisError as error:
        state, code = "partial" if kept else "failed", error.code
    return Ending(state, code, time.monotonic() - began_s, decoded)


def memory_bytes() -> int:
    """Resident memory of this process, which stands for the worker."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Decode all inputs; a summary of plain values."""
    seeds = [make_seed(folder / name, codec, box, more) for name, codec, box, more in SEEDS]
    endings: Counter[str] = Counter()
    slowest_s, unforeseen, late, unnoticed = 0.0, [], 0, Counter[str]()
    began_s, before, most = time.monotonic(), 0, 0
    numbers = range(arguments.part, arguments.inputs, arguments.jobs)
    for done, number in enumerate(numbers):
        rng = random.Random(arguments.seed * 1_000_003 + number)
        which = number % len(seeds)
        content = damaged(seeds[which], rng.choice(seeds), rng)
        path = folder / f"input-{SEEDS[which][0]}"
        path.write_bytes(content)
        policy = rng.choice((IntervalPolicy(0.04), IntervalPolicy(0.2), KeyframePolicy()))
        start = spawn if number < arguments.fresh else forked
        try:
            ending = decode(path, policy, arguments.deadline_s, start)
        except Exception as error:
            ending = Ending("unforeseen", type(error).__name__, 0.0)
            unforeseen.append(f"input {number}: {type(error).__name__}: {error}")
        late += ending.seconds > arguments.deadline_s + SLACK_S
        if ending.state == "done" and ending.decoded not in (None, FRAMES):
            unnoticed[SEEDS[which][0]] += 1
        slowest_s = max(slowest_s, ending.seconds)
        endings[f"{ending.state} {ending.code}" if ending.code else ending.state] += 1
        if arguments.keep and ending.code in ("video_killed_decoder", "video_too_slow"):
            arguments.keep.mkdir(parents=True, exist_ok=True)
            (arguments.keep / f"{number}-{ending.code}-{SEEDS[which][0]}").write_bytes(content)
        if done == min(100, len(numbers) // 10):
            before = memory_bytes()
        most = max(most, memory_bytes())
        if arguments.progress and done % 1000 == 999:
            print(number + 1, dict(endings), file=sys.stderr, flush=True)
    return {
        "inputs": len(numbers),
        "endings": dict(endings.most_common()),
        "unforeseen": unforeseen,
        "late": late,
        "unnoticed": dict(unnoticed),
        "slowest_s": round(slowest_s, 2),
        "growth_bytes": most - before,
        "largest_child_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        "seconds": round(time.monotonic() - began_s, 1),
    }


def merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The summaries of all parts as one."""
    endings: Counter[str] = Counter()
    unnoticed: Counter[str] = Counter()
    for part in parts:
        endings.update(part["endings"])
        unnoticed.update(part["unnoticed"])
    return {
        "inputs": sum(part["inputs"] for part in parts),
        "endings": dict(endings.most_common()),
        "unforeseen": [one for part in parts for one in part["unforeseen"]],
        "late": sum(part["late"] for part in parts),
        "unnoticed": dict(unnoticed.most_common()),
        **{
            name: max(part[name] for part in parts)
            for name in ("slowest_s", "growth_bytes", "largest_child_bytes", "seconds")
        },
    }


def main() -> None:
    """Run, print the summary, fail when a rule was broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--inputs", type=int, default=50_000)
    parser.add_argument("--fresh", type=int, default=100, help="how many start Python anew")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--deadline-s", type=float, default=10.0)
    parser.add_argument("--keep", type=Path, help="folder for inputs that kill or stall")
    parser.add_argument("--progress", action="store_true")
    parser.add_argument("--jobs", type=int, default=2 * (os.cpu_count() or 1))
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(run(arguments, Path(folder))))
        return
    command = [sys.executable, "-m", "benchmarks.fuzz_decode", *sys.argv[1:]]
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    parts = [
        subprocess.Popen(
            [*command, "--jobs", str(arguments.jobs), "--part", str(part)],
            stdout=subprocess.PIPE,
            env=env,
        )
        for part in range(arguments.jobs)
    ]
    told = [part.communicate()[0] for part in parts]
    if any(part.returncode for part in parts):
        raise SystemExit("a worker died")
    summary = merged([json.loads(one) for one in told])
    print(json.dumps(summary))
    if summary["unforeseen"] or summary["late"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
