"""Compact codes of descriptors: a projection that keeps inner products, as 8-bit numbers.

For choosing candidates only; what is shown is scored with the full descriptors.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.core.types import FloatArray
from worker.errors import DescriptorInvalid, InputInvalid

CODE_DIM = 64
_HEADROOM = 1.5

Codes = NDArray[np.int8]


@dataclass(frozen=True, slots=True, eq=False)
class CompactBasis:
    """``axes_dk``: float32 (d, k), orthonormal columns. ``step``: value of one code unit."""

    axes_dk: FloatArray
    step: float

    @property
    def code_dim(self) -> int:
        """Numbers of one code, k."""
        return int(self.axes_dk.shape[1])

    @property
    def name(self) -> str:
        """Tells bases apart: codes of different ones cannot be compared."""
        digest = hashlib.sha256(np.ascontiguousarray(self.axes_dk, dtype="<f4").tobytes())
        digest.update(np.float64(self.step).tobytes())
        return digest.hexdigest()[:16]

    def encode(self, descriptors: FloatArray) -> Codes:
        """float32 (..., d) -> int8 (..., k); values beyond the range are clipped.

        Raises ``DescriptorInvalid`` for NaN, which would become a plausible number.
        """
        scaled = (descriptors @ self.axes_dk) / np.float32(self.step)
        if not np.isfinite(scaled).all():
            raise DescriptorInvalid("a stored descriptor is NaN or infinite: run `ris verify`")
        codes: Codes = np.clip(np.rint(scaled), -127, 127).astype(np.int8)
        return codes

    def decode(self, codes: NDArray[Any]) -> FloatArray:
        """int8 (..., k) -> float32 (..., k), in the projected space."""
        decoded: FloatArray = codes.astype(np.float32) * np.float32(self.step)
        return decoded

    def project(self, descriptors: FloatArray) -> FloatArray:
        """float32 (..., d) -> float32 (..., k), not quantised: the query's side of a product."""
        projected: FloatArray = np.asarray(descriptors @ self.axes_dk, dtype=np.float32)
        return projected


def fit_basis(sample_nd: FloatArray) -> CompactBasis:
    """The ``CODE_DIM`` directions that hold most of a sample's energy (uncentred PCA).

    ``sample_nd``: float32 (n, d), n >= 1. Inner products, not differences from a mean, are what is
    compared, hence no centring. Raises ``InputInvalid`` when empty and
    ``DescriptorInvalid`` when not finite.
    """
    if sample_nd.ndim != 2 or sample_nd.size == 0:
        raise InputInvalid(f"a basis needs descriptors (n, d), got {sample_nd.shape}")
    if not np.isfinite(sample_nd).all():
        raise DescriptorInvalid("a stored descriptor is NaN or infinite: run `ris verify`")
    energy_dd = sample_nd.T.astype(np.float64) @ sample_nd.astype(np.float64)
    _, vectors = np.linalg.eigh(energy_dd)  # ascending
    axes_dk = np.ascontiguousarray(vectors[:, ::-1][:, :CODE_DIM], dtype=np.float32)
    largest = float(np.abs(sample_nd @ axes_dk).max())
    return CompactBasis(axes_dk, max(largest, 1e-6) * _HEADROOM / 127)
