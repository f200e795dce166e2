"""What standing queries cost for each new frame, beside what it costs to embed it.

    .venv/bin/python -m benchmarks.standing_cost CLIP [--standing 10] [--frames 64]

Indexes the clip's frames as one camera, has standing queries drawn on its first ones, and then
records batches of further frames, which are watched as the watch worker does: the first with
nothing known of the camera, the others as in a running process. Processor time, since other work
on the machine changes only the clock on the wall. Prints JSON lines.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.scratch import scratch_context
from models.repositories import standing as standing_record
from models.repositories import videos as video_record
from models.video import VideoSegment
from worker.accepting.desk import COMMAND_LINE
from worker.accepting.queries import checked_order
from worker.accepting.standing import StandingOrder, record_standing
from worker.context import Context
from worker.core.sampling import IntervalPolicy
from worker.core.search_params import SearchParams
from worker.core.types import Box, ImageArray
from worker.generations import backbone_of, ensure_live_generation
from worker.recording import PictureBatch, prepare_batch, record_batch
from worker.standing_subjects import WatchMemory
from worker.standing_watch import see_batch
from worker.video.decode import sample_video

START = datetime(2026, 1, 1, tzinfo=UTC)
REPEATS = 3


def pictures(context: Context, clip: Path, count: int) -> list[ImageArray]:
    """Frames of a clip, the same ones again and again where it is too short."""
    backbone = context.backbone(context.settings.backbone)
    settings = context.settings
    with sample_video(
        clip,
        IntervalPolicy(0.1),
        input_size=backbone.spec.input_size,
        picture_max_side_px=640,
        max_px=settings.video_max_px,
    ) as video:
        found = [sampled.img_input_hwc for sampled in video]
    return [found[at % len(found)] for at in range(count)]


def segment_of(context: Context) -> VideoSegment:
    """The segment that all frames are of."""
    with context.db.transaction() as session:
        camera = video_record.ensure_camera(session, "clip")
        values = {
            "camera_id": camera.id,
            "source_path": "benchmark",
            "content_sha256": "0" * 64,
            "start_utc": START,
            "start_source": "given",
            "policy": {},
            "policy_key": "benchmark",
        }
        return video_record.ensure_segment(session, values)[0]


def record(
    context: Context, segment: VideoSegment, first: int, imgs_hwc: list[ImageArray]
) -> tuple[list[int], float]:
    """Record frames at 10 s each; their ids, and the processor seconds that embedding took."""
    generation = ensure_live_generation(context)
    numbers = range(first, first + len(imgs_hwc))
    times = [START + timedelta(seconds=10 * number) for number in numbers]
    began_s = time.process_time()
    batch = prepare_batch(
        context, backbone_of(context, generation), PictureBatch(times, numbers, imgs_hwc, imgs_hwc)
    )
    embed_s = time.process_time() - began_s
    with ExitStack() as held, context.db.transaction() as session:
        ids = record_batch(context, session, segment, generation, batch, held)
    return ids, embed_s


def watch(context: Context, memory: WatchMemory) -> tuple[float, float]:
    """See the one batch that waits: seconds of the processor, and on the wall."""
    with context.db.transaction() as session:
        (batch,) = standing_record.take_frames(session, 600.0, 1)
    began_s, wall_s = time.process_time(), time.perf_counter()
    see_batch(context, memory, batch)
    return time.process_time() - began_s, time.perf_counter() - wall_s


def main() -> None:
    """Run from the command line; the docstring above says how."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--standing", type=int, default=10)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--known", type=int, default=256, help="frames indexed before")
    asked = parser.parse_args()
    with scratch_context(threads=1) as context:
        imgs_hwc = pictures(context, asked.clip, asked.known + asked.frames * (1 + REPEATS))
        segment = segment_of(context)
        ids, embed_s = record(context, segment, 0, imgs_hwc[: asked.known])
        for number in range(asked.standing):
            left = 0.05 * number
            query = checked_order(
                context, Box(left, 0.3, left + 0.25, 0.7), SearchParams(), frame_id=ids[number]
            )
            with context.db.transaction() as session:
                order = StandingOrder(f"s{number}", query)
                record_standing(context, session, order, COMMAND_LINE)
        memory, first = WatchMemory(), asked.known
        for repeat in range(1 + REPEATS):
            part = imgs_hwc[first : first + asked.frames]
            _, part_s = record(context, segment, first, part)
            first, embed_s = first + asked.frames, embed_s + part_s
            cpu_s, wall_s = watch(context, memory)
            line = {
                "name": "watching",
                "memory": "cold" if repeat == 0 else "warm",
                "standing": asked.standing,
                "frames": asked.frames,
                "cpu_ms_per_frame": round(1000 * cpu_s / asked.frames, 2),
                "wall_ms_per_frame": round(1000 * wall_s / asked.frames, 2),
                "embed_cpu_ms_per_frame": round(1000 * embed_s / first, 1),
                "machine": machine(),
            }
            sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
