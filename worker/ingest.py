"""Ingest: from a video segment to rows that queries can see.

Order of a batch: pictures and vectors are written and fsynced first, then one transaction records
frames, f_map runs, the shard's valid length, the resume point and the job's progress together.
What a crash leaves behind is bytes nobody refers to.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unicodedata import category

from models.index import IndexGeneration
from models.repositories import erasures as erasure_record
from models.repositories import feeds as feed_record
from models.repositories import jobs as job_record
from models.repositories import videos as video_record
from models.repositories.jobs import ClaimedJob
from models.session import Session
from models.video import VideoSegment
from worker.backbones.base import Backbone
from worker.context import Context
from worker.core.sampling import SamplingPolicy, policy_from_json, policy_key, policy_to_json
from worker.errors import (
    ErasedMeanwhile,
    InputInvalid,
    NotFound,
    RisError,
    VideoInvalid,
    VideoUnreadable,
)
from worker.generations import backbone_of, ensure_live_generation
from worker.jobs import Lease, Outcome
from worker.messages import INGEST_QUEUE
from worker.recording import (
    PictureBatch,
    PreparedBatch,
    discard_pictures,
    not_erased,
    prepare_batch,
    record_batch,
)
from worker.video.decode import DecodeReport, SampledFrame, sample_video
from worker.video.probe import VideoInfo, probe

_HASH_CHUNK_BYTES = 1 << 20
_GIVE_WAY_S = 5.0
"""How long a batch of a recording waits at most for live feeds."""


@dataclass(frozen=True, slots=True)
class Submission:
    """What was accepted: ids to follow, and whether the segment was already known."""

    segment_id: int
    job_id: str
    camera_id: int
    is_new: bool


def submit_file(
    context: Context,
    path: Path,
    camera_name: str,
    policy: SamplingPolicy,
    start_utc: datetime | None = None,
) -> Submission:
    """Accept a recorded file: record segment and job, commit, ring. Repeating it changes nothing.

    A file that cannot be read is refused here with :class:`VideoUnreadable`; one that is not a
    video is accepted and ends as a recorded failure. Raises :class:`InputInvalid` for a bad name.
    """
    name = camera_name.strip()
    if not 1 <= len(name) <= 200 or any(category(letter) in ("Cc", "Cs") for letter in name):
        raise InputInvalid(f"camera name {camera_name!r}: use 1 to 200 characters, no controls")
    if start_utc is not None and start_utc.tzinfo is None:
        raise InputInvalid(f"start time {start_utc} has no time zone: add one, e.g. +00:00")
    path = path.resolve()
    content_sha256 = _hash_file(path)
    start, source = _start_time(context, path, start_utc)
    with context.db.transaction() as session:
        camera = video_record.ensure_camera(session, name)
        if start_utc is None:
            # A copied or touched file has another modification time and is the same recording.
            known = video_record.segment_of_content(
                session, camera.id, content_sha256, policy_key(policy)
            )
            if known is not None:
                start, source = known.start_utc, known.start_source
        segment, is_new = video_record.ensure_segment(
            session,
            {
                "camera_id": camera.id,
                "source_path": str(path),
                "content_sha256": content_sha256,
                "start_utc": start,
                "start_source": source,
                "policy": policy_to_json(policy),
                "policy_key": policy_key(policy),
            },
        )
        erased = _erased_since(session, segment)
        if erased:
            # What was erased is wanted back: from the start again, with what is still there kept.
            video_record.renew_segment(session, segment.id)
        if segment.job_id is None or segment.outcome == "failed" or erased:
            payload = {"segment_id": segment.id, "file": _file_state(path)}
            job_id = job_record.submit(session, "ingest", INGEST_QUEUE, payload)
            video_record.set_segment(
                session, segment.id, job_id=job_id, outcome=None, source_path=str(path)
            )
            is_new = True
        else:
            job_id = segment.job_id
    if is_new:
        context.ring(job_id, "ingest")
    return Submission(segment.id, str(job_id), camera.id, is_new)


def _erased_since(session: Session, segment: VideoSegment) -> bool:
    """Whether frames that the segment can have were erased since it was accepted.

    Raises :class:`InputInvalid` while such an erasure is under way: it would take what comes in.
    """
    reaching = erasure_record.reaching(session, segment.camera_id, segment.start_utc)
    open_ids = [erasure.id for erasure, state in reaching if state in ("queued", "running")]
    if open_ids:
        raise InputInvalid(
            f"erasure {open_ids[0]} of this camera and time is under way: submit the file again"
            " when `ris erasures` says that it is done"
        )
    return any(erasure.created_at >= segment.created_at for erasure, _ in reaching)


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    if path.exists() and not path.is_file():  # opening a pipe or a device could wait for ever
        raise VideoUnreadable(f"{path} is not a regular file; name a readable video file")
    if any(category(letter) == "Cs" for letter in str(path)):
        raise VideoUnreadable(f"{str(path)!r} is not a UTF-8 name; rename the file")
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_HASH_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise VideoUnreadable(
            f"{path}: {error.strerror or error}; name a readable video file"
        ) from error
    return digest.hexdigest()


def _start_time(context: Context, path: Path, given: datetime | None) -> tuple[datetime, str]:
    """The given time, else the container's creation time, else when the file's writing began.

    A file is modified last when its recording ends, so its length is taken off.
    """
    if given is not None:
        try:
            return given.astimezone(UTC), "given"
        except OverflowError as error:
            raise InputInvalid(f"start time {given} is outside what a date can say") from error
    try:
        info = probe(path, context.settings.video_max_px)
        created, duration_s = info.creation_time_utc, info.duration_s or 0.0
    except RisError:
        created, duration_s = None, 0.0  # the ingest job will record why the file is no good
    if created is not None:
        return created, "container"
    ended = datetime.fromtimestamp(int(path.stat().st_mtime), UTC)
    return ended - timedelta(seconds=duration_s), "file-mtime"


def _file_state(path: Path) -> dict[str, int]:
    """What tells cheaply that a file is still the one that was accepted."""
    found = path.stat()
    return {"size_bytes": found.st_size, "mtime_ns": found.st_mtime_ns}


def _require_unchanged(segment: VideoSegment, accepted: dict[str, int] | None) -> None:
    """Raise :class:`VideoUnreadable` when the path now holds another recording, or none."""
    path = Path(segment.source_path)
    try:
        same = accepted is None or _file_state(path) == accepted
    except OSError as error:
        raise VideoUnreadable(f"{path}: {error.strerror or error}; restore the file") from error
    if not same and _hash_file(path) != segment.content_sha256:
        raise VideoUnreadable(
            f"{path} has changed since it was accepted: restore it, or ingest it anew"
        )


@dataclass(frozen=True, slots=True)
class _Run:
    """One slice of one segment's ingest."""

    context: Context
    lease: Lease
    segment: VideoSegment
    generation: IndexGeneration
    backbone: Backbone


