"""How a descriptor is stored: number type per generation (design, section 8)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worker.core.types import FloatArray
from worker.errors import InputInvalid


@dataclass(frozen=True, slots=True)
class Codec:
    """A number type. ``encode`` and ``decode`` keep the shape; ``item_bytes`` is one component."""

    name: str
    dtype: np.dtype[np.generic]

    @property
    def item_bytes(self) -> int:
        """Bytes of one component."""
        return self.dtype.itemsize

    def encode(self, descriptors: FloatArray) -> NDArray[np.generic]:
        """float32 (..., d) -> stored type, C-contiguous, little-endian."""
        return np.ascontiguousarray(descriptors, dtype=self.dtype)

    def decode(self, stored: NDArray[np.generic]) -> FloatArray:
        """Stored type (..., d) -> float32. fp16 keeps a cosine within about 5e-4."""
        return np.asarray(stored, dtype=np.float32)


_CODECS = {
    "fp32": Codec("fp32", np.dtype("<f4")),
    "fp16": Codec("fp16", np.dtype("<f2")),
}


def codec_named(name: str) -> Codec:
    """The codec of that name. Raises :class:`InputInvalid` for an unknown one."""
    if name not in _CODECS:
        raise InputInvalid(f"codec {name!r} is unknown: use one of {', '.join(sorted(_CODECS))}")
    return _CODECS[name]
