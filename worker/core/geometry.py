"""ROI geometry: validity, the patches an ROI selects, and boxes around cells (paper, 3.4.1).

Everything here is normalised to the displayed picture (0..1); cells are (row, col).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from worker.core.types import Box, GridSize, IntArray, Point, Polygon, Roi
from worker.errors import InputInvalid, RoiInvalid

MIN_EXTENT = 1e-6
"""Smallest side of a box, as a share of the picture: far below a pixel, above rounding noise."""
MIN_POLYGON_AREA = 1e-9
"""Smallest polygon area, as a share of the picture."""
MAX_COORDINATE = 1e6
"""Largest absolute coordinate; beyond it cross products lose all their digits."""
MAX_POLYGON_POINTS = 1000

# Cover of a cell is compared with this slack, so that an ROI edge that lies exactly on half a cell
# is not decided by the rounding of a division.
_COVER_SLACK = 1e-9


def validate_roi(roi: Roi) -> Roi:
    """The ROI clipped to the picture.

    Raises ``RoiInvalid`` for a NaN, infinite or absurdly large coordinate, a box without extent, a
    polygon of fewer than 3 or more than ``MAX_POLYGON_POINTS`` points, without area or crossing
    itself, and for an ROI that lies entirely outside the picture.
    """
    if isinstance(roi, Box):
        return _validate_box(roi)
    return _validate_polygon(roi)


def roi_from_xyxy(values: Sequence[float]) -> Box:
    """Validated box from four normalised numbers x0, y0, x1, y1. Raises ``RoiInvalid``."""
    try:
        x0, y0, x1, y1 = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise RoiInvalid(
            f"a box ROI takes 4 numbers x0,y0,x1,y1 in 0..1, got {str(values)[:80]}"
        ) from error
    return _validate_box(Box(x0, y0, x1, y1))


def roi_box(roi: Roi) -> Box:
    """Bounding box of a validated ROI."""
    if isinstance(roi, Box):
        return roi
    xs = [point.x for point in roi.points]
    ys = [point.y for point in roi.points]
    return Box(min(xs), min(ys), max(xs), max(ys))


def roi_cells(roi: Roi, grid: GridSize, min_cover: float = 0.5) -> IntArray:
    """Cells the ROI selects: int64 (q, 2) of (row, col), row-major, q >= 1.

    A cell is selected when at least ``min_cover`` (0..1) of its area lies inside the ROI. When no
    cell is, the one with the greatest cover is taken (lowest row, then col, if several), so an ROI
    smaller than a cell still selects one. ``roi`` must be validated.
    """
    cover_hw = _box_cover(roi, grid) if isinstance(roi, Box) else _polygon_cover(roi, grid)
    selected = np.argwhere((cover_hw >= min_cover - _COVER_SLACK) & (cover_hw > 0))
    if selected.size == 0:
        nearly_greatest = cover_hw >= cover_hw.max() * (1 - _COVER_SLACK)
        selected = np.argwhere(nearly_greatest)[:1]
    return selected.astype(np.int64)


def cells_box(cell_index: IntArray, grid: GridSize) -> Box:
    """Bounding box of 0-based patch ids, int64 (n,), n >= 1.

    Raises ``InputInvalid`` when there is none or one lies outside the grid.
    """
    if cell_index.size == 0:
        raise InputInvalid("no box around zero cells: ask only for regions with at least one pair")
    if cell_index.min() < 0 or cell_index.max() >= grid.cells:
        raise InputInvalid(
            f"cells {cell_index.min()}..{cell_index.max()} are outside the grid "
            f"{grid.h}x{grid.w}: the region belongs to another grid"
        )
    rows, cols = np.divmod(cell_index, grid.w)
    return Box(
        float(cols.min() / grid.w),
        float(rows.min() / grid.h),
        float((cols.max() + 1) / grid.w),
        float((rows.max() + 1) / grid.h),
    )


def scaled_box(box: Box, scale: float) -> Box:
    """``box`` with its sides times ``scale`` about its centre, cut off at the picture's edge."""
    x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
    half_w, half_h = scale * (box.x1 - box.x0) / 2, scale * (box.y1 - box.y0) / 2
    return _validate_box(Box(x - half_w, y - half_h, x + half_w, y + half_h))


def _check_coordinates(values: Sequence[float], roi: Roi) -> None:
    for value in values:
        if not math.isfinite(value) or abs(value) > MAX_COORDINATE:
            raise RoiInvalid(f"coordinate {value!r} of {roi} is not a normalised one (0..1)")


def _validate_box(box: Box) -> Box:
    _check_coordinates((box.x0, box.y0, box.x1, box.y1), box)
    if box.x1 - box.x0 < MIN_EXTENT or box.y1 - box.y0 < MIN_EXTENT:
        raise RoiInvalid(f"{box} has no extent: x0 < x1 and y0 < y1 are needed")
    clipped = Box(max(box.x0, 0.0), max(box.y0, 0.0), min(box.x1, 1.0), min(box.y1, 1.0))
    if clipped.x1 - clipped.x0 < MIN_EXTENT or clipped.y1 - clipped.y0 < MIN_EXTENT:
        raise RoiInvalid(f"{box} lies outside the picture: coordinates are normalised to 0..1")
    return clipped


