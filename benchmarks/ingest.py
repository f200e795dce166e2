"""What a recording costs: decoding against FFmpeg's program and PyAV's own loop, and the whole job.

    python -m benchmarks.ingest [--video CLIP] [--seconds 60] [--part decode] [--part whole]

Makes recordings of 25 pictures a second from a real clip, scaled up to 1920 x 1080, with a keyframe
every 50 and every 25 pictures, and a sub stream of 640 x 360. Then:

- decode: seconds of a camera's footage that one core turns into pictures of the backbone's input
  size, by processor time, one thread each, best of three: keyframes, one picture a second, and both
  of the sub stream. Peers: `ffmpeg` (it has to be installed), and PyAV's own loop. As ingest does
  it, in a process apart and with the picture that is kept beside it, is told too.
- whole: the recording ingested by the job's own code with real Postgres and the default backbone:
  what share of the processor time decoding and the backbone take, and what is left a frame.

Prints one JSON line per figure.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import av
import psutil
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from benchmarks.machine import machine
from benchmarks.scratch import scratch_context
from worker import recording
from worker.admin.demo import packaged_footage
from worker.backbones.embedder import embed_masked
from worker.context import Context
from worker.core.sampling import IntervalPolicy, KeyframePolicy, SamplingPolicy
from worker.core.types import SizePx
from worker.generations import ensure_live_generation
from worker.ingest import run_ingest, submit_file
from worker.jobs import Handler, run_job
from worker.logs import configure_logging
from worker.pinning import spec_of
from worker.video.decode import sample_video
from worker.video.decoding import sample_apart

FPS = 25
START = datetime(2026, 1, 1, tzinfo=UTC)


def figure(name: str, value: float, unit: str, peer: str | None, peer_value: float | None) -> None:
    ratio = None if peer_value is None else round(value / peer_value, 2)
    line = {"name": name, "value": round(value, 2), "unit": unit, "peer": peer}
    line |= {"peer_value": peer_value and round(peer_value, 2), "ratio": ratio}
    sys.stdout.write(json.dumps(line | {"machine": machine()}) + "\n")
    sys.stdout.flush()


def made(source: Path, target: Path, seconds: int, size: SizePx, gop: int) -> Path:
    """The clip again and again as a camera would send it."""
    with av.open(str(target), "w") as output:
        stream: VideoStream = output.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = size.h_px, size.w_px, "yuv420p"
        stream.gop_size = gop
        fixed = f"keyint={gop}:min-keyint={gop}:scenecut=0"
        stream.options = {"preset": "veryfast", "bf": "0", "x264-params": fixed}
        count = 0
        while count < seconds * FPS:
            with av.open(str(source)) as clip:
                for picture in clip.decode(video=0):
                    scaled = picture.reformat(width=size.w_px, height=size.h_px, format="yuv420p")
                    scaled.pts, scaled.time_base, count = count, Fraction(1, FPS), count + 1
                    output.mux(stream.encode(scaled))
                    if count >= seconds * FPS:
                        break
        output.mux(stream.encode())
    return target


def cpu_s(call: Callable[[], object]) -> float:
    """Processor time of this process and of the ones it waited for; the best of three."""
    best = float("inf")
    for _ in range(3):
        began_s = _used_s()
        call()
        best = min(best, _used_s() - began_s)
    return best


def _used_s() -> float:
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, whose))


def by_ffmpeg(path: Path, size: SizePx) -> None:
    command = ["ffmpeg", "-v", "error", "-threads", "1", "-i", str(path)]
    command += ["-vf", f"fps=1,scale={size.w_px}:{size.h_px}", "-pix_fmt", "rgb24"]
    subprocess.run([*command, "-f", "rawvideo", "-y", "/dev/null"], check=True)


def by_own_loop(path: Path, size: SizePx) -> None:
    """Keyframes as PyAV's documentation takes them."""
    scaler = VideoReformatter()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        stream.codec_context.skip_frame = "NONKEY"
        for picture in container.decode(stream):
            scaler.reformat(picture, size.w_px, size.h_px, "rgb24").to_ndarray()


def by_ours(path: Path, size: SizePx, policy: SamplingPolicy) -> None:
    """Pictures of the input size; the kept one is made no larger, which is next to nothing."""
    with sample_video(
        path, policy, input_size=size, picture_max_side_px=16, max_px=10**8, threads=1
    ) as video:
        for _ in video:
            pass


def by_ingest(path: Path, size: SizePx, policy: SamplingPolicy) -> None:
    with sample_apart(
        path,
        policy,
        input_size=size,
        picture_max_side_px=1920,
        max_px=10**8,
        threads=1,
        deadline_s=60.0,
    ) as video:
        for _ in video:
            pass


