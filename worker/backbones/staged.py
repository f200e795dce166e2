"""A backbone in stages: what runs between the upload of pictures and the download of descriptors.

Everything here takes and gives tensors where they lie; nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from worker.backbones.base import MIN_NORM, StoredType
from worker.backbones.preprocess import rescaled
from worker.core.backbone_spec import BackboneSpec
from worker.core.types import Descriptors, ImageArray
from worker.errors import DescriptorInvalid, InputInvalid

_INT8_PEAK = 127


@dataclass(frozen=True, slots=True)
class RawRows:
    """Output of a forward pass, float32, not normalised: (n, global_dim), (n, cells, patch_dim)."""

    global_nd: Tensor
    patches_ncd: Tensor


class StagedBackbone(Protocol):
    """A backbone whose forward pass can be given pixels that are on its device already."""

    @property
    def spec(self) -> BackboneSpec:
        """As :class:`worker.backbones.base.Backbone`."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        ...

    def embed(self, imgs_hwc: Sequence[ImageArray]) -> Descriptors:
        """As :class:`worker.backbones.base.Backbone`: all stages, one after the other."""
        ...

    def raw(self, pixels_nchw: Tensor) -> RawRows:
        """The pass itself: float32 (n, 3, input_size), 0..1, on the device, to its rows."""
        ...


@dataclass(frozen=True, slots=True)
class UnitRows:
    """Unit rows float32 on the device, as :class:`RawRows` is shaped; ``sound_n``: bool (n,), False
    for a picture with a NaN, infinite or zero row."""

    global_nd: Tensor
    patches_ncd: Tensor
    sound_n: Tensor


def unit_rows(backbone: StagedBackbone, levels_nchw: Tensor) -> UnitRows:
    """Forward and normalise (paper eq. 2): uint8 (n, 3, input_size) on the backbone's device.

    The rows of a picture that is not sound are of no use. Raises ``DescriptorInvalid`` when the
    shapes differ from the spec: a lost token would shift every patch id.
    """
    spec, n = backbone.spec, levels_nchw.shape[0]
    raw = backbone.raw(rescaled(levels_nchw))
    found = (tuple(raw.global_nd.shape), tuple(raw.patches_ncd.shape))
    expected = ((n, spec.global_dim), (n, spec.grid.cells, spec.patch_dim))
    if found != expected:
        raise DescriptorInvalid(
            f"Backbone {spec.name} gave shapes {found[0]} and {found[1]}, its spec says "
            f"{expected[0]} and {expected[1]}; check its config.json."
        )
    norm_n1 = torch.linalg.vector_norm(raw.global_nd, dim=-1, keepdim=True)
    norm_nc1 = torch.linalg.vector_norm(raw.patches_ncd, dim=-1, keepdim=True)
    norm_nk = torch.cat([norm_n1, norm_nc1[..., 0]], dim=1)
    sound_n = (torch.isfinite(norm_nk) & (norm_nk > MIN_NORM)).all(dim=1)
    return UnitRows(raw.global_nd / norm_n1, raw.patches_ncd / norm_nc1, sound_n)


def side_by_side(backbones: Sequence[StagedBackbone], levels_nchw: Tensor) -> list[UnitRows]:
    """:func:`unit_rows` of several backbones from one upload.

    Raises ``InputInvalid`` where they want pictures of other sizes.
    """
    for backbone in backbones:
        spec = backbone.spec
        if levels_nchw.shape[-2:] != tuple(spec.input_size):
            raise InputInvalid(
                f"Backbone {spec.name} takes {spec.input_size.h_px}x{spec.input_size.w_px} px, "
                f"not {tuple(levels_nchw.shape[-2:])}: these backbones cannot share one upload."
            )
    return [unit_rows(backbone, levels_nchw) for backbone in backbones]


def stored_rows(rows: Tensor, stored: StoredType) -> Tensor:
    """Unit rows float32 (..., d) in a codec's type, as ``worker.index.codec`` would encode them.

    A row that is not sound gives numbers without meaning, and no error.
    """
    if stored == "fp32":
        return rows
    if stored == "fp16":
        return rows.to(torch.float16)
    peak = torch.maximum(rows.amax(dim=-1), -rows.amin(dim=-1))
    return (rows * (_INT8_PEAK / peak)[..., None]).round_().to(torch.int8)
