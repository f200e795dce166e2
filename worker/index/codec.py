"""How a descriptor is stored: number type per generation (design, section 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from worker.core.types import FloatArray
from worker.errors import DescriptorInvalid, InputInvalid

_INT8_PEAK = 127


@dataclass(frozen=True, slots=True)
class Codec:
    """A number type. ``encode`` and ``decode`` keep the shape; ``item_bytes`` is one component.

    int8 stores a direction: each row is stretched until its largest component is 127, and brought
    back to unit length when read, so that it needs no scale beside it.
    """

    name: Literal["fp32", "fp16", "int8"]
    dtype: np.dtype[np.generic]

    @property
    def item_bytes(self) -> int:
        """Bytes of one component."""
        return self.dtype.itemsize

    def encode(self, descriptors: FloatArray) -> NDArray[np.generic]:
        """float32 (..., d), unit rows -> stored type, C-contiguous, little-endian. What an
        accelerator has encoded already is taken as it is.

        Raises :class:`DescriptorInvalid` for a row that int8 cannot hold: NaN, infinite or zero.
        """
        if self.dtype != np.int8 or descriptors.dtype == self.dtype:
            return np.ascontiguousarray(descriptors, dtype=self.dtype)
        peak = np.maximum(descriptors.max(axis=-1), -descriptors.min(axis=-1))
        if not (np.isfinite(peak) & (peak > 0)).all():
            raise DescriptorInvalid("a descriptor is NaN, infinite or zero: it has no direction")
        stretched = descriptors * (np.float32(_INT8_PEAK) / peak)[..., None]
        np.rint(stretched, out=stretched)
        stored: NDArray[np.generic] = stretched.astype(np.int8, order="C")
        return stored

    def decode(self, stored: NDArray[np.generic]) -> FloatArray:
        """Stored type (..., d) -> float32. A cosine stays within about 5e-4 (fp16), 5e-3 (int8)."""
        if self.dtype != np.int8:
            return np.asarray(stored, dtype=np.float32)
        decoded = stored.astype(np.float32)
        rows_nd = decoded.reshape(-1, decoded.shape[-1])
        norm_n = np.sqrt(np.einsum("nd,nd->n", rows_nd, rows_nd))
        rows_nd *= (1 / np.maximum(norm_n, 1))[:, None]
        return decoded


_CODECS = {
    "fp32": Codec("fp32", np.dtype("<f4")),
    "fp16": Codec("fp16", np.dtype("<f2")),
    "int8": Codec("int8", np.dtype("i1")),
}


def codec_named(name: str) -> Codec:
    """The codec of that name. Raises :class:`InputInvalid` for an unknown one."""
    if name not in _CODECS:
        raise InputInvalid(f"codec {name!r} is unknown: use one of {', '.join(sorted(_CODECS))}")
    return _CODECS[name]
