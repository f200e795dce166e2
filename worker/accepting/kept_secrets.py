"""Secrets that must be read again, as Postgres keeps them: the one place that turns them over.

A key of the API is kept as a hash. What signs messages cannot be: it is kept as it is, so the
database and its backups are to be protected.
"""

from __future__ import annotations


def to_keep(secret: str) -> str:
    """What is written."""
    return secret


def as_given(kept: str) -> str:
    """The secret again."""
    return kept
