"""A zone: the part of the picture that a search looks at; what lies outside matches nothing."""

from __future__ import annotations

import numpy as np

from worker.core.geometry import roi_cells, validate_roi
from worker.core.types import BoolArray, FloatArray, GridSize, Roi

OUTSIDE = np.float32(-2)
"""Similarity of a cell outside the zone: below every cosine and every match level."""


def zone_cells(zone: Roi | None, grid: GridSize) -> BoolArray | None:
    """Which cells the zone selects, as an ROI does: bool (cells,), at least one; None: no zone.

    Raises ``RoiInvalid``.
    """
    if zone is None:
        return None
    inside_c = np.zeros(grid.cells, dtype=np.bool_)
    cells = roi_cells(validate_roi(zone), grid)
    inside_c[cells[:, 0] * grid.w + cells[:, 1]] = True
    return inside_c


def only_inside(similarity_nqc: FloatArray, inside_c: BoolArray | None) -> FloatArray:
    """Similarities, float32 (..., c), with ``OUTSIDE`` for cells outside the zone."""
    if inside_c is None:
        return similarity_nqc
    return np.where(inside_c, similarity_nqc, OUTSIDE)
