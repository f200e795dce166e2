"""Boxes around what a camera's other pictures do not show."""

from __future__ import annotations

import numpy as np
import pytest

from worker.core.proposals import MIN_OTHERS, OTHERS, propose_boxes
from worker.core.types import Box
from worker.errors import InputInvalid

H_PX, W_PX = 120, 240


def scene(seed: int, *, brighter: int = 0):
    """A fixed picture with the noise of a camera."""
    fixed = np.random.default_rng(0).integers(60, 160, (H_PX, W_PX, 3))
    noise = np.random.default_rng(seed + 1).integers(-3, 4, (H_PX, W_PX, 3))
    return (fixed + noise + brighter).astype(np.uint8)


OTHER_PICTURES = [scene(seed) for seed in range(OTHERS)]


def with_things(*boxes_px, seed: int = 99, brighter: int = 0):
    img_hwc = scene(seed, brighter=brighter)
    for x0, y0, x1, y1 in boxes_px:
        img_hwc[y0:y1, x0:x1] = 240
    return img_hwc


def assert_near(box: Box, x0: int, y0: int, x1: int, y1: int) -> None:
    found_px = [box.x0 * W_PX, box.y0 * H_PX, box.x1 * W_PX, box.y1 * H_PX]
    assert found_px == pytest.approx([x0, y0, x1, y1], abs=1)


@pytest.mark.parametrize("brighter", [0, 30])
def test_things_that_the_others_lack_are_boxed_the_largest_first(brighter):
    small, large = (200, 10, 210, 30), (40, 40, 70, 100)
    boxes = propose_boxes(with_things(small, large, brighter=brighter), OTHER_PICTURES)
    assert len(boxes) == 2
    assert_near(boxes[0], *large)
    assert_near(boxes[1], *small)


def test_parts_a_few_pixels_apart_are_one_thing():
    boxes = propose_boxes(with_things((40, 40, 70, 60), (40, 63, 70, 90)), OTHER_PICTURES)
    assert len(boxes) == 1
    assert_near(boxes[0], 40, 40, 70, 90)


def test_a_ring_is_one_thing():
    img_hwc = with_things((40, 20, 100, 90))
    img_hwc[35:75, 55:85] = scene(99)[35:75, 55:85]
    boxes = propose_boxes(img_hwc, OTHER_PICTURES)
    assert len(boxes) == 1
    assert_near(boxes[0], 40, 20, 100, 90)


def test_nothing_is_proposed_where_nothing_or_everything_differs():
    assert propose_boxes(scene(50), OTHER_PICTURES) == []
    elsewhere = np.random.default_rng(7).integers(0, 255, (H_PX, W_PX, 3)).astype(np.uint8)
    assert propose_boxes(elsewhere, OTHER_PICTURES) == []


def test_what_flickers_everywhere_is_no_thing():
    others = [
        with_things((40, 40, 70, 100), seed=seed) if seed % 2 else scene(seed)
        for seed in range(OTHERS)
    ]
    assert propose_boxes(with_things((40, 40, 70, 100)), others) == []


def test_few_others_tell_no_background():
    one = with_things((40, 40, 70, 100))
    assert propose_boxes(one, OTHER_PICTURES[: MIN_OTHERS - 1]) == []
    assert len(propose_boxes(one, OTHER_PICTURES[:MIN_OTHERS])) == 1


def test_pictures_of_other_sizes_are_refused():
    with pytest.raises(InputInvalid, match="one size"):
        propose_boxes(scene(1)[:100], OTHER_PICTURES)
