"""Cosine similarities of unit descriptors (paper, eq. 2, 4 and 5)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.core.types import BoolArray, FloatArray
from worker.errors import DescriptorInvalid


def l2_normalise(x: NDArray[Any]) -> FloatArray:
    """Rows scaled to unit L2 norm: float32, same shape (..., d) (paper, eq. 2).

    Norms are taken in float64. Raises ``DescriptorInvalid`` for a NaN, infinite or zero row: such
    a row has no direction, and one NaN would spread into every score it meets.
    """
    if x.ndim == 0 or x.shape[-1] == 0:
        raise DescriptorInvalid(f"descriptors need at least one dimension, got shape {x.shape}")
    # einsum converts in small blocks: no float64 copy of a whole batch of patches.
    norm = np.sqrt(np.einsum("...d,...d->...", x, x, dtype=np.float64))
    bad = ~np.isfinite(norm) | (norm == 0)
    if bad.any():
        first = tuple(int(axis) for axis in np.argwhere(bad)[0])
        raise DescriptorInvalid(
            f"{int(bad.sum())} of {bad.size} descriptors are NaN, infinite or zero; the first at "
            f"index {first}: check the backbone's weights, dtype and input picture"
        )
    unit = np.empty(x.shape, dtype=np.float32)
    np.divide(x, norm[..., None], out=unit, casting="same_kind")
    return unit


def global_scores(query_d: FloatArray, global_nd: FloatArray) -> FloatArray:
    """``S_global(j) = q_g . g_j`` (paper, eq. 4).

    ``query_d``: float32 (d,), unit. ``global_nd``: float32 (n, d), unit rows. Returns float32 (n,).
    Raises ``DescriptorInvalid`` when the shapes do not fit.
    """
    if query_d.ndim != 1 or global_nd.ndim != 2 or global_nd.shape[1] != query_d.shape[0]:
        raise _width_error(query_d, global_nd)
    scores: FloatArray = global_nd @ query_d
    return scores


def cosine_matrix(query_qd: FloatArray, patches_cd: FloatArray) -> FloatArray:
    """Cosine of every query patch with every target cell: float32 (q, c).

    ``query_qd``: float32 (q, d), ``patches_cd``: float32 (c, d), unit rows. Raises
    ``DescriptorInvalid`` when the shapes do not fit.
    """
    if query_qd.ndim != 2 or patches_cd.ndim != 2 or query_qd.shape[1] != patches_cd.shape[1]:
        raise _width_error(query_qd, patches_cd)
    similarity_qc: FloatArray = query_qd @ patches_cd.T
    return similarity_qc


def local_matches(similarity_qc: FloatArray, tau: float) -> BoolArray:
    """Matches M as bool (q, c): cosine >= tau (paper, eq. 5 and 3.5.2).

    Eq. 5 writes ``> tau``, region growing ``>= tau``; one rule is used everywhere, ``>=``. The
    comparison is made in float32, with tau rounded to float32 first.
    """
    return similarity_qc >= np.float32(tau)


def _width_error(query: FloatArray, stored: FloatArray) -> DescriptorInvalid:
    return DescriptorInvalid(
        f"descriptors of shapes {query.shape} and {stored.shape} cannot be compared: both must "
        "come from one backbone spec"
    )
