"""Where exactly the subject is: its picture slid over a closer view of the hit.

The index compares whole frames at one resolution, so a subject of two cells is placed to a cell at
best. A closer look embeds a window around it, in the query's picture and in the hit's; there it
covers several cells. Template points spread over the query's box are then compared with the hit's
window at every place and size, between cells by bilinear interpolation. Points around the box speak
against a place whose surroundings still look like the subject's edge: without them the smallest box
that lies on the subject would win.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worker.core.similarity import l2_normalise
from worker.core.types import Box, FloatArray, GridSize, IntArray, SizePx

CONTEXT = 3.0
"""Side of a window, in longer sides of the box: room for a hit that is placed one box away."""
TEMPLATE_POINTS = 10
"""Points along the box's longer side."""
RIM_REACH = 0.2
"""How far points go beyond the box, in its sides."""
RIM_WEIGHT = 0.2
"""What all points around the box count against those inside."""
CENTRES_PER_SIDE = 8
"""Places tried per side of the box and direction."""
MAX_CENTRES = 128
"""About the most places tried in one direction: a line of a pixel's width has thousands."""
SIZES = tuple(float(2.0 ** (step / 4)) for step in range(-4, 5))
"""Sizes tried, as multiples of the expected box's: half to double."""
SIZE_PRICE = 0.05
"""What a place loses per squared octave of size."""
DISTANCE_PRICE = 0.02
"""What a place loses per squared box side between its centre and the expected one."""

_Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Template:
    """The query's box as points: ``points_qd`` float32 (q, d) unit descriptors, ``x_q`` and ``y_q``
    float64 (q,) offsets from the centre in sides of the box. ``weight_q`` float32 (q,): inside
    (offsets within 0.5) greatest at the centre, with sum 1; around the box negative, with sum
    ``-RIM_WEIGHT``, and the descriptor is that of the nearest point inside."""

    points_qd: FloatArray
    weight_q: FloatArray
    x_q: _Float64
    y_q: _Float64


def look_window(box: Box, size: SizePx) -> Box:
    """Window around a box: square in pixels, ``CONTEXT`` longer sides wide, whole pixels.

    It is pushed back inside the picture and cut to it where it is larger.
    """
    side_px = CONTEXT * max((box.x1 - box.x0) * size.w_px, (box.y1 - box.y0) * size.h_px)

    def edges(low: float, high: float, extent_px: int) -> tuple[float, float]:
        length_px = min(extent_px, max(1, round(side_px)))
        start_px = round((low + high) / 2 * extent_px - length_px / 2)
        start_px = min(max(start_px, 0), extent_px - length_px)
        return start_px / extent_px, (start_px + length_px) / extent_px

    x0, x1 = edges(box.x0, box.x1, size.w_px)
    y0, y1 = edges(box.y0, box.y1, size.h_px)
    return Box(x0, y0, x1, y1)


def make_template(patches_cd: FloatArray, grid: GridSize, window: Box, box: Box) -> Template:
    """Template of ``box``, from the descriptors (c, d) of the ``window`` that holds it."""
    share_x = (box.x1 - box.x0) / (window.x1 - window.x0)
    share_y = (box.y1 - box.y0) / (window.y1 - window.y0)
    longer = max(share_x, share_y)
    y_q, x_q, edge_y_q, edge_x_q = _points(share_y / longer, share_x / longer)
    row_q = _to_cells(_centre_y(box) + edge_y_q * (box.y1 - box.y0), window.y0, window.y1, grid.h)
    col_q = _to_cells(_centre_x(box) + edge_x_q * (box.x1 - box.x0), window.x0, window.x1, grid.w)
    above, below, row_rest = _between(row_q, grid.h)
    left, right, col_rest = _between(col_q, grid.w)
    patches_hwd = patches_cd.reshape(grid.h, grid.w, -1)
    upper_qd = _mixed(patches_hwd[above, left], patches_hwd[above, right], col_rest[:, None])
    lower_qd = _mixed(patches_hwd[below, left], patches_hwd[below, right], col_rest[:, None])
    points_qd = _mixed(upper_qd, lower_qd, row_rest[:, None])
    inside_q = (np.abs(x_q) < 0.5) & (np.abs(y_q) < 0.5)
    weight_q = inside_q * np.exp(-4 * (x_q**2 + y_q**2))
    weight_q = weight_q / weight_q.sum() - RIM_WEIGHT * ~inside_q / (~inside_q).sum()
    return Template(l2_normalise(points_qd), weight_q.astype(np.float32), x_q, y_q)


def _points(share_y: float, share_x: float) -> tuple[_Float64, _Float64, _Float64, _Float64]:
    """Offsets y and x of the points, and of the nearest points inside: each float64 (q,).

    ``share_y``, ``share_x``: sides of the box, the longer one 1.
    """
    count_y, count_x = (max(2, round(TEMPLATE_POINTS * share)) for share in (share_y, share_x))
    offset_y, offset_x = _spread(count_y), _spread(count_x)
    y_q, x_q = (at.ravel() for at in np.meshgrid(offset_y, offset_x, indexing="ij"))
    last_y, last_x = 0.5 - 0.5 / count_y, 0.5 - 0.5 / count_x
    return y_q, x_q, np.clip(y_q, -last_y, last_y), np.clip(x_q, -last_x, last_x)


