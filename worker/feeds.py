"""Feeds as people order them: add, pause, resume, remove; and making it so."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Final
from unicodedata import category

from models.feed import Feed
from models.repositories import feeds as feed_record
from models.repositories import jobs as job_record
from models.repositories import videos as video_record
from models.repositories.jobs import ClaimedJob
from models.session import Session
from worker.config import Settings
from worker.context import Context
from worker.core.sampling import SamplingPolicy, policy_to_json
from worker.errors import InputInvalid, NotFound
from worker.messages import FEED_QUEUE
from worker.video.address import AddressRules, check_address

REST_S: Final = 600.0
"""How long after its job failed a feed gets another one by itself."""


def rules_of(settings: Settings) -> AddressRules:
    """Which addresses the settings allow."""
    return AddressRules(
        schemes=_listed(settings.feed_schemes),
        hosts=_listed(settings.feed_hosts or ""),
        files_dir=None if settings.feed_files_dir is None else Path(settings.feed_files_dir),
    )


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip().lower() for part in text.split(",") if part.strip())


def add_feed(context: Context, camera_name: str, url: str, policy: SamplingPolicy) -> int:
    """Have a camera read from now on; returns the feed's id. Repeating it changes nothing.

    Raises :class:`InputInvalid` for a bad name and for a camera with another feed, and
    :class:`AddressRefused`.
    """
    name = camera_name.strip()
    if not 1 <= len(name) <= 200 or any(category(letter) in ("Cc", "Cs") for letter in name):
        raise InputInvalid(f"camera name {camera_name!r}: use 1 to 200 characters, no controls")
    kind = check_address(url, rules_of(context.settings))
    values = {"url": url, "source_kind": kind, "policy": policy_to_json(policy)}
    with context.db.transaction() as session:
        camera = video_record.ensure_camera(session, name)
        feed = feed_record.create(session, camera.id, values)
        if feed is None:
            feed = feed_record.named(session, name)
            assert feed is not None
            if (feed.url, feed.policy) != (url, values["policy"]):
                raise InputInvalid(
                    f"camera {name!r} has another feed: `ris feed rm` it first, its footage stays"
                )
        feed_id = feed.id
        job_id = _ensure_job(session, feed_id)
    _ring(context, job_id)
    return feed_id


def pause_feed(context: Context, camera_name: str) -> None:
    """Stop reading a camera until it is resumed. Raises :class:`NotFound`."""
    with context.db.transaction() as session:
        feed = _named(session, camera_name)
        if feed.desired_state == "running":
            feed.desired_state = "paused"


def resume_feed(context: Context, camera_name: str) -> None:
    """Read a camera again. Raises :class:`NotFound`."""
    with context.db.transaction() as session:
        feed = _named(session, camera_name)
        feed.desired_state = "running"
        session.flush()
        job_id = _ensure_job(session, feed.id)
    _ring(context, job_id)


def remove_feed(context: Context, camera_name: str) -> None:
    """Read a camera no more and forget its address; footage, gaps and counts stay.

    Raises :class:`NotFound`.
    """
    with context.db.transaction() as session:
        feed = _named(session, camera_name)
        status = feed_record.status_of(session, feed.id)
        if status is not None and status.segment_id is not None:
            video_record.finish_live_segment(session, status.segment_id)
        feed_record.end_gap(session, feed.camera_id)
        feed_record.remove(session, feed.id)


def note_trouble(session: Session, feed_id: int, trouble: tuple[str, str], reason: str) -> bool:
    """Write that a feed is not read, and a gap; ``trouble``: code and detail for people.

    False when it shall not be read anyway.
    """
    wanted = feed_record.wanted(session, feed_id)
    feed, status = feed_record.find(session, feed_id), feed_record.status_of(session, feed_id)
    if wanted is None or feed is None or status is None:
        return False
    from_utc = status.last_frame_utc or status.last_seen_utc
    if from_utc is not None:
        feed_record.open_gap(session, feed.camera_id, from_utc, reason)
    feed_record.set_status(
        session,
        feed_id,
        phase="waiting" if wanted == "running" else "idle",
        connected_since=None,
        error_code=trouble[0],
        error_detail=trouble[1],
    )
    return wanted == "running"


def fail_feed(session: Session, job: ClaimedJob, code: str) -> None:
    """Write down that a feed's job failed; the reconciler makes another one later."""
    detail = f"job {job.id} failed, see the worker log; tried again after {REST_S / 60:.0f} minutes"
    reason = code if code == "worker_lost" else "internal"
    note_trouble(session, int(job.payload["feed_id"]), (code, detail), reason)


def any_running(context: Context) -> bool:
    """Whether a feed is wanted to run."""
    with context.db.transaction() as session:
        return feed_record.any_running(session)


def reconcile(context: Context) -> int:
    """Make a job for every feed that shall run and has none; returns how many.

    A feed whose job failed rests first: it may be one that takes the whole worker down.
    """
    with context.db.transaction() as session:
        jobless = feed_record.jobless(session, REST_S)
    made = 0
    for feed_id in jobless:
        with context.db.transaction() as session:
            job_id = _ensure_job(session, feed_id)
        _ring(context, job_id)
        made += job_id is not None
    return made


def _ensure_job(session: Session, feed_id: int) -> uuid.UUID | None:
    """A new job for a feed that shall run and has none that is open; None otherwise."""
    feed = feed_record.lock(session, feed_id)
    if feed is None or feed.desired_state != "running":
        return None
    job = None if feed.job_id is None else job_record.find(session, feed.job_id)
    if job is not None and job.state in ("queued", "running"):
        return None
    feed.job_id = job_record.submit(session, "feed", FEED_QUEUE, {"feed_id": feed.id})
    return feed.job_id


def _ring(context: Context, job_id: uuid.UUID | None) -> None:
    if job_id is not None:
        context.ring(job_id, "feed")


def _named(session: Session, camera_name: str) -> Feed:
    feed = feed_record.named(session, camera_name)
    if feed is None:
        raise NotFound(f"camera {camera_name!r} has no feed: `ris feed ls` lists them")
    return feed
