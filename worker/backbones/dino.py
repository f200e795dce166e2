"""DINOv2 (with and without registers) and DINOv3; the global descriptor is the CLS token."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Dinov2Model, Dinov2WithRegistersModel, DINOv3ViTModel

from worker.backbones.vision_transformer import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Tokens,
    TokenSource,
    VisionFamily,
    side_px,
)

GRID_SIDE = 16
"""Cells per side of the default input; the position codes of these networks fit any size."""


def _tokens(network: Any, pixels_nchw: Tensor, source: TokenSource) -> Tokens:
    normed = source == "last_hidden_state"
    output = network(pixel_values=pixels_nchw, output_hidden_states=not normed)
    tokens = output.last_hidden_state if normed else output.hidden_states[-1]
    registers = int(getattr(network.config, "num_register_tokens", 0))
    return Tokens(tokens[:, 0], tokens[:, 1 + registers :])  # CLS, registers, patches


def _input_px(config: Any) -> int:
    return min(side_px(config.image_size), GRID_SIDE * int(config.patch_size))


def _family(architecture: Any) -> VisionFamily:
    return VisionFamily(
        architecture=architecture,
        tokens=_tokens,
        input_px=_input_px,
        summary="cls",
        default_pooling="cls",
        mean_rgb=IMAGENET_MEAN,
        std_rgb=IMAGENET_STD,
        resize="stretch-bicubic",
    )


FAMILIES = {
    "dinov2": _family(Dinov2Model),
    "dinov2_with_registers": _family(Dinov2WithRegistersModel),
    "dinov3_vit": _family(DINOv3ViTModel),
}
"""Family by ``model_type`` of config.json."""