def locate(
    template: Template, patches_cd: FloatArray, grid: GridSize, window: Box, expected: Box
) -> Box:
    """The place in ``window`` that is most like the template: a box of ``expected``'s shape.

    ``patches_cd``: float32 (c, d), the window's unit descriptors. Maximises the weighted sum of
    the points' cosines less the prices of size and distance. Sizes ``SIZES``, centres
    ``CENTRES_PER_SIDE`` to a side, boxes inside the window; of equal ones the first, by size, y, x.
    """
    similarity_qc = (template.points_qd @ patches_cd.T) * template.weight_q[:, None]
    similarity_qhw = similarity_qc.reshape(-1, grid.h, grid.w)
    best_gain, best = -np.inf, expected
    for size in SIZES:
        w = min(size * (expected.x1 - expected.x0), window.x1 - window.x0)
        h = min(size * (expected.y1 - expected.y0), window.y1 - window.y0)
        x_n = _centres(window.x0, window.x1, w, _centre_x(expected))
        y_n = _centres(window.y0, window.y1, h, _centre_y(expected))
        col_nq = _to_cells(x_n[:, None] + template.x_q * w, window.x0, window.x1, grid.w)
        row_nq = _to_cells(y_n[:, None] + template.y_q * h, window.y0, window.y1, grid.h)
        away_x = (x_n - _centre_x(expected)) / (expected.x1 - expected.x0)
        away_y = (y_n - _centre_y(expected)) / (expected.y1 - expected.y0)
        gain_yx = _summed(similarity_qhw, row_nq, col_nq)
        gain_yx -= DISTANCE_PRICE * (away_y[:, None] ** 2 + away_x**2)
        gain_yx -= SIZE_PRICE * np.log2(size) ** 2
        at_y, at_x = np.unravel_index(int(gain_yx.argmax()), gain_yx.shape)
        if gain_yx[at_y, at_x] > best_gain:
            best_gain = float(gain_yx[at_y, at_x])
            x0, y0 = float(x_n[at_x] - w / 2), float(y_n[at_y] - h / 2)
            best = Box(max(x0, 0.0), max(y0, 0.0), min(x0 + w, 1.0), min(y0 + h, 1.0))
    return best


def _summed(similarity_qhw: FloatArray, row_nq: _Float64, col_mq: _Float64) -> _Float64:
    """Sum over q of each point's similarity at its place, bilinear: float64 (n, m)."""
    q = np.arange(len(similarity_qhw))
    above, below, row_rest = _between(row_nq, similarity_qhw.shape[1])
    left, right, col_rest = _between(col_mq, similarity_qhw.shape[2])
    # Rows first: (n, q, w), then columns for every pair of centres.
    rows_nqw = _mixed(similarity_qhw[q, above], similarity_qhw[q, below], row_rest[..., None])
    summed_nm = np.empty((len(row_nq), len(col_mq)))
    for m in range(len(col_mq)):  # one by one: all (n, m, q) at once would leave the cache
        at_nq = _mixed(rows_nqw[:, q, left[m]], rows_nqw[:, q, right[m]], col_rest[m])
        summed_nm[:, m] = at_nq.sum(axis=1, dtype=np.float64)
    return summed_nm


def _spread(count: int) -> _Float64:
    """``count`` offsets inside a side, and at least one more beyond either end."""
    beyond = max(1, round(RIM_REACH * count))
    spread: _Float64 = (np.arange(-beyond, count + beyond, dtype=np.float64) + 0.5) / count - 0.5
    return spread


def _centres(low: float, high: float, side: float, about: float) -> _Float64:
    """Centres of intervals of length ``side`` inside low..high, in steps from ``about``."""
    first, last = low + side / 2, max(low + side / 2, high - side / 2)
    about = min(max(about, first), last)
    step = max(side / CENTRES_PER_SIDE, (last - first) / MAX_CENTRES)
    before, after = int((about - first) / step + 1e-9), int((last - about) / step + 1e-9)
    centres: _Float64 = about + step * np.arange(-before, after + 1, dtype=np.float64)
    return centres


def _to_cells(at: _Float64, low: float, high: float, cells: int) -> _Float64:
    """Positions in units of cells, 0 at the middle of the first."""
    return (at - low) / (high - low) * cells - 0.5


def _between(at: _Float64, cells: int) -> tuple[IntArray, IntArray, FloatArray]:
    """The cells before and after each position, and the share of the way; none beyond the ends."""
    inside = np.clip(at, 0, cells - 1)
    before = inside.astype(np.int64)
    return before, np.minimum(before + 1, cells - 1), (inside - before).astype(np.float32)


def _mixed(a: FloatArray, b: FloatArray, share_b: FloatArray) -> FloatArray:
    return a + (b - a) * share_b


def _centre_x(box: Box) -> float:
    return (box.x0 + box.x1) / 2


def _centre_y(box: Box) -> float:
    return (box.y0 + box.y1) / 2
