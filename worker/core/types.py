"""Values shared by every layer.

Conventions: boxes are ``xyxy``, half-open, origin top-left; normalised boxes live in 0..1 of the
displayed picture. Sizes are ``(h, w)``; cells are ``(row, col)``. ``(row, col)`` and ``(x, y)``
never share a tuple type. Times are aware UTC (``t_utc``); durations end in ``_s``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
ImageArray = NDArray[np.uint8]
"""RGB picture, shape (h_px, w_px, 3), uint8."""


class SizePx(NamedTuple):
    """Picture size in pixels."""

    h_px: int
    w_px: int


class GridSize(NamedTuple):
    """Size of a patch grid in cells."""

    h: int
    w: int

    @property
    def cells(self) -> int:
        """Number of cells, ``h * w``."""
        return self.h * self.w


class Cell(NamedTuple):
    """One cell of a patch grid; its 0-based patch id is ``row * grid.w + col``."""

    row: int
    col: int


class Point(NamedTuple):
    """Normalised picture position, both in 0..1."""

    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Box:
    """Normalised half-open box ``xyxy`` in 0..1 of the displayed picture, ``x0 < x1, y0 < y1``."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def area(self) -> float:
        """Share of the picture, 0..1."""
        return max(0.0, self.x1 - self.x0) * max(0.0, self.y1 - self.y0)


@dataclass(frozen=True, slots=True)
class Polygon:
    """Normalised simple polygon of at least three points, implicitly closed."""

    points: tuple[Point, ...]


Roi = Box | Polygon
"""Region of interest drawn on a query picture."""


@dataclass(frozen=True, slots=True)
class Descriptors:
    """Output of a backbone for n pictures; every row has unit L2 norm (paper eq. 2).

    ``global_nd``: float32 (n, global_dim). ``patches_ncd``: float32 (n, cells, patch_dim), cells in
    row-major order of the spec's grid. Those that an accelerator made to be stored have the number
    type of the index's codec instead.
    """

    global_nd: FloatArray
    patches_ncd: FloatArray


@dataclass(frozen=True, slots=True)
class Region:
    """A grown region G*: pairs (query patch, target cell) and their cosine similarities.

    ``query_index``: int64 (p,), index into the query's patches. ``cell_index``: int64 (p,), 0-based
    patch id in the target grid. ``similarity``: float32 (p,). Pairs are sorted by (query, cell).
    """

    query_index: IntArray
    cell_index: IntArray
    similarity: FloatArray

    @property
    def size(self) -> int:
        """Number of pairs, |G*|."""
        return int(self.query_index.size)