def _validate_polygon(polygon: Polygon) -> Polygon:
    points = list(polygon.points)
    if not 3 <= len(points) <= MAX_POLYGON_POINTS:
        raise RoiInvalid(
            f"a polygon ROI takes 3 to {MAX_POLYGON_POINTS} points, got {len(points)}: {points[:4]}"
        )
    _check_coordinates([value for point in points for value in point], polygon)
    if _area(points) < MIN_POLYGON_AREA:
        raise RoiInvalid(f"{polygon} has no area: its points lie on one line")
    if _crosses_itself(points):
        raise RoiInvalid(f"{polygon} crosses itself: draw its outline in one round")
    clipped = _clip(points, "x", 0.0, "above")
    clipped = _clip(clipped, "x", 1.0, "below")
    clipped = _clip(clipped, "y", 0.0, "above")
    clipped = _clip(clipped, "y", 1.0, "below")
    if _area(clipped) < MIN_POLYGON_AREA:
        raise RoiInvalid(f"{polygon} lies outside the picture: coordinates are normalised to 0..1")
    return Polygon(tuple(clipped))


def _area(points: Sequence[Point]) -> float:
    """Area of a simple polygon (shoelace formula, relative to its first point)."""
    if len(points) < 3:
        return 0.0
    xs = np.array([point.x for point in points]) - points[0].x
    ys = np.array([point.y for point in points]) - points[0].y
    return abs(float(xs @ np.roll(ys, -1) - ys @ np.roll(xs, -1))) / 2


def _crosses_itself(points: Sequence[Point]) -> bool:
    """Whether two edges cross at an inner point of both; touching is allowed."""
    start_n2 = np.array(points, dtype=np.float64)
    end_n2 = np.roll(start_n2, -1, axis=0)
    edge_n2 = end_n2 - start_n2

    def side(points_n2: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sign per (edge, point): on which side of the edge's line the point lies."""
        offset_nn2 = points_n2[None, :, :] - start_n2[:, None, :]
        cross: NDArray[np.float64] = (
            edge_n2[:, None, 0] * offset_nn2[..., 1] - edge_n2[:, None, 1] * offset_nn2[..., 0]
        )
        sign: NDArray[np.float64] = np.sign(cross)
        return sign

    parted = side(start_n2) * side(end_n2) < 0
    return bool((parted & parted.T).any())


def _clip(
    points: Sequence[Point],
    axis: Literal["x", "y"],
    bound: float,
    keep: Literal["above", "below"],
) -> list[Point]:
    """Part of a polygon on one side of an axis-parallel line (Sutherland-Hodgman, one edge)."""
    along = 0 if axis == "x" else 1
    sign = 1.0 if keep == "above" else -1.0
    clipped: list[Point] = []
    for before, after in zip([*points[-1:], *points[:-1]], points, strict=True):
        inside_before = sign * (before[along] - bound) >= 0
        inside_after = sign * (after[along] - bound) >= 0
        if inside_before != inside_after:
            share = (bound - before[along]) / (after[along] - before[along])
            other = before[1 - along] + share * (after[1 - along] - before[1 - along])
            clipped.append(Point(bound, other) if axis == "x" else Point(other, bound))
        if inside_after:
            clipped.append(after)
    return clipped


def _box_cover(box: Box, grid: GridSize) -> NDArray[np.float64]:
    """Share of every cell inside the box: float64 (h, w)."""

    def overlap(low: float, high: float, cells: int) -> NDArray[np.float64]:
        edge = np.arange(cells, dtype=np.float64)
        inside = np.minimum(high * cells, edge + 1) - np.maximum(low * cells, edge)
        share: NDArray[np.float64] = np.clip(inside, 0.0, 1.0)
        return share

    return np.outer(overlap(box.y0, box.y1, grid.h), overlap(box.x0, box.x1, grid.w))


def _polygon_cover(polygon: Polygon, grid: GridSize) -> NDArray[np.float64]:
    """Share of every cell inside the polygon: float64 (h, w), by exact area clipping."""
    cover_hw = np.zeros((grid.h, grid.w))
    box = roi_box(polygon)
    rows = range(max(0, math.floor(box.y0 * grid.h)), min(grid.h, math.ceil(box.y1 * grid.h)))
    cols = range(max(0, math.floor(box.x0 * grid.w)), min(grid.w, math.ceil(box.x1 * grid.w)))
    for row in rows:
        strip = _clip(polygon.points, "y", row / grid.h, "above")
        strip = _clip(strip, "y", (row + 1) / grid.h, "below")
        for col in cols:
            part = _clip(strip, "x", col / grid.w, "above")
            part = _clip(part, "x", (col + 1) / grid.w, "below")
            cover_hw[row, col] = min(1.0, _area(part) * grid.cells)
    return cover_hw
