"""Ingest: from a video segment to rows that queries can see.

Order of a batch: pictures and vectors are written and fsynced first, then one transaction records
frames, f_map runs, the shard's valid length, the resume point and the job's progress together.
What a crash leaves behind is bytes nobody refers to.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

from models.index import IndexGeneration
from models.repositories import feeds as feed_record
from models.repositories import videos as video_record
from models.repositories import watching as watch_record
from models.repositories.jobs import ClaimedJob
from models.session import Session
from models.video import VideoSegment
from worker.accepting.desk import COMMAND_LINE
from worker.accepting.events import tell_segment
from worker.accepting.names import checked_name
from worker.accepting.segments import (
    FileContent,
    Recording,
    Submission,
    file_state,
    hash_file,
    read_content,
    record_segment,
)
from worker.backbones.base import Backbone
from worker.context import Context
from worker.core.sampling import SamplingPolicy, policy_from_json
from worker.errors import (
    ErasedMeanwhile,
    InputInvalid,
    NotFound,
    RisError,
    VideoInvalid,
    VideoKilledDecoder,
    VideoTooSlow,
    VideoUnreadable,
)
from worker.generations import backbone_of, ensure_live_generation
from worker.jobs import Lease, Outcome
from worker.leftovers import let_go_recording
from worker.masks import camera_masks
from worker.messages import INGEST_QUEUE, JobKind
from worker.recording import (
    PictureBatch,
    PreparedBatch,
    discard_pictures,
    not_erased,
    prepare_batch,
    record_batch,
)
from worker.tracing import note, span
from worker.video.decoding import SampledApart, probe_apart, sample_apart
from worker.video.values import DecodeReport, SampledFrame, VideoInfo

_DECODER_ENDED = (VideoKilledDecoder, VideoTooSlow)
_COUNT_SLACK, _COUNT_SLACK_SHARE = 2, 0.02
"""Length times rate is no exact count."""
_GIVE_WAY_S = 5.0
"""How long a batch of a recording waits at most for live feeds."""


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
    name = checked_name("camera name", camera_name)
    recording = recording_of(context, path, policy, start_utc)
    with context.db.transaction() as session:
        camera = video_record.ensure_camera(session, name)
        submission = record_segment(session, camera.id, recording, COMMAND_LINE)
    if submission.is_new:
        context.ring(uuid.UUID(submission.job_id), "ingest")
    return submission


def recording_of(
    context: Context,
    path: Path,
    policy: SamplingPolicy,
    start_utc: datetime | None = None,
    start_source: str = "given",
    kind: JobKind = "ingest",
) -> Recording:
    """A file that nobody is writing to, as it may be submitted; without a start its own.

    Raises :class:`VideoUnreadable`, and :class:`InputInvalid` for a start without a zone.
    """
    if start_utc is not None and start_utc.tzinfo is None:
        raise InputInvalid(f"start time {start_utc} has no time zone: add one, e.g. +00:00")
    path = path.resolve()
    content = read_content(path)
    start, source = _start_time(context, path, content, start_utc)
    return Recording(
        path, content, start, start_source if source == "given" else source, policy, kind=kind
    )


def _start_time(
    context: Context, path: Path, content: FileContent, given: datetime | None
) -> tuple[datetime, str]:
    """The given time, else the container's creation time, else when the file's writing began.

    A file is modified last when its recording ends, so its length is taken off.
    """
    if given is not None:
        try:
            return given.astimezone(UTC), "given"
        except OverflowError as error:
            raise InputInvalid(f"start time {given} is outside what a date can say") from error
    try:
        configured = context.settings
        info = probe_apart(path, configured.video_max_px, deadline_s=configured.decode_deadline_s)
        created, duration_s = info.creation_time_utc, info.duration_s or 0.0
    except RisError:
        created, duration_s = None, 0.0  # the ingest job will record why the file is no good
    if created is not None:
        return created, "container"
    ended = datetime.fromtimestamp(content.state["mtime_ns"] // 10**9, UTC)
    return ended - timedelta(seconds=duration_s), "file-mtime"


def _file_of(context: Context, segment: VideoSegment) -> Path:
    """Where the recording lies: in the store, or at the path that was submitted."""
    if segment.held_sha256 is not None:
        return context.recordings.path(segment.held_sha256)
    return Path(segment.source_path)


@contextmanager
def _told_by_name(path: Path, segment: VideoSegment) -> Iterator[None]:
    """Errors name a recording of the store as it was called by whoever sent it."""
    try:
        yield
    except RisError as error:
        if segment.held_sha256 is None or str(path) not in str(error):
            raise
        raise type(error)(str(error).replace(str(path), segment.source_path)) from error


def _require_unchanged(path: Path, segment: VideoSegment, accepted: dict[str, int] | None) -> None:
    """Raise :class:`VideoUnreadable` when the path now holds another recording, or none."""
    try:
        same = accepted is None or file_state(path) == accepted
    except OSError as error:
        raise VideoUnreadable(f"{path}: {error.strerror or error}; restore the file") from error
    if not same and hash_file(path) != (segment.held_sha256 or segment.content_sha256):
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
    path = _file_of(context, segment)
    with _told_by_name(path, segment):
        _require_unchanged(path, segment, job.payload.get("file"))
        generation = ensure_live_generation(context)
        note(segment_id=segment_id, camera_id=segment.camera_id, generation_id=generation.id)
        run = _Run(context, lease, segment, generation, backbone_of(context, generation))
        outcome = _ingest(run, path)
    if outcome == "finished":
        let_go_recording(context, segment.id)
    return outcome


def _ingest(run: _Run, path: Path) -> Outcome:
    """One slice of a file."""
    context, segment = run.context, run.segment
    with sample_apart(
        path,
        policy_from_json(segment.policy),
        input_size=run.backbone.spec.input_size,
        picture_max_side_px=context.settings.picture_max_side_px,
        max_px=context.settings.video_max_px,
        resume_after_pts=segment.resume_pts,
        threads=context.settings.threads,
        deadline_s=context.settings.decode_deadline_s,
    ) as video:
        if _take_frames(run, video):
            return "yield"
        info, report = video.info, video.report
    _finish(run, info, report)
    return "finished"


def _take_frames(run: _Run, video: SampledApart) -> bool:
    """Record what the decoder gives, batch by batch; True when the slice is over before its end.

    What a decoder gave before its file killed it is recorded too.
    """
    pending: list[SampledFrame] = []
    batch = run.context.settings.commit_batch
    while True:
        try:
            with span("ingest.decode"):
                for sampled in islice(video, batch):
                    pending.append(sampled)
                note(frames=len(pending))
        except _DECODER_ENDED:
            if pending:
                _commit(run, pending, video.report)
            raise
        if pending:
            _commit(run, pending, video.report)
        if len(pending) < batch:
            return False
        pending.clear()
        if run.lease.slice_over() or _waited_for(run):
            return True
        _give_way(run.context)


def _waited_for(run: _Run) -> bool:
    """Whether an archive holds up what just happened."""
    if run.lease.job.kind != "backfill":
        return False
    with run.context.db.transaction() as session:
        return watch_record.any_due(session, INGEST_QUEUE)


def _give_way(context: Context) -> None:
    """Let live feeds catch up first: what they miss is lost, a recording is not."""
    deadline_s = time.monotonic() + _GIVE_WAY_S
    while time.monotonic() < deadline_s:
        with context.db.transaction() as session:
            fresh_s = 3 * context.settings.feed_status_every_s
            if not feed_record.frames_behind(session, fresh_s):
                return
        time.sleep(_GIVE_WAY_S / 10)


def fail_ingest(session: Session, job: ClaimedJob, code: str) -> None:
    """Note on the segment that its ingest failed; frames already committed stay searchable.

    Where it was the file that ended its decoder, they are a part of it.
    """
    segment_id = int(job.payload["segment_id"])
    ended_decoder = code in [kind.code for kind in _DECODER_ENDED]
    partial = ended_decoder and video_record.count_frames(session, segment_id) > 0
    outcome = "partial" if partial else "failed"
    video_record.finish_segment(session, segment_id, outcome)
    segment = video_record.find_segment(session, segment_id)
    if segment is not None:
        tell_segment(session, "segment.failed", segment, code=code, outcome=outcome)


def after_failed_ingest(context: Context, job: ClaimedJob) -> None:
    """What was sent for an ingest that failed is of no use any more."""
    let_go_recording(context, int(job.payload["segment_id"]))


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
        mask = camera_masks(session, [run.segment.camera_id]).get(run.segment.camera_id)
    batch = PictureBatch(
        t_utc=[times[position] for position in kept],
        pts=[sampled[position].pts for position in kept],
        imgs_input_hwc=[sampled[position].img_input_hwc for position in kept],
        imgs_picture_hwc=[sampled[position].img_picture_hwc for position in kept],
        masks=[mask] * len(kept),
        codec=run.generation.codec,
    )
    with span("ingest.embed", frames=len(kept)):
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
    with span("ingest.commit"), ExitStack() as held, run.context.db.transaction() as session:
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
    decoded = run.segment.frames_decoded + report.frames_decoded
    # A file that lost pictures without any error: the count alone tells.
    miscounted = report.frames_listed is not None and decoded != report.frames_listed
    damaged = bool(report.truncated or errors or report.frames_out_of_order or miscounted)
    with run.context.db.transaction() as session:
        frames = video_record.count_frames(session, run.segment.id)
        video_record.finish_segment(
            session,
            run.segment.id,
            "partial" if damaged else "complete",
            frame_count=frames,
            frames_decoded=decoded,
            decode_errors=errors,
            container=info.container,
            codec=info.codec,
            h_px=info.display_size.h_px,
            w_px=info.display_size.w_px,
            duration_s=info.duration_s,
            frames_expected=_expected(info, report),
        )
        progress = {"frames": frames}
        if _miscounts(run, info, report, decoded):
            progress |= {"decoded": decoded, "expected": _expected(info, report) or 0}
        outcome = "partial" if damaged else "complete"
        tell_segment(session, "segment.ingested", run.segment, frames=frames, outcome=outcome)
        run.lease.finish(session, progress)


def _expected(info: VideoInfo, report: DecodeReport) -> int | None:
    """Pictures that the file should hold: as it lists them, else by its length and rate."""
    return info.frames_expected if report.frames_listed is None else report.frames_listed


def _miscounts(run: _Run, info: VideoInfo, report: DecodeReport, decoded: int) -> bool:
    """Whether a file held other than the pictures it lists, or by far not what its length says."""
    if report.frames_listed is not None:
        return decoded != report.frames_listed
    if info.frames_expected is None or run.segment.policy["kind"] == "keyframe":
        return False  # not every picture was decoded
    off = abs(decoded - info.frames_expected)
    return off > max(_COUNT_SLACK, _COUNT_SLACK_SHARE * info.frames_expected)
