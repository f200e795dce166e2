"""The fast path (swscale straight to the input size) describes a frame as the reference does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from worker.backbones.base import Backbone
from worker.backbones.registry import load_backbone
from worker.core.sampling import IntervalPolicy
from worker.video.decode import sample_video


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("efficientnet-lite0")


# The car clip is 176 x 144 with non-square pixels: the reference enlarges it in two steps.
@pytest.mark.parametrize(("clip", "least_global"), [("bikes", 0.99), ("car", 0.98)])
def test_descriptors_of_the_fast_path_agree_with_the_reference(
    clip: str, least_global: float, footage: dict[str, Path], backbone: Backbone
) -> None:
    with sample_video(
        footage[clip],
        IntervalPolicy(2.0),
        input_size=backbone.spec.input_size,
        picture_max_side_px=4096,
        max_px=50_000_000,
    ) as video:
        frames = list(video)
    fast = backbone.embed([frame.img_input_hwc for frame in frames])
    reference = backbone.embed([frame.img_picture_hwc for frame in frames])
    global_cosine_n = (fast.global_nd * reference.global_nd).sum(axis=-1)
    patch_cosine_nc = (fast.patches_ncd * reference.patches_ncd).sum(axis=-1)
    assert global_cosine_n.min() >= least_global
    assert np.median(patch_cosine_nc) >= 0.99
    assert patch_cosine_nc.mean() >= 0.98
