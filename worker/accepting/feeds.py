"""Feeds ordered, paused, resumed and removed: what is wanted of them, in one transaction.

The address may hold a user and a password: it goes into the feed's row, encrypted, and nowhere
else.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

from models.feed import Feed
from models.repositories import feeds as feed_record
from models.repositories import jobs as job_record
from models.repositories import videos as video_record
from models.session import Session
from models.video import Camera
from worker.accepting.audit import record_act
from worker.accepting.cameras import create_camera
from worker.accepting.desk import Actor
from worker.accepting.names import checked_name
from worker.config import Settings
from worker.core.sampling import SamplingPolicy, policy_to_json
from worker.errors import AlreadyThere, NotFound
from worker.messages import FEED_QUEUE
from worker.secret_keys import SecretKeys, secret_keys
from worker.tracing import carried
from worker.video.address import (
    AddressRules,
    SourceKind,
    check_address,
    holds_secrets,
    redacted,
)


@dataclass(frozen=True, slots=True)
class FeedOrder:
    """An address that may be a feed's, and how its pictures are sampled."""

    url: str
    source_kind: SourceKind
    policy: SamplingPolicy
    keys: SecretKeys

    def __repr__(self) -> str:
        """Without what is secret in the address."""
        return f"FeedOrder({redacted(self.url)}, {self.policy})"


@dataclass(frozen=True, slots=True)
class AcceptedFeed:
    """A feed, and the job to ring for after the commit; None: it has one already."""

    feed_id: int
    job_id: uuid.UUID | None


def rules_of(settings: Settings) -> AddressRules:
    """Which addresses the settings allow."""
    return AddressRules(
        schemes=listed(settings.feed_schemes),
        hosts=listed(settings.feed_hosts or ""),
        files_dir=None if settings.feed_files_dir is None else Path(settings.feed_files_dir),
    )


def listed(text: str) -> tuple[str, ...]:
    """The parts of a list of names, lower case."""
    return tuple(part.strip().lower() for part in text.split(",") if part.strip())


def shown_url(url: str) -> str:
    """The address as it may be shown."""
    return redacted(url)


def kept_address(url: str, keys: SecretKeys) -> dict[str, str | None]:
    """An address as its row keeps it. Raises :class:`SecretKeyMissing` if it needs a key."""
    if not holds_secrets(url):
        return {"url": url, "sealed_url": None}
    return {"url": redacted(url), "sealed_url": keys.seal(url)}


def address_of(feed: Feed, keys: SecretKeys) -> str:
    """The whole address, for the connection only. Raises :class:`SecretKeyMissing`."""
    return feed.url if feed.sealed_url is None else keys.open(feed.sealed_url)


def seal_address(session: Session, feed_id: int, keys: SecretKeys) -> bool:
    """Encrypt an address that is not, or not with the newest key; False: it is as it should be.

    Raises :class:`SecretKeyMissing`.
    """
    feed = feed_record.lock(session, feed_id)
    if feed is None or not needs_sealing(feed.url, feed.sealed_url, keys):
        return False
    kept = kept_address(address_of(feed, keys), keys)
    feed.url, feed.sealed_url = str(kept["url"]), kept["sealed_url"]
    return True


def needs_sealing(url: str, sealed_url: str | None, keys: SecretKeys) -> bool:
    """Whether a row's address is in clear and should not be, or has an older key."""
    if sealed_url is None:
        return holds_secrets(url)
    return bool(keys.keys) and not keys.is_newest(sealed_url)


def checked_feed(settings: Settings, url: str, policy: SamplingPolicy) -> FeedOrder:
    """What can be checked without the record.

    Raises :class:`AddressRefused`, and :class:`SecretKeyMissing` for a damaged key file.
    """
    kind = check_address(url, rules_of(settings))
    return FeedOrder(url, kind, policy, secret_keys(settings))


def feed_camera(session: Session, actor: Actor, name: str) -> Camera:
    """The camera of that name, made if there is none. Raises :class:`InputInvalid`."""
    name = checked_name("camera name", name)
    return video_record.camera_named(session, name) or create_camera(session, actor, name)


def add_feed(session: Session, actor: Actor, camera: Camera, order: FeedOrder) -> AcceptedFeed:
    """Have a camera read from now on. Repeating it changes nothing.

    Raises :class:`AlreadyThere` for a camera with another feed, and :class:`SecretKeyMissing` for
    an address with a password where there is no key.
    """
    values = {
        **kept_address(order.url, order.keys),
        "source_kind": order.source_kind,
        "policy": policy_to_json(order.policy),
    }
    feed = feed_record.create(session, camera.id, values)
    is_new = feed is not None
    if feed is None:
        feed = feed_record.named(session, camera.name)
    if feed is None or (address_of(feed, order.keys), feed.policy) != (
        order.url,
        values["policy"],
    ):
        raise AlreadyThere(
            f"camera {camera.name!r} has another feed: remove it first (`ris feed rm`), its footage"
            " stays"
        )
    job_id = ensure_job(session, feed.id)
    if is_new:
        record_act(
            session,
            actor,
            "feed.add",
            feed_id=feed.id,
            camera_id=camera.id,
            url=redacted(order.url),
            policy=values["policy"],
        )
    return AcceptedFeed(feed.id, job_id)


def pause_feed(session: Session, actor: Actor, feed_id: int) -> None:
    """Stop reading a camera until it is resumed. Raises :class:`NotFound`."""
    feed = _locked(session, feed_id)
    if feed.desired_state == "running":
        feed.desired_state = "paused"
        session.flush()
        record_act(session, actor, "feed.pause", feed_id=feed_id, camera_id=feed.camera_id)


def resume_feed(session: Session, actor: Actor, feed_id: int) -> AcceptedFeed:
    """Read a camera again, or a recording once more. Raises :class:`NotFound`."""
    feed = _locked(session, feed_id)
    changes = feed.desired_state != "running"
    feed.desired_state = "running"
    session.flush()
    job_id = ensure_job(session, feed_id)
    if changes or job_id is not None:
        record_act(session, actor, "feed.resume", feed_id=feed_id, camera_id=feed.camera_id)
    return AcceptedFeed(feed_id, job_id)


def remove_feed(session: Session, actor: Actor, feed_id: int) -> None:
    """Read a camera no more and forget its address; footage, gaps and counts stay.

    Raises :class:`NotFound`.
    """
    feed = _locked(session, feed_id)
    camera_id = feed.camera_id
    status = feed_record.status_of(session, feed_id)
    if status is not None and status.segment_id is not None:
        video_record.finish_live_segment(session, status.segment_id)
    feed_record.end_gap(session, camera_id)
    feed_record.remove(session, feed_id)
    record_act(session, actor, "feed.remove", feed_id=feed_id, camera_id=camera_id)


def ensure_job(session: Session, feed_id: int) -> uuid.UUID | None:
    """A new job for a feed that shall run and has none that is open; None otherwise."""
    feed = feed_record.lock(session, feed_id)
    if feed is None or feed.desired_state != "running":
        return None
    job = None if feed.job_id is None else job_record.find(session, feed.job_id)
    if job is not None and job.state in ("queued", "running"):
        return None
    payload = {"feed_id": feed.id, **carried()}
    feed.job_id = job_record.submit(session, "feed", FEED_QUEUE, payload)
    return feed.job_id


def _locked(session: Session, feed_id: int) -> Feed:
    feed = feed_record.lock(session, feed_id)
    if feed is None:
        raise NotFound(f"feed {feed_id} is not known")
    return feed
