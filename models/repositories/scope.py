"""The part of the footage that exists for who asks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement

from models.video import Frame


@dataclass(frozen=True, slots=True)
class FootageScope:
    """Frames of these cameras, None is every one, whose time lies in ``[from_utc, to_utc)``, None
    is no bound. All else is not there: it is in no list, count or hit."""

    camera_ids: frozenset[int] | None = None
    from_utc: datetime | None = None
    to_utc: datetime | None = None

    @property
    def has_window(self) -> bool:
        """Whether a time bounds it."""
        return self.from_utc is not None or self.to_utc is not None

    def cameras(self) -> list[int] | None:
        """Its cameras in order; None: every one."""
        return None if self.camera_ids is None else sorted(self.camera_ids)

    def sees_camera(self, camera_id: int) -> bool:
        """Whether this camera is among them."""
        return self.camera_ids is None or camera_id in self.camera_ids

    def sees_time(self, t_utc: datetime) -> bool:
        """Whether a time lies in it."""
        after = self.from_utc is None or t_utc >= self.from_utc
        return after and (self.to_utc is None or t_utc < self.to_utc)

    def sees(self, frame: Frame) -> bool:
        """Whether this frame is in it."""
        return self.sees_camera(frame.camera_id) and self.sees_time(frame.t_utc)

    def of_cameras(self, column: Any) -> list[ColumnElement[bool]]:
        """What a statement requires of a camera's id."""
        return [] if self.camera_ids is None else [column.in_(sorted(self.camera_ids))]

    def of_times(self, column: Any) -> list[ColumnElement[bool]]:
        """What a statement requires of a time."""
        found = [] if self.from_utc is None else [column >= self.from_utc]
        return found if self.to_utc is None else [*found, column < self.to_utc]

    def of_frames(self) -> list[ColumnElement[bool]]:
        """What a statement requires of a :class:`Frame`."""
        return [*self.of_cameras(Frame.camera_id), *self.of_times(Frame.t_utc)]


EVERYTHING: Final = FootageScope()
