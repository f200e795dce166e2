"""Examples a person gives: boxes on indexed frames that show the subject, or that do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.core.bounds import check_int
from worker.core.roi_json import roi_from_json, roi_to_json
from worker.core.types import Roi
from worker.errors import InputInvalid

MAX_EXAMPLES = 16


@dataclass(frozen=True, slots=True)
class Example:
    """An ROI on an indexed frame."""

    frame_id: int
    roi: Roi

    def to_json(self) -> dict[str, Any]:
        """``{"frame_id": 7, "box": [...]}`` or with ``polygon``."""
        return {"frame_id": self.frame_id, **roi_to_json(self.roi)}


def example_from_json(given: Any) -> Example:
    """Raises ``InputInvalid`` or ``RoiInvalid`` for anything else."""
    if not isinstance(given, Mapping) or "frame_id" not in given:
        raise InputInvalid(
            f"an example is an object with frame_id and box or polygon, got {given!r}"
        )
    check_int("frame_id", given["frame_id"], 1, 2**63 - 1)
    roi = roi_from_json({name: value for name, value in given.items() if name != "frame_id"})
    return Example(given["frame_id"], roi)


def check_examples(field: str, examples: Any) -> None:
    """Raise ``InputInvalid`` unless it is a tuple of at most ``MAX_EXAMPLES`` examples."""
    whole = isinstance(examples, tuple) and all(isinstance(one, Example) for one in examples)
    if not whole or len(examples) > MAX_EXAMPLES:
        raise InputInvalid(
            f"{field} must be a list of at most {MAX_EXAMPLES} examples, got {str(examples)[:80]}"
        )
