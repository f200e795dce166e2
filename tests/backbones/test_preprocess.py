"""Our tensor preprocessing against the PIL processors of transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tests.backbones.conftest import tiny_network
from worker.backbones.preprocess import Resize, normalise, to_pixels
from worker.core.types import ImageArray, SizePx

CPU = torch.device("cpu")
SIZE = SizePx(224, 224)
EXACT = {"size": {"height": 224, "width": 224}, "return_tensors": "pt"}
PROCESSORS = [
    pytest.param(SiglipImageProcessorPil(), "stretch-bicubic", id="siglip"),
    pytest.param(ViTImageProcessorPil(), "stretch-bilinear", id="vit"),
    pytest.param(BitImageProcessorPil(do_center_crop=False), "stretch-bicubic", id="bit"),
]


def ours(img_hwc: ImageArray, processor: Any, resize: Resize) -> torch.Tensor:
    pixels = to_pixels([img_hwc], SIZE, resize, CPU)
    return normalise(pixels, tuple(processor.image_mean), tuple(processor.image_std))


@pytest.mark.parametrize(("processor", "resize"), PROCESSORS)
def test_pixels_equal_the_pil_processor_within_two_levels(bikes, processor, resize):
    """Both round after each of two passes: a level each, and rarely."""
    theirs = processor(bikes[0], **EXACT)["pixel_values"]
    one_level = 1 / 255 / min(processor.image_std)
    difference = (ours(bikes[0], processor, resize) - theirs).abs()
    assert difference.max() <= one_level * 2.01
    assert difference.mean() <= one_level * 0.05


@pytest.mark.parametrize(("processor", "resize"), PROCESSORS)
def test_descriptors_equal_those_of_the_pil_processor(bikes, processor, resize):
    network = tiny_network("dinov2").eval()
    theirs = processor(bikes[0], **EXACT)["pixel_values"]
    with torch.inference_mode():
        a, b = (
            network(pixel_values=pixels).last_hidden_state
            for pixels in (theirs, ours(bikes[0], processor, resize))
        )
    assert torch.cosine_similarity(a, b, dim=-1).min() >= 0.999


def test_a_picture_of_the_input_size_is_not_resampled():
    img_hwc = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    pixels = to_pixels([img_hwc], SizePx(16, 16), "stretch-bicubic", CPU)
    assert np.array_equal((pixels[0] * 255).round().numpy().transpose(1, 2, 0), img_hwc)


def test_edges_survive_the_resize():
    """A subject at the left border of a wide picture; a centre crop would lose it."""
    img_hwc = np.zeros((100, 400, 3), dtype=np.uint8)
    img_hwc[:, :40] = 255
    pixels = to_pixels([img_hwc], SizePx(32, 32), "stretch-bilinear", CPU)
    assert pixels[0, :, :, 0].min() == 1.0
    assert pixels.mean() == pytest.approx(0.1, abs=0.01)


def test_read_only_and_strided_pictures_are_taken(bikes):
    mirrored = bikes[0][:, ::-1]
    frozen = bikes[0].copy()
    frozen.flags.writeable = False
    plain, back, same = to_pixels([bikes[0], mirrored, frozen], SIZE, "stretch-bilinear", CPU)
    assert torch.equal(plain, same)
    assert (plain - back.flip(-1)).abs().max() <= 2 / 255
