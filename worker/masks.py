"""Privacy masks as pictures are painted with them: those of cameras now, and those of frames."""

from __future__ import annotations

from collections.abc import Sequence

from models.repositories import videos as video_record
from models.session import Session
from models.video import PrivacyMask as MaskRow
from worker.core.masking import PrivacyMask, areas_from_json


def camera_masks(session: Session, camera_ids: Sequence[int]) -> dict[int, PrivacyMask]:
    """The mask that new frames of these cameras are painted with, by camera id."""
    return {key: _mask(row) for key, row in video_record.camera_masks(session, camera_ids).items()}


def frame_masks(session: Session, frame_ids: Sequence[int]) -> list[PrivacyMask | None]:
    """The mask that each of the frames was painted with, in their order."""
    found = video_record.frame_masks(session, frame_ids)
    masks = {row.id: _mask(row) for row in found.values()}
    return [masks[found[key].id] if key in found else None for key in frame_ids]


def _mask(row: MaskRow) -> PrivacyMask:
    return PrivacyMask(row.id, areas_from_json(row.areas))
