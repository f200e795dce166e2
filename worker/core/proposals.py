"""Boxes around what a picture shows and its camera's other pictures do not.

Plain background subtraction on small pictures: the background is the median of pictures taken
before and after, and what differs from it is grouped into connected blobs (Piccardi, "Background
subtraction techniques: a review", 2004: the temporal median). It knows nothing of kinds of things:
a shadow is a box, two people who walk together are one, and what stands still is none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worker.core.types import BoolArray, Box, ImageArray, IntArray
from worker.errors import InputInvalid

WIDTH_PX = 240
"""Width of the pictures that are compared. Larger ones show smaller subjects and more noise."""
OTHERS = 16
"""Pictures that the background is made of, half of them before and half after."""
MIN_OTHERS = 4
MAX_BOXES = 24

_LEAST_DIFFERENCE = 22.0
_NOISE_FACTOR = 4.0
_JOIN_PX = 2
_LEAST_AREA = 0.0012
_MOST_AREA = 0.5
_MOST_MOVED = 0.4


def propose_boxes(img_hwc: ImageArray, others: Sequence[ImageArray]) -> list[Box]:
    """Normalised boxes, the largest first, at most ``MAX_BOXES``.

    ``img_hwc``: uint8 RGB, about ``WIDTH_PX`` wide. ``others``: pictures of the same camera and
    size from the time around it; fewer than ``MIN_OTHERS`` tell no background and give no boxes.
    None either where more than 0.4 of the picture differs: the camera moved, or the light changed.
    Raises ``InputInvalid`` where sizes differ.
    """
    if len(others) < MIN_OTHERS:
        return []
    if any(other.shape != img_hwc.shape for other in others):
        raise InputInvalid(f"pictures of one size are needed, {img_hwc.shape} as the first")
    differs_hw = _differing(img_hwc, np.stack(others))
    if differs_hw.mean() > _MOST_MOVED:
        return []
    h_px, w_px = differs_hw.shape
    boxes = []
    for rows, cols in _blobs(_opened(differs_hw)):
        x0, x1, y0, y1 = cols.min(), cols.max() + 1, rows.min(), rows.max() + 1
        box = Box(float(x0 / w_px), float(y0 / h_px), float(x1 / w_px), float(y1 / h_px))
        if _LEAST_AREA <= box.area <= _MOST_AREA:
            boxes.append(box)
    boxes.sort(key=lambda box: (-box.area, box.y0, box.x0))
    return boxes[:MAX_BOXES]


def _differing(img_hwc: ImageArray, others_nhwc: ImageArray) -> BoolArray:
    """Pixels unlike the background by more than it varies there, bool (h, w)."""
    usual_hwc = np.median(others_nhwc, axis=0).astype(np.float32)
    spread_hw = np.median(np.abs(others_nhwc - usual_hwc), axis=0).max(axis=2)
    moved_hwc = img_hwc - usual_hwc
    moved_hwc -= np.median(moved_hwc, axis=(0, 1))  # brighter or darker as a whole
    away_hw = np.abs(moved_hwc).max(axis=2)
    differs_hw: BoolArray = away_hw > np.maximum(_LEAST_DIFFERENCE, _NOISE_FACTOR * spread_hw)
    return differs_hw


def _opened(mask_hw: BoolArray) -> BoolArray:
    """Without specks: pixels of whose 3 x 3 at least 5 are set."""
    kept: BoolArray = _around(mask_hw, 1) >= 5
    return kept


def _around(mask_hw: BoolArray, reach: int) -> IntArray:
    """How many pixels are set at most ``reach`` away each way, int64 (h, w)."""
    padded = np.pad(mask_hw, reach).astype(np.int64)
    side = 2 * reach + 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side))
    count_hw: IntArray = windows.sum(axis=(2, 3))
    return count_hw


def _blobs(mask_hw: BoolArray) -> list[tuple[IntArray, IntArray]]:
    """Rows and columns of the set pixels of each blob, across gaps of up to ``2 * _JOIN_PX``."""
    near_hw = _around(mask_hw, _JOIN_PX) > 0
    label_hw = np.where(near_hw, np.arange(1, near_hw.size + 1).reshape(near_hw.shape), 0)
    while True:  # the greatest label of each blob runs along rows and columns until all is still
        before = label_hw
        for axis in (0, 1):
            label_hw = _run_along(_run_along(label_hw, axis), axis, back=True)
        if np.array_equal(before, label_hw):
            break
    rows, cols = np.nonzero(mask_hw)
    label = label_hw[rows, cols]
    order = np.argsort(label, kind="stable")
    ends = np.flatnonzero(np.diff(label[order])) + 1
    return [(rows[at], cols[at]) for at in np.split(order, ends) if len(at)]


def _run_along(label_hw: IntArray, axis: int, back: bool = False) -> IntArray:
    """Labels carried to the next pixel that has one, all the way along an axis."""
    lines = label_hw if axis == 0 else label_hw.T
    lines = (lines[::-1] if back else lines).copy()
    for at in range(1, len(lines)):
        carried = np.maximum(lines[at], lines[at - 1])
        lines[at] = np.where(lines[at] > 0, carried, 0)
    lines = lines[::-1] if back else lines
    return lines if axis == 0 else lines.T
