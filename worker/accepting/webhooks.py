"""Webhooks: made, changed, tried out, removed. The secret is told when it is made."""

from __future__ import annotations

import base64
import contextlib
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from models.events import Webhook
from models.repositories import events as event_record
from models.repositories.events import NewEvent
from models.session import Session
from worker.accepting.audit import record_act
from worker.accepting.desk import COMMAND_LINE, Actor
from worker.accepting.events import ACTION_OF_KIND, EVENT_KINDS, TEST_KIND
from worker.accepting.feeds import listed
from worker.accepting.kept_secrets import as_given, to_keep
from worker.accepting.keys import Caller
from worker.accepting.names import checked_name
from worker.config import Settings
from worker.errors import AddressRefused, FeedFailed, Forbidden, InputInvalid, NotFound
from worker.video.address import AddressRules, looked_up, redacted

OVERLAP_S: Final = 24 * 3600.0
"""How long the former secret signs as well."""


_SECRET_BYTES: Final = 32
_MQTT: Final = "mqtt:"
_MAX_TOPIC_BYTES: Final = 500


@dataclass(frozen=True, slots=True)
class WebhookMaker:
    """Who makes webhooks: ``caller`` None at the command line, which is told of everything."""

    actor: Actor
    caller: Caller | None = None

    @property
    def owner(self) -> int | None:
        """The key whose webhooks are seen; None: those of all."""
        return None if self.caller is None or self.caller.may("admin") else self.caller.key_id


AT_COMMAND_LINE: Final = WebhookMaker(COMMAND_LINE)


def webhook_rules(settings: Settings) -> AddressRules:
    """Which addresses may be told. Without a list only those that the whole internet has."""
    return AddressRules(
        schemes=("https", "http"),
        hosts=listed(settings.webhook_hosts or ""),
        files_dir=None,
        private=False,
        setting="RIS_WEBHOOK_HOSTS",
    )


def checked_url(settings: Settings, url: str) -> str:
    """The address, if it may be told now. Asks the network for its name; one that is not known yet
    is let through, for it is looked up at each delivery. Raises :class:`AddressRefused`, and
    :class:`InputInvalid` for one with a user or password, or a topic that cannot be told."""
    if url.lower().startswith(_MQTT):
        return _MQTT + _checked_topic(settings, url[len(_MQTT) :])
    with contextlib.suppress(FeedFailed):
        looked_up(url, webhook_rules(settings))
    if "@" in url.split("/")[2]:
        raise InputInvalid("the address has a user or password: receivers check the signature")
    return url


def _checked_topic(settings: Settings, topic: str) -> str:
    """A topic below the prefix: a key that may be told is not to write to a home's doors."""
    if settings.mqtt_url is None:
        raise AddressRefused("mqtt: needs a broker: RIS_MQTT_URL is not set")
    prefix = settings.mqtt_out_prefix
    if not topic.startswith(prefix) or topic == prefix:
        raise AddressRefused(
            f"mqtt: only topics below {prefix!r} may be told (RIS_MQTT_OUT_PREFIX)"
        )
    if len(topic.encode()) > _MAX_TOPIC_BYTES or not topic.isprintable() or set("+#") & set(topic):
        raise InputInvalid(
            f"a topic has at most {_MAX_TOPIC_BYTES} bytes that can be printed, and no + or #"
        )
    return topic


def create_webhook(
    session: Session,
    maker: WebhookMaker,
    *,
    name: str,
    url: str,
    kinds: Sequence[str],
) -> tuple[Webhook, str]:
    """Make a webhook of an address that :func:`checked_url` let through; returns it and its secret,
    which cannot be read again. Raises :class:`InputInvalid`, and :class:`Forbidden` for kinds that
    the key may not read either."""
    secret = _new_secret()
    webhook = event_record.add_webhook(
        session,
        name=checked_name("name", name),
        url=url,
        kinds=checked_kinds(maker, kinds),
        key_id=None if maker.caller is None else maker.caller.key_id,
        secret=to_keep(secret),
    )
    told = {"url": shown_url(url), "kinds": webhook.kinds}
    record_act(session, maker.actor, "webhook.create", webhook_id=webhook.id, **told)
    return webhook, secret


