"""uint8 pictures to normalised tensors, in torch alone; parity-tested against PIL processors.

Pictures are stretched to the input size, never centre-cropped as classifiers do: a camera's
subjects enter and leave at the edges, and boxes must map to cells by plain scaling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as nnf

from worker.core.types import ImageArray, SizePx

Resize = Literal["stretch-bilinear", "stretch-bicubic"]
Rgb = tuple[float, float, float]


def to_pixels(
    imgs_hwc: Sequence[ImageArray], input_size: SizePx, resize: Resize, device: torch.device
) -> Tensor:
    """Resize with antialias and rescale: float32 (n, 3, input_size), 0..1, on ``device``."""
    return rescaled(to_levels(imgs_hwc, input_size, resize).to(device))


def to_levels(imgs_hwc: Sequence[ImageArray], input_size: SizePx, resize: Resize) -> Tensor:
    """Resize with antialias in host memory: uint8 (n, 3, input_size).

    On the CPU uint8 is 18 times faster than float, rounds as PIL does, and gives the same bytes
    whatever the device. Pictures of the input size pass untouched.
    """
    mode = resize.removeprefix("stretch-")
    resized: list[Tensor] = []
    for img_hwc in imgs_hwc:
        pixels = as_tensor(img_hwc).permute(2, 0, 1)[None]
        if pixels.shape[-2:] != tuple(input_size):
            pixels = nnf.interpolate(pixels, tuple(input_size), mode=mode, antialias=True)
        resized.append(pixels)
    return torch.cat(resized)


def as_tensor(img_hwc: ImageArray) -> Tensor:
    """The picture's own memory as uint8 (h, w, 3), copied only where torch cannot take it."""
    return torch.from_numpy(np.require(img_hwc, requirements=["C", "W"]))  # torch wants both


def rescaled(levels_nchw: Tensor) -> Tensor:
    """uint8 levels as float32 0..1, same shape and device."""
    return levels_nchw.to(torch.float32).div_(255.0)


def stretched(levels_nchw: Tensor, input_size: SizePx, resize: Resize) -> Tensor:
    """uint8 (n, 3, h, w) to uint8 (n, 3, input_size) where it lies: for accelerators, which have
    no antialiased resize of uint8.

    In float, rounded to whole levels after each of two passes, as :func:`to_levels` does with
    weights of fewer bits: seldom a level apart, never more than two.
    """
    h_px, w_px = input_size
    mode = resize.removeprefix("stretch-")
    for size in ((levels_nchw.shape[-2], w_px), (h_px, w_px)):
        if levels_nchw.shape[-2:] != size:
            wide = levels_nchw.to(torch.float32)
            made = nnf.interpolate(wide, size, mode=mode, antialias=True)
            levels_nchw = made.round_().clamp_(0, 255).to(torch.uint8)
    return levels_nchw


def normalise(pixels_nchw: Tensor, mean_rgb: Rgb, std_rgb: Rgb) -> Tensor:
    """``(pixels - mean) / std`` per channel; mean and std are for values 0..1."""
    mean = pixels_nchw.new_tensor(mean_rgb).view(1, 3, 1, 1)
    std = pixels_nchw.new_tensor(std_rgb).view(1, 3, 1, 1)
    return (pixels_nchw - mean) / std
