"""What became of messages that tell of recordings."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, created_at_column


class MessageCount(Base):
    """How many messages of a source had an outcome, and the last of them.

    ``accepted``: a segment was made, or was there; ``malformed``: of no known shape; ``refused``:
    it may not be fetched from there, and the like.
    """

    __tablename__ = "message_counts"
    __table_args__ = (
        CheckConstraint("outcome in ('accepted', 'malformed', 'refused')", name="outcome_known"),
    )

    source: Mapped[str] = mapped_column(primary_key=True)
    outcome: Mapped[str] = mapped_column(primary_key=True)
    messages: Mapped[int]
    last_detail: Mapped[str | None]
    last_at: Mapped[datetime] = created_at_column()
