"""Time to append and commit a batch, against writing and syncing the same bytes.

    .venv/bin/python -m benchmarks.append [--frames 1000 1000000] [--batches 30]

Random unit descriptors of the default backbone's shape, codec int8, 64 frames a batch, one camera
at one frame a second. Each figure is measured with that many frames already recorded: their rows
are made up in Postgres (frames, f_map runs, shards of 3,600), their vector files are not. What is
timed is everything between descriptors in memory and the end of the commit, without pictures. The
peer, in turn with it, writes the same bytes to two files of its own and fdatasyncs both. Prints one
JSON object per figure; medians.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import numpy as np
import psycopg

from benchmarks.machine import machine
from benchmarks.scratch import scratch_context
from models.index import IndexGeneration
from models.repositories import videos as video_record
from models.repositories.videos import NewFrame
from models.video import VideoSegment
from worker.context import Context
from worker.core.similarity import l2_normalise
from worker.core.types import Descriptors
from worker.generations import ensure_live_generation
from worker.logs import configure_logging
from worker.pinning import spec_of
from worker.recording import PreparedBatch, record_batch

BATCH = 64
START = datetime(2026, 1, 1, tzinfo=UTC)
MADE_UP = """
    insert into cameras (name) select 'old-' || c from generate_series(1, %(cameras)s) c;
    insert into video_segments (camera_id, source_path, content_sha256, start_utc, start_source,
        policy, policy_key)
        select id, 'made up', repeat('0', 64), '2026-01-01', 'given', '{}', 'x' from cameras
        where name like 'old-%%';
    insert into frames (segment_id, camera_id, t_utc, pts, h_px, w_px, picture_sha256)
        select s.id, s.camera_id, s.start_utc + n * interval '1 second', n, 9, 9,
        repeat(md5(s.id || '-' || n), 2)
        from video_segments s, generate_series(0, %(each)s - 1) n where s.source_path = 'made up';
    insert into shards (generation_id, camera_id, bucket_utc, frame_count, row_count,
        last_utc)
        select %(generation)s, camera_id, date_trunc('hour', t_utc), count(*), count(*) * 256,
        max(t_utc)
        from frames group by 2, 3;
    insert into f_map_runs (shard_id, start_row, row_count, frame_id, view, crc32, global_crc32)
        select s.id, 256 * (row_number() over (partition by s.id order by f.pts) - 1), 256, f.id,
        0, 0, 0 from frames f join shards s on s.camera_id = f.camera_id
        and s.bucket_utc = date_trunc('hour', f.t_utc);
"""


def make_up(context: Context, generation: IndexGeneration, frames: int) -> None:
    """Rows of ``frames`` frames of ten cameras."""
    url = str(context.settings.database_url).replace("+psycopg", "")
    given = {"cameras": 10, "each": frames // 10, "generation": generation.id}
    with psycopg.connect(url, autocommit=True) as connection:
        with psycopg.ClientCursor(connection) as cursor:
            cursor.execute(MADE_UP, given)
        connection.execute("vacuum analyze")


def a_segment(context: Context) -> VideoSegment:
    with context.db.transaction() as session:
        camera = video_record.ensure_camera(session, "new")
        segment, _ = video_record.ensure_segment(
            session,
            {
                "camera_id": camera.id,
                "source_path": "random",
                "content_sha256": "1" * 64,
                "start_utc": START,
                "start_source": "given",
                "policy": {},
                "policy_key": "x",
            },
        )
    return segment


def a_batch(context: Context, first: int, descriptors: Descriptors) -> PreparedBatch:
    frames = [
        NewFrame(START + timedelta(seconds=pts), pts, 9, 9, sha256(b"%d" % pts).hexdigest())
        for pts in range(first, first + BATCH)
    ]
    for frame in frames:  # as if their pictures had been kept before
        path = context.pictures.path(frame.picture_sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return PreparedBatch(frames, descriptors)


def synced_write_s(folder: Path, bodies: tuple[bytes, bytes], offset: int) -> float:
    """The peer: the same bytes behind each other in two files, both synced."""
    began_s = time.perf_counter()
    for name, body in zip(("a", "b"), bodies, strict=True):
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT)
        os.pwrite(descriptor, body, offset * len(body))
        os.fdatasync(descriptor)
        os.close(descriptor)
    return time.perf_counter() - began_s


def measure(frames: int, batches: int) -> dict[str, object]:
    rng = np.random.default_rng(0)
    with scratch_context(codec="int8") as context:
        generation = ensure_live_generation(context)
        spec = spec_of(generation)
        make_up(context, generation, frames)
        segment = a_segment(context)
        descriptors = Descriptors(
            l2_normalise(rng.standard_normal((BATCH, spec.global_dim))),
            l2_normalise(rng.standard_normal((BATCH, spec.grid.cells, spec.patch_dim))),
        )
        bodies = (
            bytes(BATCH * spec.global_dim),
            rng.bytes(BATCH * spec.grid.cells * spec.patch_dim),
        )
        ours_s, peer_s = [], []
        for number in range(batches + 2):
            batch = a_batch(context, number * BATCH, descriptors)
            began_s = time.perf_counter()
            with ExitStack() as held, context.db.transaction() as session:
                record_batch(context, session, segment, generation, batch, held)
            ours_s.append(time.perf_counter() - began_s)
            peer_s.append(synced_write_s(context.settings.data_dir, bodies, number))
    ours_ms, peer_ms = (1000 * float(np.median(times[2:])) for times in (ours_s, peer_s))
    return {
        "name": f"append-commit-{BATCH}-frames-at-{frames}",
        "value": round(ours_ms, 2),
        "unit": "ms",
        "peer": "write and fdatasync of the same bytes",
        "peer_value": round(peer_ms, 2),
        "ratio": round(ours_ms / peer_ms, 2),
        "n": batches,
        "machine": machine(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, nargs="+", default=[1000, 1_000_000])
    parser.add_argument("--batches", type=int, default=30)
    given = parser.parse_args()
    configure_logging("ERROR")
    for frames in given.frames:
        sys.stdout.write(json.dumps(measure(frames, given.batches)) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
