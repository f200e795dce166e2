"""SigLIP and SigLIP2 vision towers; the global descriptor is their attention-pooled output.

``siglip2-*-patchNN-SIZE`` checkpoints are SigLIP-shaped (model type ``siglip``); only the
``naflex`` ones have model type ``siglip2`` and take patches instead of pictures.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from torch import Tensor
from transformers import Siglip2VisionModel, SiglipVisionModel

from worker.backbones.vision_transformer import Tokens, TokenSource, VisionFamily, side_px


def _siglip_tokens(network: Any, pixels_nchw: Tensor, _source: TokenSource) -> Tokens:
    output = network(pixel_values=pixels_nchw)
    return Tokens(output.pooler_output, output.last_hidden_state)


def _naflex_tokens(network: Any, pixels_nchw: Tensor, _source: TokenSource) -> Tokens:
    """A full square grid without padding: NaFlex is built for any shape, our input has one."""
    n, channels, h_px, w_px = pixels_nchw.shape
    patch_px = int(network.config.patch_size)
    h, w = h_px // patch_px, w_px // patch_px
    split = pixels_nchw.reshape(n, channels, h, patch_px, w, patch_px)
    patches = split.permute(0, 2, 4, 3, 5, 1).reshape(n, h * w, patch_px * patch_px * channels)
    output = network(
        pixel_values=patches,
        pixel_attention_mask=torch.ones(n, h * w, dtype=torch.int32, device=patches.device),
        spatial_shapes=torch.tensor([[h, w]] * n, device=patches.device),
    )
    return Tokens(output.pooler_output, output.last_hidden_state)


def _naflex_input_px(config: Any) -> int:
    return isqrt(int(config.num_patches)) * int(config.patch_size)


_SIGLIP = VisionFamily(
    architecture=SiglipVisionModel,
    tokens=_siglip_tokens,
    input_px=lambda config: side_px(config.image_size),
    summary="pooled",
    default_pooling="pooled",
    mean_rgb=(0.5, 0.5, 0.5),
    std_rgb=(0.5, 0.5, 0.5),
    resize="stretch-bicubic",
)
_NAFLEX = VisionFamily(
    architecture=Siglip2VisionModel,
    tokens=_naflex_tokens,
    input_px=_naflex_input_px,
    summary="pooled",
    default_pooling="pooled",
    mean_rgb=(0.5, 0.5, 0.5),
    std_rgb=(0.5, 0.5, 0.5),
    resize="stretch-bilinear",
)

FAMILIES = {
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "siglip2": _NAFLEX,
    "siglip2_vision_model": _NAFLEX,
}
"""Family by ``model_type`` of config.json."""
