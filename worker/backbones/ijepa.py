"""I-JEPA encoders. They have no CLS token, so the global descriptor is a saliency-weighted mean."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import IJepaModel

from worker.backbones.vision_transformer import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Tokens,
    TokenSource,
    VisionFamily,
    side_px,
)


def _tokens(network: Any, pixels_nchw: Tensor, _source: TokenSource) -> Tokens:
    return Tokens(None, network(pixel_values=pixels_nchw).last_hidden_state)


FAMILIES = {
    "ijepa": VisionFamily(
        architecture=IJepaModel,
        tokens=_tokens,
        input_px=lambda config: side_px(config.image_size),
        summary=None,
        default_pooling="saliency-mean",
        mean_rgb=IMAGENET_MEAN,
        std_rgb=IMAGENET_STD,
        resize="stretch-bilinear",
    )
}
"""Family by ``model_type`` of config.json."""
