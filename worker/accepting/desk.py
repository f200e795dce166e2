"""What accepting work needs of a process, and who asks for it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from models.session import Database
from worker.config import Settings
from worker.messages import JobKind
from worker.video.frame_store import FrameStore
from worker.video.recording_store import RecordingStore
from worker.video.upload_store import UploadStore


class Desk(Protocol):
    """Where work is accepted: the part of a worker's ``Context`` that the API has too.

    ``ring(job_id, kind)`` wakes a worker and never raises: the sweeper rings again.
    """

    @property
    def settings(self) -> Settings:
        """Of this process."""

    @property
    def db(self) -> Database:
        """The record."""

    @property
    def pictures(self) -> FrameStore:
        """Kept pictures."""

    @property
    def uploads(self) -> UploadStore:
        """Pictures that queries were made from."""

    @property
    def recordings(self) -> RecordingStore:
        """Recordings that are still to be ingested."""

    @property
    def ring(self) -> Callable[[uuid.UUID, JobKind], object]:
        """The bell."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts: ``name`` for the audit; ``key_id`` of an API key, None for a person at the
    command line and for RIS itself."""

    name: str
    key_id: int | None = None


COMMAND_LINE = Actor("command line")
BEAT = Actor("beat")
MESSAGES = Actor("messages")
WORKER = Actor("worker")
