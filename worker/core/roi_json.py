"""JSON form of an ROI: ``{"box": [x0, y0, x1, y1]}`` or ``{"polygon": [[x, y], ...]}``, 0..1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker.core.geometry import roi_from_xyxy, validate_roi
from worker.core.types import Box, Point, Polygon, Roi
from worker.errors import RoiInvalid


def roi_to_json(roi: Roi) -> dict[str, Any]:
    """Plain JSON object; :func:`roi_from_json` reads it back."""
    if isinstance(roi, Box):
        return {"box": [roi.x0, roi.y0, roi.x1, roi.y1]}
    return {"polygon": [[point.x, point.y] for point in roi.points]}


def roi_from_json(given: Mapping[str, Any]) -> Roi:
    """Validated ROI. Raises ``RoiInvalid`` for any other shape of object."""
    if set(given) == {"box"}:
        return roi_from_xyxy(given["box"])
    if set(given) == {"polygon"}:
        try:
            points = tuple(Point(float(x), float(y)) for x, y in given["polygon"])
        except (TypeError, ValueError) as error:
            raise RoiInvalid(f"a polygon is a list of [x, y], got {given['polygon']!r}") from error
        return validate_roi(Polygon(points))
    raise RoiInvalid(f"an ROI is a box or a polygon, got fields {sorted(given)}")
