"""Where a closer look puts a box: planted subjects, windows at the edge, nothing to tell."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core import closer_look
from worker.core.closer_look import CONTEXT, Template, locate, look_window, make_template
from worker.core.metrics import box_iou
from worker.core.similarity import l2_normalise
from worker.core.types import Box, FloatArray, GridSize, SizePx
from worker.errors import DescriptorInvalid

GRID = GridSize(16, 16)
WHOLE = Box(0.0, 0.0, 1.0, 1.0)
SUBJECT = Box(0.375, 0.3125, 0.625, 0.6875)
"""Four cells wide, six high."""


def smooth_field(seed: int, grid: GridSize = GRID, d: int = 24) -> FloatArray:
    """Descriptors that change slowly from cell to cell, as a network's do: (c, d)."""
    field = np.random.default_rng(seed).normal(size=(grid.h + 2, grid.w + 2, d))
    for _ in range(2):
        padded = np.pad(field, ((1, 1), (1, 1), (0, 0)), mode="edge")
        field = sum(  # type: ignore[assignment]
            padded[r : r + field.shape[0], c : c + field.shape[1]]
            for r in range(3)
            for c in range(3)
        )
    return l2_normalise(field[1:-1, 1:-1].reshape(grid.cells, d))


def planted(box: Box, seed: int = 7) -> FloatArray:
    """Another scene that shows the subject's picture, stretched into ``box``."""
    subject = smooth_field(1).reshape(*GRID, -1)
    scene = smooth_field(seed).reshape(*GRID, -1).copy()
    for row, col in np.ndindex(*GRID):
        x = ((col + 0.5) / GRID.w - box.x0) / (box.x1 - box.x0)
        y = ((row + 0.5) / GRID.h - box.y0) / (box.y1 - box.y0)
        if -0.2 < x < 1.2 and -0.2 < y < 1.2:
            at_x = SUBJECT.x0 + x * (SUBJECT.x1 - SUBJECT.x0)
            at_y = SUBJECT.y0 + y * (SUBJECT.y1 - SUBJECT.y0)
            scene[row, col] = sampled(subject, at_y * GRID.h - 0.5, at_x * GRID.w - 0.5)
    return l2_normalise(scene.reshape(GRID.cells, -1))


def sampled(field_hwd: FloatArray, row: float, col: float) -> FloatArray:
    """Bilinear, one point: the slow way."""
    h, w = field_hwd.shape[:2]
    row, col = min(max(row, 0.0), h - 1.0), min(max(col, 0.0), w - 1.0)
    r, c = int(row), int(col)
    below, right = min(r + 1, h - 1), min(c + 1, w - 1)
    upper = (1 - col + c) * field_hwd[r, c] + (col - c) * field_hwd[r, right]
    lower = (1 - col + c) * field_hwd[below, c] + (col - c) * field_hwd[below, right]
    mixed: FloatArray = (1 - row + r) * upper + (row - r) * lower
    return mixed


def template() -> Template:
    return make_template(smooth_field(1), GRID, WHOLE, SUBJECT)


def moved(d_x: float, d_y: float, size: float = 1.0) -> Box:
    w, h = size * (SUBJECT.x1 - SUBJECT.x0), size * (SUBJECT.y1 - SUBJECT.y0)
    return Box(SUBJECT.x0 + d_x, SUBJECT.y0 + d_y, SUBJECT.x0 + d_x + w, SUBJECT.y0 + d_y + h)


@pytest.mark.parametrize(
    ("d_x", "d_y", "size"),
    [(0, 0, 1), (0.13, -0.07, 1), (-0.1, 0.1, 1), (0.05, 0.02, 1.4), (0, 0.05, 0.7)],
)
def test_a_planted_subject_is_boxed_finer_than_a_cell(d_x: float, d_y: float, size: float) -> None:
    true = moved(d_x, d_y, size)
    found = locate(template(), planted(true), GRID, WHOLE, SUBJECT)
    assert box_iou(found, true) > (0.7 if size == 1 else 0.55)  # sizes are found roughly


def test_a_smaller_window_says_the_same_place() -> None:
    """The hit's window need not be the query's: places are of the picture, not of the window."""
    window = Box(0.25, 0.25, 0.75, 0.75)
    subject_window = Box(*(0.25 + v / 2 for v in (SUBJECT.x0, SUBJECT.y0, SUBJECT.x1, SUBJECT.y1)))
    found = locate(template(), planted(SUBJECT), GRID, window, moved(0.0, 0.0, 0.5))
    assert box_iou(found, subject_window) > 0.7


