"""Privacy masks: parts of a camera's picture that nobody may see, and no descriptor may tell of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.core.geometry import roi_cells, validate_roi
from worker.core.roi_json import roi_from_json, roi_to_json
from worker.core.similarity import l2_normalise
from worker.core.types import (
    BoolArray,
    Box,
    FloatArray,
    GridSize,
    ImageArray,
    IntArray,
    Point,
    Roi,
    SizePx,
)
from worker.errors import InputInvalid, RoiInvalid

MAX_AREAS = 64
_KEPT_RASTERS = 16
_SEED = 0x6D61736B
_TAPS_PX = 3.0
"""A pixel of a picture that was made smaller is made of source pixels up to two of its own sides
away, and its centre lies half of one from its edge."""
_SOURCE_TAPS_PX = 5.0
"""The same in pixels of the source: four for colour, of which there is one value for two pixels,
and one for where that value is taken to lie."""


@dataclass(frozen=True, slots=True)
class PrivacyMask:
    """Areas of one camera's picture, 0..1 of it as displayed, validated. It never changes: other
    areas are another mask with another ``mask_id``."""

    mask_id: int
    areas: tuple[Roi, ...]


def areas_from_json(given: Sequence[Mapping[str, Any]]) -> tuple[Roi, ...]:
    """Validated areas of the JSON form of ROIs. Raises ``RoiInvalid``, or ``InputInvalid`` for none
    or more than ``MAX_AREAS``."""
    if not 1 <= len(given) <= MAX_AREAS:
        raise InputInvalid(f"a privacy mask has 1 to {MAX_AREAS} areas, not {len(given)}")
    return tuple(validate_roi(roi_from_json(area)) for area in given)


def areas_to_json(areas: Sequence[Roi]) -> list[dict[str, Any]]:
    """Plain JSON objects; :func:`areas_from_json` reads them back."""
    return [roi_to_json(area) for area in areas]


def painted(img_hwc: ImageArray, mask: PrivacyMask, source: SizePx) -> ImageArray:
    """A copy of the picture that is black wherever a masked part of its source could show.

    ``img_hwc`` was scaled from a picture of at least ``source`` pixels, by a filter as wide as a
    bicubic one: no pixel left as it was has a masked one of the source in it.
    """
    covered = img_hwc.copy()
    covered[painted_pixels(mask, SizePx(*img_hwc.shape[:2]), source)] = 0
    return covered


@lru_cache(maxsize=_KEPT_RASTERS)
def painted_pixels(mask: PrivacyMask, size: SizePx, source: SizePx) -> BoolArray:
    """Which pixels :func:`painted` blackens: bool (h_px, w_px), shared, not to be written."""
    margin_y = _TAPS_PX + _SOURCE_TAPS_PX * size.h_px / source.h_px
    margin_x = _TAPS_PX + _SOURCE_TAPS_PX * size.w_px / source.w_px
    # Lengths in margins, so that what is nearer than one is painted.
    y_h = (np.arange(size.h_px) + 0.5) / margin_y
    x_w = (np.arange(size.w_px) + 0.5) / margin_x
    scale = Point(size.w_px / margin_x, size.h_px / margin_y)
    hidden_hw = np.zeros(size, dtype=np.bool_)
    for area in mask.areas:
        _fill(hidden_hw, area, y_h, x_w, scale)
    hidden_hw.setflags(write=False)
    return hidden_hw


def _fill(
    hidden_hw: BoolArray,
    area: Roi,
    y_h: np.ndarray[Any, Any],
    x_w: np.ndarray[Any, Any],
    scale: Point,
) -> None:
    """Add the pixels inside an area or nearer to it than one."""
    corners = [(point.x * scale.x, point.y * scale.y) for point in _corners(area)]
    rows = slice(*np.searchsorted(y_h, [min(y for _, y in corners) - 1, _past(corners, 1)]))
    cols = slice(*np.searchsorted(x_w, [min(x for x, _ in corners) - 1, _past(corners, 0)]))
    y, x = y_h[rows, None], x_w[None, cols]
    inside = np.zeros((y.shape[0], x.shape[1]), dtype=np.bool_)
    near = inside.copy()
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        if y0 != y1:
            crosses = ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
            inside ^= crosses
        length_2 = max((x1 - x0) ** 2 + (y1 - y0) ** 2, 1e-12)
        along = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length_2, 0, 1)
        near |= (x - x0 - along * (x1 - x0)) ** 2 + (y - y0 - along * (y1 - y0)) ** 2 <= 1
    hidden_hw[rows, cols] |= inside | near


def _past(corners: Sequence[tuple[float, float]], axis: int) -> float:
    return math.nextafter(max(corner[axis] for corner in corners) + 1, math.inf)


def _corners(area: Roi) -> Sequence[Point]:
    if isinstance(area, Box):
        return [
            Point(area.x0, area.y0),
            Point(area.x1, area.y0),
            Point(area.x1, area.y1),
            Point(area.x0, area.y1),
        ]
    return area.points


def hidden_cells(mask: PrivacyMask, grid: GridSize, input_size: SizePx, source: SizePx) -> IntArray:
    """Patch ids of the cells with a blackened pixel in the backbone's input: int64 (n,), sorted."""
    rows, cols = np.nonzero(painted_pixels(mask, input_size, source))
    return np.unique(rows * grid.h // input_size.h_px * grid.w + cols * grid.w // input_size.w_px)


def hide_cells(
    patches_cd: FloatArray,
    mask: PrivacyMask,
    cells: IntArray,
    encode: Callable[[FloatArray], NDArray[Any]] | None = None,
) -> None:
    """Put a direction that tells nothing in the place of the cells' descriptors, in place.

    Every descriptor has unit length, so there is no empty one: it is a random direction that is the
    same for a mask and cell at all times. It is like no picture (a cosine of 0.3 is five standard
    deviations away in 192 dimensions), and it stands still, so that it is stored once. ``encode``
    makes rows of the type that the descriptors have, where that is not float32.
    """
    hidden_cd = _directions(mask.mask_id, *patches_cd.shape)[cells]
    patches_cd[cells] = hidden_cd if encode is None else encode(hidden_cd)


@lru_cache(maxsize=_KEPT_RASTERS)
def _directions(mask_id: int, cells: int, width: int) -> FloatArray:
    chance = np.random.default_rng([_SEED, mask_id])
    return l2_normalise(chance.standard_normal((cells, width), dtype=np.float32))


def seen_cells(roi: Roi, grid: GridSize, hidden: IntArray) -> IntArray:
    """The ROI's cells (row, col), int64 (q, 2), but for hidden ones, q >= 1.

    Raises ``RoiInvalid`` where none is left.
    """
    cells = roi_cells(roi, grid)
    seen = cells[~np.isin(cells[:, 0] * grid.w + cells[:, 1], hidden)]
    if seen.size == 0:
        raise RoiInvalid(
            "what is drawn lies under the camera's privacy mask: nothing is known there"
        )
    return seen
