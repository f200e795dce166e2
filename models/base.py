"""Declarative base: constraint names, column types and loading rules shared by all tables."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import BigInteger, MetaData, Text, Uuid, func
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
    "ex": "ex_%(table_name)s_%(constraint_name)s",
}


class Base(DeclarativeBase):
    """All tables. Datetimes are timestamptz, text is unbounded, JSON is jsonb."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: TIMESTAMP(timezone=True),
        dict[str, Any]: JSONB,
        list[dict[str, Any]]: JSONB,
        str: Text,
        int: BigInteger,
        uuid.UUID: Uuid,
    }


def created_at_column() -> Mapped[datetime]:
    """Time of insertion by the database's clock."""
    return mapped_column(server_default=func.now())
