"""The process that decodes one file: started by :mod:`worker.video.decoding`, limited, then gone.

``python -m worker.video.decoding_child FD PARENT``: the file is open as descriptor ``FD``, the
request comes on standard input, messages go to standard output. It knows nothing else: no
settings, no database, no broker.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.ma  # numpy loads it late, and this process will open no file

from worker.core.types import ImageArray
from worker.errors import RisError, VideoKilledDecoder
from worker.video.confinement import (
    confine,
    decoder_threads,
    die_with,
    limit_memory,
    memory_for,
    memory_needed,
    renew_cpu,
)
from worker.video.container import VideoFile
from worker.video.decode import sample_video
from worker.video.decoding_wire import (
    FrameHead,
    Kind,
    Request,
    error_to_json,
    frame_to_json,
    info_to_json,
    pack,
    report_to_json,
)
from worker.video.probe import probe
from worker.video.values import SampledFrame

_ALIVE_EVERY_S = 0.5


class Line:
    """The way to the worker. Writing waits until the worker reads."""

    def __init__(self, fd: int, cpu_s: float) -> None:
        self._fd, self._cpu_s = fd, cpu_s
        self._told_s = time.monotonic()

    def say(self, kind: Kind, told: Mapping[str, Any], imgs_hwc: Sequence[ImageArray] = ()) -> None:
        """Send one message, and begin the next stretch of processor time."""
        # Pictures of odd widths come with padded lines.
        pixels = (np.ascontiguousarray(img).data.cast("B") for img in imgs_hwc)
        for part in (memoryview(pack(kind, told)), *pixels):
            sent = 0
            while sent < len(part):
                sent += os.write(self._fd, part[sent:])
        renew_cpu(self._cpu_s)
        self._told_s = time.monotonic()

    def alive(self) -> None:
        """A packet was read; said twice a second at most."""
        if time.monotonic() - self._told_s >= _ALIVE_EVERY_S:
            self.say(Kind.ALIVE, {})


def main() -> None:
    """Serve the one request, and end."""
    fd, parent_pid = int(sys.argv[1]), int(sys.argv[2])
    die_with(parent_pid)
    request = Request.from_bytes(sys.stdin.buffer.read())
    out = os.dup(1)
    silent = os.open(os.devnull, os.O_RDWR)
    for taken in (0, 1, 2):
        os.dup2(silent, taken)
    serve(request, fd, out)
    os._exit(0)  # nothing is left to tidy up, and libraries may be in no state to


def serve(request: Request, fd: int, out: int) -> None:
    """Confine this process, then decode. Never raises for what is in the file."""
    threads = decoder_threads(request.threads)
    line = Line(out, request.stretch_s * threads)
    network = confine()
    limit_memory(memory_needed(request.max_px, threads))
    try:
        line.say(Kind.READY, {"network": network})
        answer(request, VideoFile(Path(request.name), fd, line.alive), line)
    except BrokenPipeError:
        return  # the worker has enough
    except RisError as error:
        line.say(Kind.FAILED, error_to_json(error.code, str(error)))
    except MemoryError:
        detail = f"{request.name} needs more memory to decode than its pictures justify"
        line.say(Kind.FAILED, error_to_json(VideoKilledDecoder.code, detail))
    except Exception as error:
        detail = f"{request.name} made the decoder fail: {type(error).__name__}: {error}"
        line.say(Kind.FAILED, error_to_json(VideoKilledDecoder.code, detail))


def answer(request: Request, file: VideoFile, line: Line) -> None:
    """Send what was asked for. Raises what probing and sampling raise."""
    wanted = request.sampling
    if wanted is None:
        line.say(Kind.INFO, info_to_json(probe(file, request.max_px)))
        line.say(Kind.END, {})
        return
    with sample_video(
        file,
        wanted.policy,
        input_size=wanted.input_size,
        picture_max_side_px=wanted.picture_max_side_px,
        max_px=request.max_px,
        resume_after_pts=wanted.resume_after_pts,
        threads=request.threads,
    ) as video:
        size = video.info.coded_size
        threads = decoder_threads(request.threads)
        limit_memory(memory_for(size.h_px * size.w_px, request.max_px, threads))
        line.say(Kind.INFO, info_to_json(video.info))
        for frame in video:
            head = FrameHead(
                pts=frame.pts,
                t_s=frame.t_s,
                keyframe=frame.keyframe,
                picture=_size_of(frame),
                report=video.report,
            )
            pixels = (frame.img_input_hwc, frame.img_picture_hwc)
            line.say(Kind.FRAME, frame_to_json(head), pixels)
        line.say(Kind.END, {"report": report_to_json(video.report)})


def _size_of(frame: SampledFrame) -> Any:
    return frame.img_picture_hwc.shape[:2]


if __name__ == "__main__":
    main()