def test_a_template_is_what_the_box_shows() -> None:
    made = template()
    inside = (np.abs(made.x_q) < 0.5) & (np.abs(made.y_q) < 0.5)
    assert inside.sum() == 10 * 7
    assert len(made.x_q) == (10 + 2 * 2) * (7 + 2 * 1)
    assert made.weight_q[inside].sum() == pytest.approx(1)
    assert made.weight_q[~inside].sum() == pytest.approx(-closer_look.RIM_WEIGHT)
    assert (made.weight_q[inside] > 0).all()
    field_hwd = smooth_field(1).reshape(*GRID, -1)
    for point_d, x, y in zip(made.points_qd, made.x_q, made.y_q, strict=True):
        row = (0.5 + min(max(y, -0.45), 0.45) * 0.375) * GRID.h - 0.5
        col = (0.5 + min(max(x, -3 / 7), 3 / 7) * 0.25) * GRID.w - 0.5
        slow_d = sampled(field_hwd, row, col)
        np.testing.assert_allclose(point_d, slow_d / np.linalg.norm(slow_d), atol=1e-5)


def test_the_gain_is_the_weighted_sum_over_the_points() -> None:
    """The sum over points that ``locate`` maximises, against one point after the other."""
    made, patches_cd = template(), smooth_field(3)
    similarity_qhw = ((made.points_qd @ patches_cd.T) * made.weight_q[:, None]).reshape(-1, *GRID)
    row_nq = np.random.default_rng(0).uniform(-2, 18, size=(3, len(made.x_q)))
    col_mq = np.random.default_rng(1).uniform(-2, 18, size=(4, len(made.x_q)))
    fast_nm = closer_look._summed(similarity_qhw, row_nq, col_mq)
    for n, m in np.ndindex(fast_nm.shape):
        slow = sum(
            float(sampled(similarity_qhw[q][..., None], row_nq[n, q], col_mq[m, q])[0])
            for q in range(len(made.x_q))
        )
        assert fast_nm[n, m] == pytest.approx(slow, abs=1e-5)


def test_where_nothing_tells_the_expected_box_stays() -> None:
    same_cd = np.tile(smooth_field(1)[:1], (GRID.cells, 1))
    expected = moved(0.21, 0.17)
    found = locate(template(), same_cd, GRID, WHOLE, expected)
    assert box_iou(found, expected) > 0.999


def test_of_equal_places_the_nearer_to_the_expected_one_wins() -> None:
    twice = planted(moved(-0.25, 0.0)).reshape(*GRID, -1).copy()
    twice[:, 8:] = planted(moved(0.25, 0.0)).reshape(*GRID, -1)[:, 8:]
    patches_cd = twice.reshape(GRID.cells, -1)
    left = locate(template(), patches_cd, GRID, WHOLE, moved(-0.15, 0.0))
    right = locate(template(), patches_cd, GRID, WHOLE, moved(0.15, 0.0))
    assert left.x0 < SUBJECT.x0 < right.x0


boxes = st.builds(
    lambda x, y, w, h: Box(x * (1 - w), y * (1 - h), x * (1 - w) + w, y * (1 - h) + h),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(1e-4, 1),
    st.floats(1e-4, 1),
)


@given(box=boxes, h_px=st.integers(1, 2000), w_px=st.integers(1, 2000))
def test_a_window_lies_in_the_picture_and_holds_the_middle(box: Box, h_px: int, w_px: int) -> None:
    window = look_window(box, SizePx(h_px, w_px))
    assert 0 <= window.x0 < window.x1 <= 1 and 0 <= window.y0 < window.y1 <= 1
    x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
    assert window.x0 - 1 / w_px <= x <= window.x1 + 1 / w_px
    assert window.y0 - 1 / h_px <= y <= window.y1 + 1 / h_px
    side_px = CONTEXT * max((box.x1 - box.x0) * w_px, (box.y1 - box.y0) * h_px)
    for share, extent_px in ((window.x1 - window.x0, w_px), (window.y1 - window.y0, h_px)):
        assert share * extent_px == pytest.approx(min(max(1, round(side_px)), extent_px))


@given(box=boxes, expected=boxes, rows=st.integers(1, 5), cols=st.integers(1, 5))
def test_any_box_and_grid_gives_a_box_in_the_window(
    box: Box, expected: Box, rows: int, cols: int
) -> None:
    """One cell, lines of a pixel's width, a box as large as the picture: all defined."""
    grid, size = GridSize(rows, cols), SizePx(480, 640)
    made = make_template(smooth_field(1, grid), grid, look_window(box, size), box)
    window = look_window(expected, size)
    found = locate(made, smooth_field(2, grid), grid, window, expected)
    slack = 1e-9
    assert window.x0 - slack <= found.x0 < found.x1 <= window.x1 + slack
    assert window.y0 - slack <= found.y0 < found.y1 <= window.y1 + slack


def test_descriptors_without_direction_are_refused() -> None:
    broken = smooth_field(1)
    broken[:] = np.nan
    with pytest.raises(DescriptorInvalid, match="NaN"):
        make_template(broken, GRID, WHOLE, SUBJECT)
