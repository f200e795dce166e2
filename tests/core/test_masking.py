"""Privacy masks: what is painted, which cells tell nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from worker.core.geometry import validate_roi
from worker.core.masking import (
    MAX_AREAS,
    PrivacyMask,
    areas_from_json,
    areas_to_json,
    hidden_cells,
    hide_cells,
    painted,
    painted_pixels,
    seen_cells,
)
from worker.core.types import Box, GridSize, Point, Polygon, Roi, SizePx
from worker.errors import InputInvalid, RoiInvalid

GRID = GridSize(8, 8)
TRIANGLE = Polygon((Point(0.1, 0.2), Point(0.6, 0.3), Point(0.2, 0.8)))


def masked_source(area: Roi, source: SizePx) -> np.ndarray:
    """Pixels of the source that the area touches at all, by looking at many points of each."""
    fine = 8
    y, x = np.mgrid[0 : source.h_px * fine, 0 : source.w_px * fine]
    x = (x + 0.5) / (source.w_px * fine)
    y = (y + 0.5) / (source.h_px * fine)
    if isinstance(area, Box):
        inside = (area.x0 <= x) & (x <= area.x1) & (area.y0 <= y) & (y <= area.y1)
    else:
        inside = np.zeros(x.shape, dtype=bool)
        points = area.points
        for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
            if y0 != y1:
                inside ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    by_pixel = inside.reshape(source.h_px, fine, source.w_px, fine)
    return np.asarray(by_pixel.any(axis=(1, 3)))


shares = st.floats(0, 1)


@settings(max_examples=40, deadline=None)
@given(
    area=st.one_of(
        st.just(TRIANGLE),
        st.tuples(shares, shares, shares, shares)
        .map(lambda c: Box(min(c[0], c[1]), min(c[2], c[3]), max(c[0], c[1]), max(c[2], c[3])))
        .filter(lambda box: box.x1 - box.x0 > 0.01 and box.y1 - box.y0 > 0.01),
    ),
    source=st.tuples(st.integers(20, 90), st.integers(20, 90)),
    size=st.tuples(st.integers(16, 90), st.integers(16, 90)),
)
def test_no_pixel_that_is_left_has_a_masked_one_in_it(
    area: Roi, source: tuple[int, int], size: tuple[int, int]
) -> None:
    """Two sources that differ under the mask only become the same picture, whatever filter."""
    source_px, size_px = SizePx(*source), SizePx(*size)
    mask = PrivacyMask(1, (validate_roi(area),))
    hidden = masked_source(area, source_px)
    chance = np.random.default_rng(3)
    one = chance.integers(0, 256, (*source_px, 3), dtype=np.uint8)
    other = np.where(hidden[..., None], 255 - one, one).astype(np.uint8)
    for filter_ in (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.BOX):
        scaled = [
            painted(
                np.asarray(Image.fromarray(img).resize((size_px.w_px, size_px.h_px), filter_)),
                mask,
                source_px,
            )
            for img in (one, other)
        ]
        np.testing.assert_array_equal(scaled[0], scaled[1])


def test_what_is_far_from_the_mask_is_left_as_it_was() -> None:
    img = np.full((108, 192, 3), 200, dtype=np.uint8)
    mask = PrivacyMask(1, (Box(0.25, 0.25, 0.5, 0.5), TRIANGLE))
    shown = painted(img, mask, SizePx(108, 192))
    assert (img == 200).all()
    assert shown[50, 70].tolist() == [0, 0, 0]
    assert (
        (shown[:, 140:] == 200).all() and (shown[:10] == 200).all() and (shown[-10:] == 200).all()
    )
    assert 0.1 < (shown == 0).mean() < 0.5


def test_cells_with_a_painted_pixel_are_hidden_and_tell_nothing_of_the_picture() -> None:
    mask = PrivacyMask(7, (Box(0.5, 0.5, 1, 1),))
    size = SizePx(256, 256)
    cells = hidden_cells(mask, GRID, size, SizePx(1080, 1920))
    pixels = painted_pixels(mask, size, SizePx(1080, 1920))
    assert set(cells) >= {row * 8 + col for row in range(4, 8) for col in range(4, 8)}
    assert set(cells) <= {row * 8 + col for row in range(3, 8) for col in range(3, 8)}
    assert pixels.reshape(8, 32, 8, 32).any(axis=(1, 3)).ravel().nonzero()[0].tolist() == [*cells]
    chance = np.random.default_rng(1)
    one, other = (chance.standard_normal((64, 48), dtype=np.float32) for _ in range(2))
    kept = np.delete(one, cells, axis=0)
    for patches in (one, other):
        hide_cells(patches, mask, cells)
    np.testing.assert_array_equal(one[cells], other[cells])
    np.testing.assert_allclose(np.linalg.norm(one[cells], axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(np.delete(one, cells, axis=0), kept)
    third = other.copy()
    hide_cells(third, PrivacyMask(8, mask.areas), cells)
    assert np.abs((third[cells] * one[cells]).sum(axis=1)).max() < 0.6


def test_a_query_sees_only_cells_beside_the_mask() -> None:
    mask = PrivacyMask(7, (Box(0.5, 0.5, 1, 1),))
    hidden = hidden_cells(mask, GRID, SizePx(256, 256), SizePx(1080, 1920))
    seen = seen_cells(Box(0, 0, 1, 1), GRID, hidden)
    assert len(seen) == 64 - len(hidden)
    with pytest.raises(RoiInvalid, match="privacy mask"):
        seen_cells(Box(0.7, 0.7, 0.9, 0.9), GRID, hidden)


def test_areas_as_json() -> None:
    areas = (Box(0.1, 0.2, 0.3, 0.4), TRIANGLE)
    assert areas_from_json(areas_to_json(areas)) == areas
    for bad in ([], [{"box": [0, 0, 1, 1]}] * (MAX_AREAS + 1)):
        with pytest.raises(InputInvalid):
            areas_from_json(bad)
    with pytest.raises(RoiInvalid):
        areas_from_json([{"box": [0, 0, 0, 1]}])
