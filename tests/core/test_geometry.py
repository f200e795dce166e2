import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from worker.core.geometry import (
    MAX_POLYGON_POINTS,
    cells_box,
    roi_box,
    roi_cells,
    roi_from_xyxy,
    validate_roi,
)
from worker.core.types import Box, GridSize, Point, Polygon
from worker.errors import InputInvalid, RoiInvalid

GRID = GridSize(4, 4)


def polygon(*points: tuple[float, float]) -> Polygon:
    return Polygon(tuple(Point(x, y) for x, y in points))


@pytest.mark.parametrize(
    "values",
    [
        (0.1, 0.1, math.nan, 0.5),
        (0.1, -math.inf, 0.5, 0.5),
        (0.5, 0.1, 0.5, 0.5),
        (0.6, 0.1, 0.5, 0.5),
        (0.1, 0.5, 0.5, 0.4),
        (1.0, 0.0, 1.5, 1.0),
        (-0.5, 0.0, 0.0, 1.0),
        (0.0, 0.0, 1e300, 1.0),
        (0.1, 0.1, 0.1 + 1e-9, 0.5),
        (0.1, 0.2, 0.3),
        (0.1, 0.2, 0.3, 0.4, 0.5),
        (0.1, 0.2, 0.3, "wide"),
        (0.1, 0.2, 0.3, None),
        "0.1",
        None,
        5,
    ],
)
def test_bad_boxes_are_refused(values):
    with pytest.raises(RoiInvalid):
        roi_from_xyxy(values)


@pytest.mark.parametrize(
    "roi",
    [
        polygon((0.1, 0.1), (0.5, 0.5)),
        polygon((0.1, 0.1), (0.2, 0.2), (0.3, 0.3)),
        polygon((0.1, 0.1), (0.5, math.nan), (0.1, 0.5)),
        polygon((0.1, 0.1), (1e300, 0.1), (0.1, 0.5)),
        polygon((1.1, 0.1), (1.5, 0.1), (1.3, 0.5)),
        # A bow tie whose halves differ in size: its signed area is not zero.
        polygon((0.1, 0.1), (0.9, 0.9), (0.9, 0.1), (0.1, 0.5)),
        Polygon(()),
        Polygon(tuple(Point(math.cos(i), math.sin(i)) for i in range(MAX_POLYGON_POINTS + 1))),
    ],
)
def test_bad_polygons_are_refused(roi):
    with pytest.raises(RoiInvalid):
        validate_roi(roi)


def test_an_roi_partly_outside_is_clipped_to_the_picture():
    assert roi_from_xyxy((-0.5, 0.25, 0.5, 7.0)) == Box(0.0, 0.25, 0.5, 1.0)
    # Triangle (0.5, 0.5), (1.5, 0.5), (0.5, 1.5): inside the picture only the square remains.
    clipped = validate_roi(polygon((0.5, 0.5), (1.5, 0.5), (0.5, 1.5)))
    assert roi_box(clipped) == Box(0.5, 0.5, 1.0, 1.0)
    assert validate_roi(clipped) == clipped


def test_a_polygon_that_touches_itself_is_accepted():
    # Two squares that meet in the point (0.5, 0.5), drawn in one round.
    roi = polygon(
        (0.25, 0.25), (0.5, 0.25), (0.5, 0.5), (0.75, 0.5), (0.75, 0.75), (0.5, 0.75), (0.5, 0.5),
        (0.25, 0.5),
    )  # fmt: skip
    assert roi_cells(validate_roi(roi), GRID).tolist() == [[1, 1], [2, 2]]


def test_box_cells_by_hand():
    # In cells: x 0.4..2.5, y 1..1.5. Row 1 is half covered (0.5), columns 0.6, 1.0 and 0.5:
    # covers 0.3, 0.5, 0.25 -> only (1, 1) reaches one half; with min_cover 0.25 all three.
    roi = Box(0.1, 0.25, 0.625, 0.375)
    assert roi_cells(roi, GRID).tolist() == [[1, 1]]
    assert roi_cells(roi, GRID, min_cover=0.25).tolist() == [[1, 0], [1, 1], [1, 2]]
    assert roi_cells(Box(0, 0, 1, 1), GridSize(2, 3)).tolist() == [
        [0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2],
    ]  # fmt: skip


