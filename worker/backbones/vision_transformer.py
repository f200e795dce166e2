"""Vision transformers of the transformers library: loading from a folder, embedding, pooling.

What differs between families (architecture, tokens, preprocessing) is a :class:`VisionFamily`
in the family's own file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as nnf
from transformers.utils import logging as transformers_logging

from worker.backbones.base import check_pictures, unit_descriptors
from worker.backbones.preprocess import Resize, Rgb, normalise, to_pixels
from worker.backbones.staged import RawRows
from worker.core.backbone_spec import BackboneSpec, GlobalPooling
from worker.core.types import Descriptors, FloatArray, GridSize, ImageArray, SizePx
from worker.errors import InputInvalid, WeightsMissing

TokenSource = Literal["last_hidden_state", "hidden_states[-1]"]
"""Tokens after or before the final layer norm."""

IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)
SALIENCY_FLOOR = 0.1


@dataclass(frozen=True, slots=True)
class Tokens:
    """Raw output of one forward pass: patches (n, cells, dim); summary (n, dim) if there is one."""

    summary_nd: Tensor | None
    patches_ncd: Tensor


@dataclass(frozen=True, slots=True)
class VisionFamily:
    """What sets one model type apart.

    ``tokens(network, normalised_nchw, tokens_from)`` runs the network. ``input_px(config)`` is the
    side of its square input. ``summary`` names the pooling that the network itself offers, if any.
    """

    architecture: Any
    tokens: Callable[[Any, Tensor, TokenSource], Tokens]
    input_px: Callable[[Any], int]
    summary: Literal["pooled", "cls"] | None
    default_pooling: GlobalPooling
    mean_rgb: Rgb
    std_rgb: Rgb
    resize: Resize


@dataclass(frozen=True, slots=True)
class WeightsFolder:
    """Where weights came from and under which name, licence and match level they run."""

    path: Path
    name: str
    revision: str
    licence: str
    commercial_use: bool
    tau: float
    tokens_from: TokenSource


@dataclass(frozen=True, slots=True)
class VitBackbone:
    """``Backbone`` over one vision transformer."""

    spec: BackboneSpec
    family: VisionFamily
    network: nn.Module
    tokens_from: TokenSource
    device: torch.device
    dtype: torch.dtype

    def embed(self, imgs_hwc: Sequence[ImageArray]) -> Descriptors:
        """See :class:`worker.backbones.base.Backbone`."""
        check_pictures(imgs_hwc)
        spec = self.spec
        with torch.inference_mode():
            raw = self.raw(to_pixels(imgs_hwc, spec.input_size, spec.resize, self.device))
        return unit_descriptors(spec, _to_numpy(raw.global_nd), _to_numpy(raw.patches_ncd))

    def raw(self, pixels_nchw: Tensor) -> RawRows:
        """See :class:`worker.backbones.staged.StagedBackbone`."""
        spec = self.spec
        normalised = normalise(pixels_nchw, spec.mean_rgb, spec.std_rgb).to(self.dtype)
        tokens = self.family.tokens(self.network, normalised, self.tokens_from)
        patches = tokens.patches_ncd.float()
        match spec.global_pooling:
            case "mean":
                pooled = patches.mean(dim=1)
            case "saliency-mean":
                weights = saliency_weights(pixels_nchw, spec.patch_px)
                pooled = (weights[:, :, None] * patches).sum(dim=1)
            case _:
                pooled = cast(Tensor, tokens.summary_nd).float()
        return RawRows(pooled, patches)


def saliency_weights(pixels_nchw: Tensor, patch_px: int) -> Tensor:
    """Weight of each cell in the saliency-weighted mean: (n, cells), every row sums to 1.

    The paper (section 4, "Saliency-Weighted Mean pooling", "Laplacian-based") gives no formula.
    Ours: the mean absolute 4-neighbour Laplacian of the luminance over the cell, plus a tenth of
    the picture's own mean so that flat cells keep a say; a wholly flat picture weighs all alike.
    Takes values 0..1, shape (n, 3, h_px, w_px), both sides multiples of ``patch_px``.
    """
    luminance = (pixels_nchw * pixels_nchw.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(
        dim=1, keepdim=True
    )
    kernel = pixels_nchw.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    bordered = nnf.pad(luminance, (1, 1, 1, 1), mode="replicate")  # no false edge at the border
    edges = nnf.conv2d(bordered, kernel.view(1, 1, 3, 3)).abs()
    cells = nnf.avg_pool2d(edges, patch_px).flatten(1)
    weights = cells + SALIENCY_FLOOR * cells.mean(dim=1, keepdim=True) + 1e-6
    return weights / weights.sum(dim=1, keepdim=True)


def load_vit(
    family: VisionFamily,
    folder: WeightsFolder,
    pooling: GlobalPooling | None,
    device: torch.device,
    dtype: torch.dtype,
) -> VitBackbone:
    """Load ``config.json`` and safetensors of a folder; widths come from the config.

    Raises ``WeightsMissing`` when there are no safetensors, they are damaged, or they lack tensors
    (which would run on random numbers); ``InputInvalid`` for a pooling that the family has not.
    """
    files = sorted(folder.path.glob("*.safetensors"))
    if not files:
        raise WeightsMissing(
            f"Backbone {folder.name}: no *.safetensors in {folder.path}. Only safetensors are "
            "read, since pickled weights can run code; convert them with save_pretrained."
        )
    pooling = pooling or family.default_pooling
    if pooling not in ("mean", "saliency-mean", family.summary):
        raise InputInvalid(
            f"Backbone {folder.name} has no {pooling!r} pooling; use mean, saliency-mean or its "
            f"default {family.default_pooling!r}."
        )
    network = _read_network(family, folder, dtype).to(device).requires_grad_(False).eval()
    config = network.config
    input_px, patch_px = family.input_px(config), int(config.patch_size)
    mean_rgb, std_rgb, resize = _preprocessing(family, folder.path)
    spec = BackboneSpec(
        name=folder.name,
        revision=folder.revision,
        weights_sha256=_sha256(files),
        input_size=SizePx(input_px, input_px),
        patch_px=patch_px,
        grid=GridSize(input_px // patch_px, input_px // patch_px),
        global_dim=int(config.hidden_size),
        patch_dim=int(config.hidden_size),
        patch_source=folder.tokens_from,
        global_pooling=pooling,
        mean_rgb=mean_rgb,
        std_rgb=std_rgb,
        resize=resize,
        tau=folder.tau,
        licence=folder.licence,
        commercial_use=folder.commercial_use,
        weights_bytes=sum(file.stat().st_size for file in files),
    )
    return VitBackbone(spec, family, network, folder.tokens_from, device, dtype)


def side_px(image_size: int | Sequence[int]) -> int:
    """Side of a config's square ``image_size``; raises ``InputInvalid`` if it is not square."""
    sides = {image_size} if isinstance(image_size, int) else set(image_size)
    if len(sides) != 1:
        raise InputInvalid(f"image_size {image_size} in config.json is not square; not supported.")
    return int(sides.pop())


