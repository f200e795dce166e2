"""A large archive for benchmarks: real descriptors of the packaged footage, moved and varied.

Every frame of the two clips is embedded once with the default backbone. ``varied``: each made-up
frame is one of them, its grid shifted at random (with wrap-around) and its descriptors disturbed to
a cosine of about 0.97, so that no two are equal. ``fixed``: each shard is what a fixed camera sees:
one such frame as its background, every cell of which trembles by a cosine of about 0.99 from frame
to frame, and before it ``SUBJECTS`` windows of other frames, which cross the picture and change by
a cosine of about 0.87 from frame to frame. Files, checksums and rows are those of an ingest.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import psycopg

from models.index import IndexGeneration
from models.repositories import index as index_record
from models.repositories import videos as video_record
from worker.admin.demo import packaged_footage
from worker.backbones.embedder import embed_batched
from worker.context import Context
from worker.core.sampling import IntervalPolicy
from worker.core.similarity import l2_normalise
from worker.core.types import Descriptors, FloatArray, ImageArray
from worker.index.shard import append_blocks, hold_shard
from worker.pinning import spec_of
from worker.video.decode import sample_video

START = datetime(2026, 1, 1, tzinfo=UTC)
CAMERAS = 10
SHARD_FRAMES = 3600
AT_ONCE = 400
NOISE = 0.25
TREMBLE = 0.1
SUBJECTS = 4
SUBJECT_CELLS = (3, 4)
SUBJECT_NOISE = 0.4


@dataclass(frozen=True, slots=True)
class Originals:
    """Descriptors of the footage: float32 (n, d) and (n, h, w, d)."""

    global_nd: FloatArray
    patches_nhwd: FloatArray


def embed_footage(context: Context, generation: IndexGeneration, every_s: float) -> Originals:
    """Embed the packaged clips."""
    backbone, spec = context.backbone(generation.backbone), spec_of(generation)
    imgs_hwc: list[ImageArray] = []
    for clip in packaged_footage():
        with sample_video(
            clip.path,
            IntervalPolicy(every_s),
            input_size=spec.input_size,
            picture_max_side_px=640,
            max_px=10**8,
            threads=2,
        ) as video:
            imgs_hwc += [sampled.img_input_hwc for sampled in video]
    made = embed_batched(backbone, imgs_hwc, 8)
    grid = spec.grid
    return Originals(
        made.global_nd, made.patches_ncd.reshape(len(imgs_hwc), grid.h, grid.w, spec.patch_dim)
    )


def varied(originals: Originals, count: int, rng: np.random.Generator) -> Descriptors:
    """``count`` made-up frames."""
    at = rng.integers(0, len(originals.global_nd), count)
    n, h, w, d = (count, *originals.patches_nhwd.shape[1:])
    noise = rng.standard_normal((2**20,), dtype=np.float32) * np.float32(NOISE / np.sqrt(d))
    patches = np.empty((n, h, w, d), dtype=np.float32)
    for i, original in enumerate(at):
        rolled = np.roll(originals.patches_nhwd[original], rng.integers(0, (h, w)), axis=(0, 1))
        begin = int(rng.integers(0, noise.size - h * w * d))
        patches[i] = rolled + noise[begin : begin + h * w * d].reshape(h, w, d)
    globals_nd = originals.global_nd[at]
    spread = np.float32(NOISE / np.sqrt(globals_nd.shape[1]))
    globals_nd = globals_nd + spread * rng.standard_normal(globals_nd.shape, dtype=np.float32)
    return Descriptors(l2_normalise(globals_nd), l2_normalise(patches.reshape(n, h * w, d)))


Footage = Callable[[int], Descriptors]
"""Makes so many frames of one shard, in order of time."""


def varied_footage(originals: Originals, rng: np.random.Generator) -> Footage:
    """Frames that have nothing to do with one another."""
    return lambda count: varied(originals, count, rng)


def fixed_footage(originals: Originals, rng: np.random.Generator) -> Footage:
    """Frames of one fixed camera, which go on from call to call."""
    scene = varied(originals, 1, rng)
    _, h, w, d = originals.patches_nhwd.shape
    wall_hwd = scene.patches_ncd[0].reshape(h, w, d)
    noise = rng.standard_normal((2**20,), dtype=np.float32) / np.float32(np.sqrt(d))
    subjects = [_Subject(originals, rng) for _ in range(SUBJECTS)]

    def make(count: int) -> Descriptors:
        patches = np.empty((count, h, w, d), dtype=np.float32)
        for i in range(count):
            begin = int(rng.integers(0, noise.size - h * w * d))
            own_hwd = noise[begin : begin + h * w * d].reshape(h, w, d)
            patches[i] = wall_hwd + np.float32(TREMBLE) * own_hwd
            for subject in subjects:
                subject.show(patches[i], own_hwd)
        globals_nd = np.repeat(scene.global_nd, count, axis=0)
        spread = np.float32(NOISE / np.sqrt(globals_nd.shape[1]))
        globals_nd += spread * rng.standard_normal(globals_nd.shape, dtype=np.float32)
        return Descriptors(l2_normalise(globals_nd), l2_normalise(patches.reshape(count, h * w, d)))

    return make


class _Subject:
    """A window of a real frame that crosses the picture cell by cell, then another one."""

    def __init__(self, originals: Originals, rng: np.random.Generator) -> None:
        self._originals, self._rng, self._left = originals, rng, 0

    def show(self, patches_hwd: FloatArray, noise_hwd: FloatArray) -> None:
        h, w, _ = patches_hwd.shape
        rows, cols = SUBJECT_CELLS
        if self._left == 0:
            at = int(self._rng.integers(0, len(self._originals.patches_nhwd)))
            row, col = int(self._rng.integers(0, h - rows)), int(self._rng.integers(0, w - cols))
            self._window = self._originals.patches_nhwd[at, row : row + rows, col : col + cols]
            self._row, self._left = int(self._rng.integers(0, h - rows)), w - cols
        self._left -= 1
        at_rows, at_cols = slice(self._row, self._row + rows), slice(self._left, self._left + cols)
        spread = np.float32(SUBJECT_NOISE)
        patches_hwd[at_rows, at_cols] = self._window + spread * noise_hwd[at_rows, at_cols]


def make_archive(
    context: Context,
    generation: IndexGeneration,
    frames: int,
    footage: Callable[[np.random.Generator], Footage],
    after_shard: Callable[[], None] = lambda: None,
) -> None:
    """``frames`` frames of ten cameras, one a second, from ``START`` on."""
    rng = np.random.default_rng(0)
    each = frames // CAMERAS
    for camera in range(CAMERAS):
        for first in range(0, each, SHARD_FRAMES):
            count = min(SHARD_FRAMES, each - first)
            _make_shard(context, generation, footage(rng), (camera, first, count))
            after_shard()


def _make_shard(
    context: Context,
    generation: IndexGeneration,
    footage: Footage,
    place: tuple[int, int, int],
) -> None:
    camera_number, first, count = place
    spec = spec_of(generation)
    with context.db.transaction() as session:
        camera = video_record.ensure_camera(session, f"camera-{camera_number}")
        segment, _ = video_record.ensure_segment(
            session,
            {
                "camera_id": camera.id,
                "source_path": "made up",
                "content_sha256": "0" * 64,
                "start_utc": START,
                "start_source": "given",
                "policy": {},
                "policy_key": "x",
            },
        )
        shard = index_record.lock_shard(
            session, generation.id, camera.id, START + timedelta(seconds=first)
        )
    layout = context.index.layout(generation.id, shard.id, 0, spec, generation.codec)
    sums = []
    with ExitStack() as held:
        held.enter_context(hold_shard(layout))
        for start in range(0, count, AT_ONCE):
            sums.append(append_blocks(layout, start, footage(min(AT_ONCE, count - start))))
    rows = _rows(np.concatenate(sums), first, spec.grid.cells)
    _copy(context, rows, (segment.id, camera.id, shard.id, count, spec.grid.cells))


def _rows(sums_n2: np.ndarray, first: int, cells: int) -> Iterator[tuple[int, int, int, int]]:
    for i, (global_crc32, crc32) in enumerate(sums_n2.tolist()):
        yield first + i, i * cells, crc32, global_crc32


def _copy(
    context: Context,
    rows: Iterator[tuple[int, int, int, int]],
    place: tuple[int, int, int, int, int],
) -> None:
    segment_id, camera_id, shard_id, count, cells = place
    url = str(context.settings.database_url).replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        connection.execute(
            "create temp table made (pts bigint, start_row bigint, crc bigint, global_crc bigint)"
        )
        text = io.StringIO()
        text.writelines("\t".join(map(str, row)) + "\n" for row in rows)
        with connection.cursor().copy("copy made from stdin") as copy:
            copy.write(text.getvalue())
        connection.execute(
            "insert into frames (segment_id, camera_id, t_utc, pts, h_px, w_px, picture_sha256)"
            " select %s, %s, %s::timestamptz + pts * interval '1 second', pts, 9, 9,"
            " repeat(md5(%s || '-' || pts), 2) from made",
            (segment_id, camera_id, START, str(camera_id)),
        )
        connection.execute(
            "insert into f_map_runs (shard_id, start_row, row_count, frame_id, view, crc32,"
            " global_crc32) select %s, m.start_row, %s, f.id, 0, m.crc, m.global_crc"
            " from made m join frames f on f.segment_id = %s and f.pts = m.pts",
            (shard_id, cells, segment_id),
        )
        connection.execute(
            "update shards set frame_count = %s, row_count = %s, last_utc = (select max(t_utc)"
            " from frames where segment_id = %s) where id = %s",
            (count, count * cells, segment_id, shard_id),
        )
