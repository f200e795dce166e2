"""Recording frames: pictures and vectors first, fsynced, then the rows that make them valid."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime

from models.index import IndexGeneration
from models.repositories import erasures as erasure_record
from models.repositories import index as index_record
from models.repositories import standing as standing_record
from models.repositories import videos as video_record
from models.repositories.videos import NewFrame
from models.session import Session
from models.video import VideoSegment
from worker.backbones.base import Backbone
from worker.backbones.embedder import embed_masked
from worker.context import Context
from worker.core.masking import PrivacyMask, painted
from worker.core.types import Descriptors, ImageArray, SizePx
from worker.errors import ErasedMeanwhile, GenerationSwitched, MaskChanged
from worker.index.codec import codec_named
from worker.index.shard import appended_blocks, hold_shard
from worker.pinning import layout_of
from worker.tracing import span


@dataclass(frozen=True, slots=True)
class PictureBatch:
    """n sampled pictures of one segment, ready to embed and record.

    ``imgs_input_hwc`` go to the backbone, ``imgs_picture_hwc`` are kept for display. ``masks``: the
    camera's privacy mask for each, empty for none of all; :func:`record_batch` compares. ``codec``:
    what descriptors are going to be stored with, for accelerators that can encode them.
    """

    t_utc: Sequence[datetime]
    pts: Sequence[int]
    imgs_input_hwc: Sequence[ImageArray]
    imgs_picture_hwc: Sequence[ImageArray]
    masks: Sequence[PrivacyMask | None] = ()
    codec: str | None = None


@dataclass(frozen=True, slots=True)
class PreparedBatch:
    """n frames whose pictures are kept and whose descriptors are made; not yet recorded."""

    frames: Sequence[NewFrame]
    descriptors: Descriptors


@dataclass(frozen=True, slots=True)
class IndexedFrames:
    """n recorded frames of one camera with their descriptors, ready to append to a generation."""

    camera_id: int
    frame_ids: Sequence[int]
    t_utc: Sequence[datetime]
    descriptors: Descriptors


def prepare_batch(context: Context, backbone: Backbone, batch: PictureBatch) -> PreparedBatch:
    """Embed a batch and keep its pictures durably, both without what lies under a mask.

    Raises :class:`StorageFull` below the free-space floor, before anything is written.
    """
    context.index.require_free(context.settings.min_free_bytes)
    masks = batch.masks or [None] * len(batch.t_utc)
    sizes = [SizePx(*img_hwc.shape[:2]) for img_hwc in batch.imgs_picture_hwc]
    descriptors = embed_masked(
        backbone,
        batch.imgs_input_hwc,
        masks,
        sizes,
        context.settings.embed_batch,
        None if batch.codec is None else codec_named(batch.codec),
    )
    stored = context.pictures.put_many(
        [
            img_hwc if mask is None else painted(img_hwc, mask, size)
            for img_hwc, mask, size in zip(batch.imgs_picture_hwc, masks, sizes, strict=True)
        ]
    )
    frames = [
        NewFrame(
            t_utc,
            pts,
            picture.size.h_px,
            picture.size.w_px,
            picture.sha256,
            None if mask is None else mask.mask_id,
        )
        for t_utc, pts, picture, mask in zip(batch.t_utc, batch.pts, stored, masks, strict=True)
    ]
    return PreparedBatch(frames, descriptors)


def record_batch(
    context: Context,
    session: Session,
    segment: VideoSegment,
    generation: IndexGeneration,
    prepared: PreparedBatch,
    held: ExitStack,
) -> list[int]:
    """Record frames and append their descriptors, in the caller's transaction; returns frame ids.

    ``held`` keeps the shards' locks; the caller closes it after its transaction. Raises
    :class:`GenerationSwitched` when ``generation`` is no longer live, and
    :class:`ErasedMeanwhile` when some of the frames, or of their pictures, were erased since they
    were prepared, or (as :class:`MaskChanged`) the camera has another privacy mask now: then
    :func:`discard_pictures` and prepare those of :func:`not_erased` again.
    """
    index_record.lock_generations(session, exclusive=False)
    live = index_record.live_generation(session)
    if live is None or live.id != generation.id:
        raise GenerationSwitched(f"generation {generation.id} is no longer live; batch redone")
    times = [frame.t_utc for frame in prepared.frames]
    if len(not_erased(session, segment, times)) < len(times):
        raise ErasedMeanwhile(f"frames of segment {segment.id} were erased; batch redone")
    mask_id = video_record.locked_mask_id(session, segment.camera_id)
    if any(frame.mask_id != mask_id for frame in prepared.frames):
        raise MaskChanged(f"camera {segment.camera_id} has another privacy mask now; batch redone")
    for frame in prepared.frames:
        if not context.pictures.has(frame.picture_sha256):
            raise ErasedMeanwhile(f"picture {frame.picture_sha256} was erased; batch redone")
    inserted = video_record.insert_frames(session, segment, prepared.frames)
    frame_ids = [inserted.id_of[frame.pts] for frame in prepared.frames]
    indexed = IndexedFrames(segment.camera_id, frame_ids, times, prepared.descriptors)
    append_frames(context, session, generation, indexed, held, sorted(inserted.known))
    standing_record.queue_frames(session, segment.camera_id, frame_ids)
    return frame_ids


def not_erased(session: Session, segment: VideoSegment, t_utc: Sequence[datetime]) -> list[int]:
    """Positions of the times that no erasure ordered since the segment was accepted covers."""
    spans = erasure_record.spans_since(session, segment.camera_id, segment.created_at)
    return [
        position
        for position, time_utc in enumerate(t_utc)
        if not any(
            (from_utc is None or time_utc >= from_utc) and (to_utc is None or time_utc < to_utc)
            for from_utc, to_utc in spans
        )
    ]


def discard_pictures(context: Context, sha256s: Sequence[str]) -> int:
    """Remove kept pictures that no frame has; returns how many."""
    with context.db.transaction() as session:
        # Under the lock nobody is about to record a frame with one of these pictures.
        index_record.lock_generations(session, exclusive=True)
        unused = erasure_record.unused_pictures(session, sha256s)
        return sum(context.pictures.remove(sha256) for sha256 in sorted(unused))


def append_frames(
    context: Context,
    session: Session,
    generation: IndexGeneration,
    frames: IndexedFrames,
    held: ExitStack,
    known: Sequence[int] | None = None,
) -> None:
    """Append descriptors to the camera's shards of a generation, skipping frames it holds.

    ``held`` keeps the shards' locks; the caller closes it after its transaction. ``known``: the
    frames that it may hold, None: any.
    """
    asked = frames.frame_ids if known is None else known
    present = index_record.indexed_frames(session, generation.id, asked) if asked else set()
    by_bucket: dict[datetime, list[int]] = {}
    for position, frame_id in enumerate(frames.frame_ids):
        if frame_id not in present:
            bucket = bucket_of(frames.t_utc[position], context.settings.shard_span_s)
            by_bucket.setdefault(bucket, []).append(position)
    for bucket, positions in sorted(by_bucket.items()):
        _append_to_shard(context, session, generation, frames, (bucket, positions), held)


def _append_to_shard(
    context: Context,
    session: Session,
    generation: IndexGeneration,
    frames: IndexedFrames,
    bucket_positions: tuple[datetime, list[int]],
    held: ExitStack,
) -> None:
    bucket, positions = bucket_positions
    shard = index_record.lock_shard(session, generation.id, frames.camera_id, bucket)
    layout = layout_of(context.index, generation, shard)
    held.enter_context(hold_shard(layout))
    # A writer that was frozen before it got this lock may have lost the row: ask again.
    shard = index_record.lock_shard_by_id(session, shard.id)
    descriptors = frames.descriptors
    if len(positions) < len(frames.frame_ids):
        descriptors = Descriptors(
            descriptors.global_nd[positions], descriptors.patches_ncd[positions]
        )
    if generation.codec == "int8":
        from worker.kernels.directions import stored_directions  # numba: no listing waits for it

        descriptors = stored_directions(descriptors)
    with (
        span("index.append", shard_id=shard.id, frames=len(positions)),
        appended_blocks(layout, shard.frame_count, descriptors) as sums_n2,
    ):
        # The disk writes meanwhile.
        runs = [
            index_record.NewRun(
                start_row=shard.row_count + i * layout.cells,
                row_count=layout.cells,
                frame_id=frames.frame_ids[position],
                view=0,
                crc32=int(sums_n2[i, 1]),
                global_crc32=int(sums_n2[i, 0]),
            )
            for i, position in enumerate(positions)
        ]
        index_record.append_runs(session, shard, runs)


def bucket_of(t_utc: datetime, span_s: int) -> datetime:
    """Start of the shard span that ``t_utc`` lies in; spans are counted from the epoch."""
    epoch_s = int(t_utc.timestamp() // span_s) * span_s
    return datetime.fromtimestamp(epoch_s, UTC)
