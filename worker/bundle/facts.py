"""Rows of the record as a manifest tells them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from models.access import AuditEntry
from models.repositories.evidence import FrameFacts
from models.search import SearchHit

FEED_SOURCE = "feed:"
"""How the source of a live camera's segment begins."""


def frame_fields(facts: FrameFacts) -> dict[str, Any]:
    """A frame with camera, time, recording and privacy mask."""
    frame, segment, mask = facts.frame, facts.segment, facts.mask
    live = segment.source_path.startswith(FEED_SOURCE)
    return {
        "frame_id": frame.id,
        "camera_id": frame.camera_id,
        "camera_name": frame.camera.name,
        "t_utc": time_text(frame.t_utc),
        "pts": frame.pts,
        "h_px": frame.h_px,
        "w_px": frame.w_px,
        "picture_sha256": frame.picture_sha256,
        "segment": {
            "segment_id": segment.id,
            "live": live,
            # Of a live camera there is no file: the column holds a name that is one of a kind.
            "content_sha256": None if live else segment.content_sha256,
            "start_utc": time_text(segment.start_utc),
            "time_source": segment.start_source,
            "sampling": segment.policy,
            "container": segment.container,
            "codec": segment.codec,
            "outcome": segment.outcome,
        },
        "privacy_mask": None if mask is None else {"mask_id": mask.id, "areas": mask.areas},
    }


def record_fields(hit: SearchHit) -> dict[str, Any]:
    """What was recorded when the query was answered, as it was shown."""
    return {
        "score": hit.score,
        "similarity": hit.similarity,
        "coverage": hit.coverage,
        "grid": {"h": hit.grid_h, "w": hit.grid_w},
        "pairs": [
            list(pair) for pair in zip(hit.region_query_index, hit.region_cell_index, strict=True)
        ],
        "box": hit.box,
        "on_trail": hit.on_trail,
        "false_matches": hit.false_matches,
        "appearance": {
            "from_utc": time_text(hit.appearance_from_utc),
            "to_utc": time_text(hit.appearance_to_utc),
            "frames": hit.appearance_frames,
        },
    }


def entry_fields(entry: AuditEntry) -> dict[str, Any]:
    """An entry of the audit, as its hash is made."""
    return {
        "seq": entry.seq,
        "t_utc": time_text(entry.t_utc),
        "actor": entry.actor,
        "act": entry.act,
        "details": entry.details,
        "previous_sha256": entry.previous_sha256,
        "sha256": entry.sha256,
    }


def time_text(t_utc: datetime | None) -> str | None:
    """A time in UTC with microseconds."""
    return None if t_utc is None else t_utc.astimezone(UTC).isoformat(timespec="microseconds")
