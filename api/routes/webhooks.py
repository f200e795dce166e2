"""/v1/webhooks: who is told of events, and how that went."""

from __future__ import annotations

import uuid
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from fastapi.concurrency import run_in_threadpool

from api.access import Notifier
from api.bodies import WebhookBody, WebhookChangeBody, json_body, named
from api.desk import ApiDesk, Here
from api.fields import Cursor, Id, IdempotencyKey, Limit, moment, next_cursor, read_cursor, whole
from api.given import WebhookChange, WebhookGiven
from api.problems import READING, WRITING
from api.told import Page
from api.told_webhooks import DeliveryTold, WebhookMade, WebhookTold
from models.events import Webhook
from models.repositories import events as event_record
from models.session import Session
from worker.accepting import webhooks as accepting
from worker.accepting.keys import Caller
from worker.accepting.repeats import NamedRequest, made_before, note_made, repeated
from worker.accepting.webhooks import WebhookMaker
from worker.errors import NotFound

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])


@router.get("", responses=READING)
def list_webhooks(
    caller: Notifier, desk: Here, limit: Limit = 100, cursor: Cursor = None
) -> Page[WebhookTold]:
    """Webhooks of this key by id; an admin key sees those of all."""
    after = read_cursor(cursor, whole) or (0,)
    with desk.db.transaction() as session:
        found = event_record.list_webhooks(session, _maker(caller).owner, after[0], limit)
    return Page(
        items=[WebhookTold.of(webhook, counts) for webhook, counts in found],
        next_cursor=next_cursor(found, limit, lambda row: [row[0].id]),
    )


@router.post("", status_code=201, responses=WRITING, openapi_extra=json_body(WebhookGiven))
async def add_webhook(
    caller: Notifier,
    desk: Here,
    given: WebhookBody,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> WebhookMade:
    """Tell an address of events. Its secret is in this answer, and in that to the same request sent
    again with its Idempotency-Key, and nowhere else."""
    url = given.url.get_secret_value()
    asked = named(idempotency_key, "webhook", given.model_dump(exclude={"url"}), url)
    told = await run_in_threadpool(_made_webhook, desk, caller, given, url, asked)
    response.headers["Location"] = f"/v1/webhooks/{told.webhook_id}"
    return told


def _made_webhook(
    desk: ApiDesk, caller: Caller, given: WebhookGiven, url: str, asked: NamedRequest | None
) -> WebhookMade:
    maker = _maker(caller)
    with desk.db.transaction() as session:
        made = repeated(session, caller.key_id, asked)
    # Looking a name up takes a while: no transaction is open meanwhile.
    url = url if made is not None else accepting.checked_url(desk.settings, url)
    with desk.db.transaction() as session:
        made = made_before(session, caller.key_id, asked)
        if made is None:
            webhook, secret = accepting.create_webhook(
                session, maker, name=given.name, url=url, kinds=given.kinds
            )
            note_made(session, caller.key_id, asked, str(webhook.id))
            return WebhookMade.with_secret(webhook, {}, secret)
        webhook = accepting.known_webhook(session, maker, int(made))
        counts = event_record.delivery_counts(session, [webhook.id]).get(webhook.id, {})
        return WebhookMade.with_secret(
            webhook, counts, accepting.signing_secrets(session, webhook.id)[0]
        )


@router.get("/{webhook_id}", responses=READING)
def get_webhook(caller: Notifier, desk: Here, webhook_id: Id) -> WebhookTold:
    """A webhook and how it goes."""
    with desk.db.transaction() as session:
        webhook = accepting.known_webhook(session, _maker(caller), webhook_id)
        return _told(session, webhook)


@router.patch("/{webhook_id}", responses=WRITING, openapi_extra=json_body(WebhookChange))
def change_webhook(
    caller: Notifier, desk: Here, webhook_id: Id, given: WebhookChangeBody
) -> WebhookTold:
    """Change name, address or kinds, pause it, or make it active again. What happens while it is
    paused waits."""
    changes = given.to_changes()
    if "url" in changes:
        changes["url"] = accepting.checked_url(desk.settings, changes["url"])
    with desk.db.transaction() as session:
        webhook = accepting.change_webhook(session, _maker(caller), webhook_id, changes)
        return _told(session, webhook)


@router.delete("/{webhook_id}", status_code=204, responses=WRITING)
def delete_webhook(caller: Notifier, desk: Here, webhook_id: Id) -> None:
    """Tell it nothing more; what was on its way is forgotten."""
    with desk.db.transaction() as session:
        accepting.remove_webhook(session, _maker(caller), webhook_id)


@router.post("/{webhook_id}/rotate", responses=WRITING)
def rotate_secret(caller: Notifier, desk: Here, webhook_id: Id) -> WebhookMade:
    """Another secret, in this answer and nowhere else. For a day messages are signed with the
    former one as well."""
    with desk.db.transaction() as session:
        webhook, secret = accepting.rotate_secret(session, _maker(caller), webhook_id)
        counts = event_record.delivery_counts(session, [webhook.id]).get(webhook.id, {})
    return WebhookMade.with_secret(webhook, counts, secret)


@router.post("/{webhook_id}/test", status_code=202, responses=WRITING)
def send_test(caller: Notifier, desk: Here, webhook_id: Id) -> DeliveryTold:
    """Have an event of the kind `webhook.test` delivered; see how that goes in its deliveries."""
    with desk.db.transaction() as session:
        event_id = accepting.send_test(session, _maker(caller), webhook_id)
        return _delivery(session, webhook_id, event_id)


@router.get("/{webhook_id}/deliveries", responses=READING)
def list_deliveries(
    caller: Notifier,
    desk: Here,
    webhook_id: Id,
    state: Annotated[Literal["pending", "delivered", "dead"] | None, Query()] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[DeliveryTold]:
    """Events for a webhook, newest first; those that ended go after RIS_EVENT_DAYS."""
    after = read_cursor(cursor, moment, lambda value: uuid.UUID(str(value)))
    with desk.db.transaction() as session:
        accepting.known_webhook(session, _maker(caller), webhook_id)
        found = event_record.list_deliveries(session, webhook_id, state, after, limit)
    return Page(
        items=[DeliveryTold.of(delivery) for delivery in found],
        next_cursor=next_cursor(found, limit, lambda one: [one.created_at, str(one.event_id)]),
    )


@router.post("/{webhook_id}/deliveries/{event_id}/retry", status_code=202, responses=WRITING)
def retry_delivery(
    caller: Notifier, desk: Here, webhook_id: Id, event_id: uuid.UUID
) -> DeliveryTold:
    """Deliver once more what was given up, or delivered; the event keeps its id."""
    with desk.db.transaction() as session:
        accepting.known_webhook(session, _maker(caller), webhook_id)
        event_record.try_again(session, webhook_id, event_id)
        return _delivery(session, webhook_id, event_id)


def _maker(caller: Caller) -> WebhookMaker:
    return WebhookMaker(caller.actor, caller)


def _told(session: Session, webhook: Webhook) -> WebhookTold:
    counts = event_record.delivery_counts(session, [webhook.id])
    return WebhookTold.of(webhook, counts.get(webhook.id, {}))


def _delivery(session: Session, webhook_id: int, event_id: uuid.UUID) -> DeliveryTold:
    found = event_record.find_delivery(session, webhook_id, event_id)
    if found is None:
        raise NotFound(f"webhook {webhook_id} has no event {event_id}")
    return DeliveryTold.of(found)
