"""What every backbone promises, and the checks at its two doors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from worker.core.backbone_spec import BackboneSpec
from worker.core.types import Descriptors, FloatArray, ImageArray
from worker.errors import DescriptorInvalid, InputInvalid

MIN_NORM = 1e-6  # below this a direction is rounding noise, not a descriptor

StoredType = Literal["fp32", "fp16", "int8"]
"""Names of the index's codecs: the number type that descriptors leave the device in."""


class Backbone(Protocol):
    """A frozen network with its preprocessing. ``embed`` depends on its input only."""

    @property
    def spec(self) -> BackboneSpec:
        """Frozen description; decides which index the descriptors belong to."""
        ...

    def embed(self, imgs_hwc: Sequence[ImageArray]) -> Descriptors:
        """Describe n pictures of any size (uint8 RGB, (h_px, w_px, 3)), in order.

        A picture that already has ``spec.input_size`` is not resized. Rows of the result have unit
        L2 norm (paper eq. 2): global (n, ``spec.global_dim``), patches (n, ``spec.grid.cells``,
        ``spec.patch_dim``), float32. Raises ``InputInvalid`` for an empty sequence or an array
        that is not such a picture, ``DescriptorInvalid`` for NaN, infinite or zero output.
        """
        ...


@runtime_checkable
class BatchingBackbone(Protocol):
    """A ``Backbone`` that makes its own batches, and gives descriptors as they are stored."""

    @property
    def spec(self) -> BackboneSpec:
        """As :class:`Backbone`."""
        ...

    def embed(self, imgs_hwc: Sequence[ImageArray]) -> Descriptors:
        """As :class:`Backbone`, any number of pictures."""
        ...

    def embed_stored(self, imgs_hwc: Sequence[ImageArray], stored: StoredType) -> Descriptors:
        """The same in the type of that codec: what ``codec.encode`` would make of them."""
        ...


def check_pictures(imgs_hwc: Sequence[ImageArray]) -> None:
    """Raise ``InputInvalid`` unless there is at least one and all are uint8 (h > 0, w > 0, 3)."""
    if len(imgs_hwc) == 0:
        raise InputInvalid("No picture to embed; give at least one.")
    for i, img_hwc in enumerate(imgs_hwc):
        good_shape = img_hwc.ndim == 3 and img_hwc.shape[2] == 3 and img_hwc.size > 0
        if img_hwc.dtype != np.uint8 or not good_shape:
            raise InputInvalid(
                f"Picture {i} has shape {img_hwc.shape} and type {img_hwc.dtype}; "
                "give uint8 RGB of shape (h, w, 3)."
            )


def unit_descriptors(
    spec: BackboneSpec, global_nd: FloatArray, patches_ncd: FloatArray
) -> Descriptors:
    """L2-normalise raw network output row by row (paper eq. 2).

    Takes float32 (n, global_dim) and (n, cells, patch_dim). Raises ``DescriptorInvalid`` when the
    shape differs from ``spec`` (a lost token would shift every patch id) or a row has no direction.
    """
    n = global_nd.shape[0]
    expected = ((n, spec.global_dim), (n, spec.grid.cells, spec.patch_dim))
    if (global_nd.shape, patches_ncd.shape) != expected:
        raise DescriptorInvalid(
            f"Backbone {spec.name} gave shapes {global_nd.shape} and {patches_ncd.shape}, its spec "
            f"says {expected[0]} and {expected[1]}; check its config.json."
        )
    return Descriptors(
        _unit_rows(spec, "global descriptor", global_nd),
        _unit_rows(spec, "patch descriptors", patches_ncd),
    )


def _unit_rows(spec: BackboneSpec, what: str, rows: FloatArray) -> FloatArray:
    norm = np.linalg.norm(rows, axis=-1, keepdims=True)
    bad = ~(np.isfinite(norm) & (norm > MIN_NORM))  # a NaN or inf entry makes its norm so
    if bad.any():
        picture = int(np.argwhere(bad)[0][0])
        raise DescriptorInvalid(
            f"Backbone {spec.name} gave {int(bad.sum())} NaN, infinite or zero {what}, first in "
            f"picture {picture} of the batch; check the weights, or use --dtype float32."
        )
    return np.ascontiguousarray(rows / norm, dtype=np.float32)