def run_ingest(context: Context, job: ClaimedJob, lease: Lease) -> Outcome:
    """Ingest a segment from where it stands until it ends or the slice is over."""
    segment_id = int(job.payload["segment_id"])
    with context.db.transaction() as session:
        segment = video_record.find_segment(session, segment_id)
    if segment is None:
        raise NotFound(f"video segment {segment_id} is not known")
    _require_unchanged(segment, job.payload.get("file"))
    generation = ensure_live_generation(context)
    run = _Run(context, lease, segment, generation, backbone_of(context, generation))
    info = probe(Path(segment.source_path), context.settings.video_max_px)
    with sample_video(
        Path(segment.source_path),
        policy_from_json(segment.policy),
        input_size=run.backbone.spec.input_size,
        picture_max_side_px=context.settings.picture_max_side_px,
        max_px=context.settings.video_max_px,
        resume_after_pts=segment.resume_pts,
        threads=context.settings.threads,
    ) as video:
        pending: list[SampledFrame] = []
        for sampled in video:
            pending.append(sampled)
            if len(pending) >= context.settings.commit_batch:
                _commit(run, pending, video.report)
                pending.clear()
                if lease.slice_over():
                    return "yield"
                _give_way(context)
        if pending:
            _commit(run, pending, video.report)
    _finish(run, info, video.report)
    return "finished"


