"""Feeds as the command line orders them: add, pause, resume, remove; and making it so."""

from __future__ import annotations

import uuid
from functools import cache
from typing import Final

import structlog

from models.feed import Feed
from models.repositories import feeds as feed_record
from models.repositories.jobs import ClaimedJob
from models.session import Session
from worker.accepting import feeds as accepting
from worker.accepting.desk import COMMAND_LINE
from worker.accepting.events import tell_feed
from worker.accepting.names import checked_name
from worker.context import Context
from worker.core.sampling import SamplingPolicy
from worker.errors import NotFound, SecretKeyMissing
from worker.secret_keys import secret_keys

log = structlog.get_logger()

REST_S: Final = 600.0
"""How long after its job failed a feed gets another one by itself."""


def add_feed(context: Context, camera_name: str, url: str, policy: SamplingPolicy) -> int:
    """Have a camera read from now on; returns the feed's id. Repeating it changes nothing.

    Raises :class:`InputInvalid` for a bad name, :class:`AlreadyThere` for a camera with another
    feed, :class:`AddressRefused`, and :class:`SecretKeyMissing`.
    """
    name = checked_name("camera name", camera_name)
    order = accepting.checked_feed(context.settings, url, policy)
    with context.db.transaction() as session:
        camera = accepting.feed_camera(session, COMMAND_LINE, name)
        accepted = accepting.add_feed(session, COMMAND_LINE, camera, order)
    _ring(context, accepted.job_id)
    return accepted.feed_id


def pause_feed(context: Context, camera_name: str) -> None:
    """Stop reading a camera until it is resumed. Raises :class:`NotFound`."""
    with context.db.transaction() as session:
        accepting.pause_feed(session, COMMAND_LINE, _named(session, camera_name).id)


def resume_feed(context: Context, camera_name: str) -> None:
    """Read a camera again. Raises :class:`NotFound`."""
    with context.db.transaction() as session:
        accepted = accepting.resume_feed(session, COMMAND_LINE, _named(session, camera_name).id)
    _ring(context, accepted.job_id)


def remove_feed(context: Context, camera_name: str) -> None:
    """Read a camera no more and forget its address; footage, gaps and counts stay.

    Raises :class:`NotFound`.
    """
    with context.db.transaction() as session:
        accepting.remove_feed(session, COMMAND_LINE, _named(session, camera_name).id)


def note_trouble(session: Session, feed_id: int, trouble: tuple[str, str], reason: str) -> bool:
    """Write that a feed is not read, and a gap; ``trouble``: code and detail for people.

    False when it shall not be read anyway.
    """
    wanted = feed_record.wanted(session, feed_id)
    feed, status = feed_record.find(session, feed_id), feed_record.status_of(session, feed_id)
    if wanted is None or feed is None or status is None:
        return False
    from_utc = status.last_frame_utc or status.last_seen_utc
    if from_utc is not None and feed_record.open_gap(session, feed.camera_id, from_utc, reason):
        name = feed.camera.name
        tell_feed(session, "feed.down", feed.camera_id, name, since_utc=from_utc, reason=reason)
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
            job_id = accepting.ensure_job(session, feed_id)
        _ring(context, job_id)
        made += job_id is not None
    return made


def seal_addresses(context: Context) -> int:
    """Encrypt addresses that are kept in clear, or with an older key; returns how many.

    Without a key those in clear stay, and are read; the log says so once.
    """
    with context.db.transaction() as session:
        kept = feed_record.addresses(session)
    sealed = 0
    try:
        keys = secret_keys(context.settings)
        for feed_id, url, sealed_url in kept:
            if accepting.needs_sealing(url, sealed_url, keys):
                with context.db.transaction() as session:
                    sealed += accepting.seal_address(session, feed_id, keys)
    except SecretKeyMissing as error:
        _warn_of_keys(str(error))
    if sealed:
        log.info("feed_addresses_encrypted", feeds=sealed)
    return sealed


@cache
def _warn_of_keys(detail: str) -> None:
    """Once per process and reason."""
    log.warning("feed_addresses_not_encrypted", detail=detail)


def _ring(context: Context, job_id: uuid.UUID | None) -> None:
    if job_id is not None:
        context.ring(job_id, "feed")


def _named(session: Session, camera_name: str) -> Feed:
    feed = feed_record.named(session, camera_name)
    if feed is None:
        raise NotFound(f"camera {camera_name!r} has no feed: `ris feed ls` lists them")
    return feed
