"""Stage 2 on any torch device: cosines of stored patches with a query in one product.

The same bytes and the same exact products as ``worker.kernels.cosines``, whose reference is
``codec.decode(stored) @ query.T``. Loads torch, and neither numba nor FAISS.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.core.types import FloatArray
from worker.kernels.queries import byte_query

_DECODED_BYTES = 1 << 28


@dataclass(frozen=True, slots=True, eq=False)
class DevicePatches:
    """Patches of m frames as int8 directions on a device, (m, c, d), contiguous; ``scale_mc``: one
    over the length of each, float32 (m, c)."""

    stored_mcd: Tensor
    scale_mc: Tensor


def with_lengths(stored_mcd: Tensor) -> DevicePatches:
    """Patches with what brings each back to unit length: one more read of them, made once."""
    m, c, d = stored_mcd.shape
    square_mc = torch.empty((m, c), dtype=torch.float32, device=stored_mcd.device)
    step = max(1, _DECODED_BYTES // (4 * c * d))
    for first in range(0, m, step):
        decoded = stored_mcd[first : first + step].float()
        square_mc[first : first + step] = decoded.square_().sum(dim=-1)
    return DevicePatches(stored_mcd, 1 / square_mc.clamp_min_(1).sqrt_())


def cosines_on_device(patches: DevicePatches, query_qd: FloatArray) -> Tensor:
    """Of every cell with every query row: float32 (m, q, c) on the device, a view of (m, c, q).

    Within 2e-5 of the reference, and of ``worker.kernels.cosines`` but for rounding. ``d`` is a
    multiple of 8 and there are more than 16 cells.
    """
    m, c, d = patches.stored_mcd.shape
    query = byte_query(query_qd)
    columns = query.columns_dw.to(patches.stored_mcd.device)
    q, width = query.count, int(columns.shape[1])
    product = torch._int_mm(patches.stored_mcd.view(-1, d), columns).view(m, c, width)
    whole = product[..., :q].float().mul_(256).add_(product[..., q : 2 * q])
    whole *= torch.from_numpy(query.unit_q).to(whole.device)
    whole *= patches.scale_mc[..., None]
    return whole.permute(0, 2, 1)
