"""Events out: what happened, who is to be told of it, and how that went."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, Text, func
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Base, created_at_column


class Webhook(Base):
    """An address that is told of events of some kinds.

    ``key_id``: the API key that made it; it is told of no more than that key may see, and of
    nothing once the key is revoked or expired. Null: made at the command line, told of everything.
    ``secret``, ``former_secret``: as ``worker.accepting.kept_secrets`` keeps them; the former one
    signs too until ``former_until``. ``held_until``: one worker delivers to it until then.
    ``rest_until``: after a failure it is left alone so long. ``failures``: in a row.
    """

    __tablename__ = "webhooks"
    __table_args__ = (
        CheckConstraint("length(name) between 1 and 200", name="name_length"),
        CheckConstraint("cardinality(kinds) > 0", name="kinds_given"),
        CheckConstraint("state in ('active', 'paused', 'gone')", name="state_known"),
        CheckConstraint(
            "(former_secret is null) = (former_until is null)", name="former_secret_ends"
        ),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str]
    url: Mapped[str]
    kinds: Mapped[list[str]] = mapped_column(ARRAY(Text))
    key_id: Mapped[int | None] = mapped_column(ForeignKey("api_keys.id"))
    secret: Mapped[str]
    former_secret: Mapped[str | None]
    former_until: Mapped[datetime | None]
    state: Mapped[str] = mapped_column(server_default="active")
    held_until: Mapped[datetime | None]
    rest_until: Mapped[datetime | None]
    failures: Mapped[int] = mapped_column(server_default="0")
    last_delivered_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = created_at_column()


class Event(Base):
    """Something that happened, recorded in the transaction of it, if anybody is to be told.

    ``id`` is what receivers know it by. ``frame_id``, ``query_id``, ``standing_query_id``: what it
    tells of; it is erased with that.
    """

    __tablename__ = "events"
    __table_args__ = (
        Index(None, "frame_id"),
        Index(None, "query_id"),
        Index(None, "standing_query_id"),
        Index(None, "created_at"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    kind: Mapped[str]
    data: Mapped[dict[str, Any]]
    frame_id: Mapped[int | None] = mapped_column(ForeignKey("frames.id"))
    query_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("search_queries.id"))
    standing_query_id: Mapped[int | None] = mapped_column(
        ForeignKey("standing_queries.id", ondelete="CASCADE")
    )
    created_at: Mapped[datetime] = created_at_column()


class Delivery(Base):
    """An event on its way to a webhook. ``dead``: given up, ``detail`` says why.

    ``status``: of the last answer; null where there was none. ``detail``: why the last try failed.
    """

    __tablename__ = "deliveries"
    __table_args__ = (
        CheckConstraint("state in ('pending', 'delivered', 'dead')", name="state_known"),
        CheckConstraint("(state = 'pending') = (finished_at is null)", name="finished_if_over"),
        Index(
            "ix_deliveries_due",
            "webhook_id",
            "next_try_at",
            postgresql_where="state = 'pending'",
        ),
        Index(None, "webhook_id", "created_at", "event_id"),
    )

    event_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("events.id", ondelete="CASCADE"), primary_key=True
    )
    webhook_id: Mapped[int] = mapped_column(
        ForeignKey("webhooks.id", ondelete="CASCADE"), primary_key=True
    )
    state: Mapped[str] = mapped_column(server_default="pending")
    attempts: Mapped[int] = mapped_column(server_default="0")
    next_try_at: Mapped[datetime] = mapped_column(server_default=func.now())
    status: Mapped[int | None]
    detail: Mapped[str | None]
    created_at: Mapped[datetime] = created_at_column()
    finished_at: Mapped[datetime | None]

    event: Mapped[Event] = relationship(lazy="raise")