def checked_kinds(maker: WebhookMaker, kinds: Sequence[str]) -> list[str]:
    """Kinds in their order, all of those that the maker may read where none are given. Raises as
    :func:`create_webhook`."""
    caller = maker.caller
    allowed = [kind for kind in EVENT_KINDS if caller is None or caller.may(ACTION_OF_KIND[kind])]
    if unknown := sorted(set(kinds) - set(EVENT_KINDS)):
        raise InputInvalid(f"kinds must be some of {', '.join(EVENT_KINDS)}; got {unknown[0]!r}")
    if refused := sorted(set(kinds) - set(allowed)):
        raise Forbidden(
            f"this API key does not allow what {refused[0]!r} tells of: leave it out, or ask for a"
            " key that does"
        )
    chosen = [kind for kind in allowed if not kinds or kind in kinds]
    if not chosen:
        raise Forbidden("this API key may read nothing that events tell of: ask for one that may")
    return list(chosen)


def known_webhook(session: Session, maker: WebhookMaker, webhook_id: int) -> Webhook:
    """A webhook that exists for whoever asks. Raises :class:`NotFound`."""
    found = None
    if 0 < webhook_id < 2**63:
        found = event_record.find_webhook(session, webhook_id, maker.owner)
    if found is None:
        raise NotFound(f"webhook {webhook_id} is not known")
    return found


def change_webhook(
    session: Session, maker: WebhookMaker, webhook_id: int, changes: dict[str, Any]
) -> Webhook:
    """Set ``name``, ``url`` (checked), ``kinds`` or ``state`` of a webhook. Raises
    :class:`NotFound` and as :func:`create_webhook`."""
    webhook = known_webhook(session, maker, webhook_id)
    if not changes:
        return webhook
    if "name" in changes:
        changes = changes | {"name": checked_name("name", changes["name"])}
    if "kinds" in changes:
        changes = changes | {"kinds": checked_kinds(maker, changes["kinds"])}
    if changes.get("state") == "active":
        changes = changes | {"rest_until": None, "failures": 0}
    event_record.change_webhook(session, webhook_id, changes)
    told: dict[str, Any] = {
        field: changes[field] for field in ("kinds", "state") if field in changes
    }
    if "url" in changes:
        told["url"] = shown_url(changes["url"])
    session.refresh(webhook)
    record_act(session, maker.actor, "webhook.change", webhook_id=webhook_id, **told)
    return webhook


def rotate_secret(session: Session, maker: WebhookMaker, webhook_id: int) -> tuple[Webhook, str]:
    """Another secret, told this once; messages carry the former one's signature too for a day.
    Raises :class:`NotFound`."""
    webhook = known_webhook(session, maker, webhook_id)
    secret = _new_secret()
    event_record.rotate_secret(session, webhook_id, to_keep(secret), OVERLAP_S)
    session.refresh(webhook)
    record_act(session, maker.actor, "webhook.rotate", webhook_id=webhook_id)
    return webhook, secret


def remove_webhook(session: Session, maker: WebhookMaker, webhook_id: int) -> None:
    """Tell it nothing more and forget what was on its way. Raises :class:`NotFound`."""
    known_webhook(session, maker, webhook_id)
    event_record.remove_webhook(session, webhook_id)
    record_act(session, maker.actor, "webhook.remove", webhook_id=webhook_id)


def send_test(session: Session, maker: WebhookMaker, webhook_id: int) -> uuid.UUID:
    """Have a test event delivered; returns its id. Raises :class:`NotFound`."""
    webhook = known_webhook(session, maker, webhook_id)
    told = {"webhook_id": webhook.id, "name": webhook.name}
    event_id = event_record.record(session, NewEvent(TEST_KIND, told), [webhook.id])
    assert event_id is not None
    event_record.change_webhook(session, webhook_id, {"rest_until": None})
    record_act(session, maker.actor, "webhook.test", webhook_id=webhook_id)
    return event_id


def signing_secrets(session: Session, webhook_id: int) -> list[str]:
    """What messages to a webhook are signed with now."""
    return [as_given(kept) for kept in event_record.signing_secrets(session, webhook_id)]


def shown_url(url: str) -> str:
    """The address as it may be shown: without what is secret in it."""
    return url if url.startswith(_MQTT) else redacted(url)


def _new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()