def _read_network(family: VisionFamily, folder: WeightsFolder, dtype: torch.dtype) -> Any:
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # unused text towers are expected, not news
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        network, report = family.architecture.from_pretrained(
            folder.path,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            dtype=dtype,
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise WeightsMissing(
            f"Backbone {folder.name}: {folder.path} cannot be loaded ({error}); "
            "fetch the folder again."
        ) from error
    lacking = sorted(k for k in report["missing_keys"] if not k.endswith("mask_token"))
    if lacking:
        raise WeightsMissing(
            f"Backbone {folder.name}: {folder.path} lacks {len(lacking)} tensors, first "
            f"{lacking[0]}; the weights do not belong to its config.json. Fetch the folder again."
        )
    return network


def _preprocessing(family: VisionFamily, folder: Path) -> tuple[Rgb, Rgb, Resize]:
    """Mean, std and filter of the publisher's preprocessor_config.json, else the family's."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return family.mean_rgb, family.std_rgb, family.resize
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        mean, std = (
            tuple(float(value) for value in fields.get(key, default))
            for key, default in (("image_mean", family.mean_rgb), ("image_std", family.std_rgb))
        )
        pil_filters: dict[int, Resize] = {2: "stretch-bilinear", 3: "stretch-bicubic"}
        resize = pil_filters[fields["resample"]] if "resample" in fields else family.resize
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError("image_mean and image_std need three values, std above 0")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputInvalid(f"{path} cannot be used ({error}); restore or delete it.") from error
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]), resize


def _sha256(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _to_numpy(values: Tensor) -> FloatArray:
    return cast(FloatArray, values.cpu().contiguous().numpy())
