"""Batched embedding on top of any backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from worker.backbones.base import Backbone, BatchingBackbone, StoredType
from worker.core.masking import PrivacyMask, hidden_cells, hide_cells, painted
from worker.core.types import Descriptors, FloatArray, ImageArray, SizePx
from worker.errors import InputInvalid


class StoredForm(Protocol):
    """The index's codec, as far as embedding knows it."""

    @property
    def name(self) -> StoredType:
        """Of the codec."""
        ...

    def encode(self, descriptors: FloatArray) -> NDArray[Any]:
        """float32 unit rows to the stored type."""
        ...


def embed_batched(backbone: Backbone, imgs_hwc: Sequence[ImageArray], batch: int) -> Descriptors:
    """``backbone.embed`` in calls of at most ``batch`` pictures, joined in order; in one call where
    the backbone makes batches itself.

    Raises what ``embed`` raises, and ``InputInvalid`` for a batch below 1.
    """
    if batch < 1:
        raise InputInvalid(f"Batch is {batch}; it must be at least 1.")
    if isinstance(backbone, BatchingBackbone):
        return backbone.embed(imgs_hwc)
    starts = range(0, max(1, len(imgs_hwc)), batch)  # an empty list still reaches embed's check
    parts = [backbone.embed(imgs_hwc[start : start + batch]) for start in starts]
    return Descriptors(
        np.concatenate([part.global_nd for part in parts]),
        np.concatenate([part.patches_ncd for part in parts]),
    )


def embed_masked(
    backbone: Backbone,
    imgs_hwc: Sequence[ImageArray],
    masks: Sequence[PrivacyMask | None],
    sources: Sequence[SizePx],
    batch: int,
    codec: StoredForm | None = None,
) -> Descriptors:
    """:func:`embed_batched` of pictures with their masked parts painted black; the cells that were
    painted tell nothing (:func:`hide_cells`). ``sources``: sizes of their kept pictures.

    With a ``codec``, descriptors are in its type where the backbone's device gives them so.
    """
    shown = [
        img_hwc if mask is None else painted(img_hwc, mask, source)
        for img_hwc, mask, source in zip(imgs_hwc, masks, sources, strict=True)
    ]
    if codec is not None and isinstance(backbone, BatchingBackbone):
        made, encode = backbone.embed_stored(shown, codec.name), codec.encode
    else:
        made, encode = embed_batched(backbone, shown, batch), None
    for at, (mask, source) in enumerate(zip(masks, sources, strict=True)):
        if mask is not None:
            spec = backbone.spec
            cells = hidden_cells(mask, spec.grid, spec.input_size, source)
            hide_cells(made.patches_ncd[at], mask, cells, encode)
    return made


def set_threads(threads: int) -> None:
    """Let torch use this many threads in this process; 0 keeps torch's own choice."""
    if threads < 0:
        raise InputInvalid(f"Threads is {threads}; it must be 0 (all cores) or more.")
    if threads:
        import torch

        torch.set_num_threads(threads)