def _give_way(context: Context) -> None:
    """Let live feeds catch up first: what they miss is lost, a recording is not."""
    deadline_s = time.monotonic() + _GIVE_WAY_S
    while time.monotonic() < deadline_s:
        with context.db.transaction() as session:
            fresh_s = 3 * context.settings.feed_status_every_s
            if not feed_record.frames_behind(session, fresh_s):
                return
        time.sleep(_GIVE_WAY_S / 10)


def fail_ingest(session: Session, job: ClaimedJob, _code: str) -> None:
    """Note on the segment that its ingest failed; frames already committed stay searchable."""
    video_record.finish_segment(session, int(job.payload["segment_id"]), "failed")


def _commit(run: _Run, sampled: Sequence[SampledFrame], report: DecodeReport) -> None:
    """Everything that makes these frames searchable, and the point to resume behind, at once."""
    start_utc = run.segment.start_utc
    try:
        times = [start_utc + timedelta(seconds=frame.t_s) for frame in sampled]
    except OverflowError as error:
        raise VideoInvalid(
            f"{run.segment.source_path}: a timestamp is absurd; remux the file"
        ) from error
    with run.context.db.transaction() as session:
        kept = not_erased(session, run.segment, times)
    batch = PictureBatch(
        t_utc=[times[position] for position in kept],
        pts=[sampled[position].pts for position in kept],
        imgs_input_hwc=[sampled[position].img_input_hwc for position in kept],
        imgs_picture_hwc=[sampled[position].img_picture_hwc for position in kept],
    )
    prepared = prepare_batch(run.context, run.backbone, batch) if kept else None
    frame_count = run.segment.frame_count + len(kept)
    try:
        _record(run, prepared, (times[-1], sampled[-1].pts, frame_count), report)
    except ErasedMeanwhile:
        assert prepared is not None
        discard_pictures(run.context, [frame.picture_sha256 for frame in prepared.frames])
        raise
    run.segment.frame_count = frame_count


def _record(
    run: _Run,
    prepared: PreparedBatch | None,
    so_far: tuple[datetime, int, int],
    report: DecodeReport,
) -> None:
    """One transaction; ``so_far``: time and pts of the batch's last frame, frames until then."""
    t_utc, pts, frame_count = so_far
    with ExitStack() as held, run.context.db.transaction() as session:
        progress = {"frames": frame_count, "t_utc": t_utc.isoformat()}
        run.lease.record_progress(session, progress)
        if prepared is not None:
            record_batch(run.context, session, run.segment, run.generation, prepared, held)
        video_record.set_segment(
            session,
            run.segment.id,
            resume_pts=pts,
            frame_count=frame_count,
            frames_decoded=run.segment.frames_decoded + report.frames_decoded,
            decode_errors=run.segment.decode_errors + report.decode_errors,
        )


def _finish(run: _Run, info: VideoInfo, report: DecodeReport) -> None:
    errors = run.segment.decode_errors + report.decode_errors
    with run.context.db.transaction() as session:
        frames = video_record.count_frames(session, run.segment.id)
        video_record.finish_segment(
            session,
            run.segment.id,
            "partial" if report.truncated or errors or report.frames_out_of_order else "complete",
            frame_count=frames,
            frames_decoded=run.segment.frames_decoded + report.frames_decoded,
            decode_errors=errors,
            container=info.container,
            codec=info.codec,
            h_px=info.display_size.h_px,
            w_px=info.display_size.w_px,
            duration_s=info.duration_s,
            frames_expected=info.frames_expected,
        )
        run.lease.finish(session, {"frames": frames})