def test_an_roi_smaller_than_a_cell_selects_the_cell_it_covers_most():
    assert roi_cells(Box(0.24, 0.3, 0.31, 0.32), GRID).tolist() == [[1, 1]]
    # Equal covers on both sides of x = 0.5: the lower column wins.
    assert roi_cells(Box(0.49, 0.3, 0.51, 0.32), GRID).tolist() == [[1, 1]]
    assert roi_cells(polygon((0.8, 0.8), (0.81, 0.8), (0.8, 0.81)), GRID).tolist() == [[3, 3]]


def test_triangle_cells_by_hand():
    # Lower left half of the picture on 2x2 cells: (1, 0) is full, the two on the diagonal are
    # half covered, (0, 1) not at all.
    roi = polygon((0, 0), (1, 1), (0, 1))
    assert roi_cells(roi, GridSize(2, 2)).tolist() == [[0, 0], [1, 0], [1, 1]]
    assert roi_cells(roi, GridSize(2, 2), min_cover=0.51).tolist() == [[1, 0]]


unit = st.floats(0, 1)


side = st.floats(2e-3, 1)  # of what lies right of or below the first corner


@given(unit, unit, side, side, st.integers(1, 9), st.integers(1, 9))
def test_a_box_and_its_polygon_select_the_same_cells(x, y, right, below, h, w):
    x0, y0 = 0.5 * x, 0.5 * y  # half the picture is left for the box
    x1, y1 = x0 + right * (1 - x0), y0 + below * (1 - y0)
    outline = polygon((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    from_box = roi_cells(validate_roi(Box(x0, y0, x1, y1)), GridSize(h, w))
    from_polygon = roi_cells(validate_roi(outline), GridSize(h, w))
    assert from_box.tolist() == from_polygon.tolist()
    assert from_box.dtype == np.int64 and from_box.shape == (len(from_box), 2)
    assert from_box.tolist() == sorted(from_box.tolist())


def inside_star(
    radii: list[float], x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Ray casting (even-odd rule) for the star polygon around (0.5, 0.5)."""
    points = star_points(radii)
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(points, [*points[1:], points[0]], strict=True):
        between = (ay > y) != (by > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            crossing = x < (bx - ax) * (y - ay) / (by - ay) + ax
        inside ^= between & crossing
    return inside


def star_points(radii: list[float]) -> list[tuple[float, float]]:
    angles = np.arange(len(radii)) * 2 * math.pi / len(radii)
    return [
        (0.5 + radius * math.cos(angle), 0.5 + radius * math.sin(angle))
        for radius, angle in zip(radii, angles, strict=True)
    ]


@given(st.lists(st.floats(0.1, 0.7), min_size=3, max_size=9), st.integers(2, 6), st.integers(2, 6))
def test_polygon_cells_agree_with_brute_force_subsampling(radii, h, w):
    # Star-shaped (hence often concave) and up to 0.2 outside the picture.
    samples = 40
    axis_y = (np.arange(h * samples) + 0.5) / (h * samples)
    axis_x = (np.arange(w * samples) + 0.5) / (w * samples)
    x, y = np.meshgrid(axis_x, axis_y)
    cover = inside_star(radii, x, y).reshape(h, samples, w, samples).mean(axis=(1, 3))
    selected = np.zeros((h, w), dtype=bool)
    selected[tuple(roi_cells(validate_roi(polygon(*star_points(radii))), GridSize(h, w)).T)] = True
    # Subsampling errs by about an edge length times a sample: leave undecided cells out.
    assert selected[cover > 0.6].all()
    if (cover > 0.6).any():
        assert not selected[cover < 0.4].any()


def test_cells_box_by_hand():
    # Patch ids 5 = (1, 1) and 10 = (2, 2) of a 4x4 grid.
    assert cells_box(np.array([10, 5]), GRID) == Box(0.25, 0.25, 0.75, 0.75)
    assert cells_box(np.array([5]), GridSize(2, 3)) == Box(2 / 3, 0.5, 1.0, 1.0)


@pytest.mark.parametrize("cells", [[], [-1], [16]])
def test_cells_box_refuses_cells_outside_the_grid(cells):
    with pytest.raises(InputInvalid):
        cells_box(np.array(cells, dtype=np.int64), GRID)