def decode(source: Path, folder: Path, seconds: int, size: SizePx) -> None:
    full, unit = SizePx(1080, 1920), "camera-seconds a core-second"
    sub = made(source, folder / "sub.mp4", seconds, SizePx(360, 640), 50)
    for gop in (50, 25):
        path = made(source, folder / f"gop{gop}.mp4", seconds, full, gop)
        peer = None
        if shutil.which("ffmpeg"):
            peer = seconds / cpu_s(partial(by_ffmpeg, path, size))
        named = "ffmpeg -vf fps=1,scale"
        loop = seconds / cpu_s(partial(by_own_loop, path, size))
        policies: dict[str, SamplingPolicy] = {
            "keyframes": KeyframePolicy(),
            "every-second": IntervalPolicy(1.0),
        }
        rates = {
            f"{kind}-gop{gop}": seconds / cpu_s(partial(by_ours, path, size, asked))
            for kind, asked in policies.items()
        }
        for kind, rate in rates.items():
            figure(kind, rate, unit, named, peer)
        figure(f"keyframes-gop{gop}", rates[f"keyframes-gop{gop}"], unit, "PyAV's own loop", loop)
        apart = seconds / cpu_s(partial(by_ingest, path, size, KeyframePolicy()))
        figure(f"keyframes-gop{gop}-apart-with-kept-picture", apart, unit, named, peer)
        if gop == 50:
            for kind, asked in policies.items():
                rate = seconds / cpu_s(partial(by_ours, sub, size, asked))
                figure(f"sub-stream-{kind}", rate, unit, f"{named} of the main stream", peer)


class _Spent:
    """Processor time of this process inside some calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def inside(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began_s = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - began_s

        return timed


def postgres_s(context: Context) -> float:
    """Of the servers below the scratch folder, those that ended since not included."""
    folder, total_s = str(context.settings.data_dir), 0.0
    for process in psutil.process_iter(["cmdline", "cpu_times"]):
        parent = process.parent()
        lines = [process.info["cmdline"], parent.cmdline() if parent else []]
        if any("postgres" in " ".join(line or []) and folder in " ".join(line) for line in lines):
            total_s += process.info["cpu_times"].user + process.info["cpu_times"].system
    return total_s


def whole(source: Path, folder: Path, seconds: int, size: SizePx) -> None:
    path = made(source, folder / "whole.mp4", seconds, SizePx(1080, 1920), 50)
    backbone, pictures = _Spent(), _Spent()
    with scratch_context() as context, ExitStack() as held:
        context.backbone(context.settings.backbone)
        store = type(context.pictures)
        kept = pictures.inside(store.put_many)
        held.enter_context(patch.object(recording, "embed_masked", backbone.inside(embed_masked)))
        held.enter_context(patch.object(store, "put_many", kept))
        for name in ("warm-up", "camera"):
            backbone.seconds = pictures.seconds = 0.0
            made_job = submit_file(context, path, name, IntervalPolicy(1.0), START)
            began = (time.process_time(), _children_s(), postgres_s(context))
            run_job(context, uuid.UUID(made_job.job_id), {"ingest": Handler(run_ingest)})
            own_s, decode_s, sql_s = (
                after - before
                for after, before in zip(
                    (time.process_time(), _children_s(), postgres_s(context)), began, strict=True
                )
            )
    total_s = own_s + decode_s + sql_s
    rest_s = own_s - backbone.seconds - pictures.seconds
    useful_s = decode_s + backbone.seconds
    figure("ingest-decode-and-backbone", useful_s / total_s, "share of processor time", None, None)
    for name, spent_s in {
        "decode": decode_s,
        "backbone": backbone.seconds,
        "kept-pictures": pictures.seconds,
        "rest-of-the-worker": rest_s,
        "postgres": sql_s,
    }.items():
        figure(f"ingest-{name}", 1000 * spent_s / seconds, "ms a frame", None, None)


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def input_size() -> SizePx:
    with scratch_context() as context:
        return spec_of(ensure_live_generation(context)).input_size


PARTS: dict[str, Callable[[Path, Path, int, SizePx], None]] = {"decode": decode, "whole": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--video", type=Path, help="what is scaled up; default: the demo's street")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--part", action="append", choices=PARTS)
    given = parser.parse_args()
    configure_logging("ERROR")
    source = given.video or packaged_footage()[0].path
    size = input_size()
    with tempfile.TemporaryDirectory() as folder:
        for part in given.part or PARTS:
            PARTS[part](source, Path(folder), given.seconds, size)


if __name__ == "__main__":
    main()
