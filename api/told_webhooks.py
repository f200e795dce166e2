"""What answers about webhooks hold. Addresses are told without what is secret in them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from models.events import Delivery, Webhook
from worker.accepting.webhooks import shown_url


class WebhookTold(BaseModel):
    """An address that is told of events, and how that goes."""

    webhook_id: int
    name: str
    url: str = Field(description="Without user, password and query.")
    kinds: list[str]
    key_id: int | None = Field(description="The key that made it; null: the command line.")
    state: Literal["active", "paused", "gone"] = Field(
        description="gone: its receiver answered 410, and it is told nothing more."
    )
    failures: int = Field(description="In a row, of any event.")
    pending: int
    delivered: int
    dead: int = Field(description="Given up; GET deliveries says why.")
    last_delivered_at: datetime | None
    created_at: datetime

    @classmethod
    def of(cls, webhook: Webhook, counts: Mapping[str, int]) -> WebhookTold:
        """From a row, and its deliveries by state."""
        return cls(**_fields(webhook, counts))


class WebhookMade(WebhookTold):
    """A webhook with its secret, which is told this once."""

    secret: str

    @classmethod
    def with_secret(cls, webhook: Webhook, counts: Mapping[str, int], secret: str) -> WebhookMade:
        """From a row."""
        return cls(**_fields(webhook, counts), secret=secret)


def _fields(webhook: Webhook, counts: Mapping[str, int]) -> dict[str, Any]:
    states = ("pending", "delivered", "dead")
    return {
        "webhook_id": webhook.id,
        "name": webhook.name,
        "url": shown_url(webhook.url),
        "kinds": webhook.kinds,
        "key_id": webhook.key_id,
        "state": webhook.state,
        "failures": webhook.failures,
        "last_delivered_at": webhook.last_delivered_at,
        "created_at": webhook.created_at,
        **{state: counts.get(state, 0) for state in states},
    }


class DeliveryTold(BaseModel):
    """An event on its way to a webhook."""

    event_id: uuid.UUID = Field(description="`webhook-id` of the message.")
    kind: str
    data: dict[str, Any]
    state: Literal["pending", "delivered", "dead"]
    attempts: int
    next_try_at: datetime | None = Field(description="Of one that is pending.")
    status: int | None = Field(description="HTTP status of the last answer, if there was one.")
    detail: str | None = Field(description="Why the last try failed.")
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, delivery: Delivery) -> DeliveryTold:
        """From a row with its event."""
        return cls(
            event_id=delivery.event_id,
            kind=delivery.event.kind,
            data=delivery.event.data,
            state=delivery.state,
            attempts=delivery.attempts,
            next_try_at=delivery.next_try_at if delivery.state == "pending" else None,
            status=delivery.status,
            detail=delivery.detail,
            created_at=delivery.created_at,
            finished_at=delivery.finished_at,
        )
