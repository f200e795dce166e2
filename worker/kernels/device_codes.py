"""The scan over compact codes on any torch device; its reference is ``worker.core.coarse``.

Codes stay on the device between searches. What the background of a camera lets each cell count is
computed once per background, not once per query. Loads torch, and neither numba nor FAISS.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from worker.core.background import FULL_NOVELTY, TARGET_FLOOR
from worker.core.types import BoolArray, FloatArray
from worker.kernels.queries import rounded_query

log = logging.getLogger("ris.search")

_TRIED_FRAMES = 41
_FUSED_COLUMNS = 64
_PRODUCT_BYTES = 1 << 28
"""Products of one block of frames, where they are not fused with their maximum."""


@dataclass(frozen=True, slots=True, eq=False)
class DeviceCodes:
    """Compact codes of n frames on a device: int8 (n, c, k), contiguous. ``weight_nc``: what each
    cell counts, float16 (n, c) on the same device; None: all alike."""

    codes_nck: Tensor
    weight_nc: Tensor | None = None

    @property
    def frames(self) -> int:
        """n."""
        return int(self.codes_nck.shape[0])


def weighted(codes_nck: Tensor, background_ck: FloatArray | None) -> DeviceCodes:
    """Codes with the target weights of :func:`worker.core.coarse.target_weights`, to 5e-4."""
    if background_ck is None:
        return DeviceCodes(codes_nck)
    n, c, k = codes_nck.shape
    background = torch.from_numpy(np.ascontiguousarray(background_ck, dtype=np.float32))
    background = background.to(codes_nck.device)
    weight_nc = torch.empty((n, c), dtype=torch.float16, device=codes_nck.device)
    step = max(1, _PRODUCT_BYTES // (4 * c * k))
    for first in range(0, n, step):
        decoded = codes_nck[first : first + step].float()
        norm = torch.linalg.vector_norm(decoded, dim=-1).clamp_min_(1e-6)
        novelty = 1 - (decoded * background).sum(dim=-1) / norm
        counted = (novelty / FULL_NOVELTY).clamp_(TARGET_FLOOR, 1.0).sqrt_()
        weight_nc[first : first + step] = counted.half()
    return DeviceCodes(codes_nck, weight_nc)


def best_similarities_on_device(
    codes: DeviceCodes,
    step: float,
    query_qk: FloatArray,
    inside_c: BoolArray | None = None,
    *,
    fused: bool = True,
) -> Tensor:
    """:func:`worker.core.coarse.best_similarity` of every frame, float32 (n, q) on the device.

    Query rows are rounded to 8 bits, as ``worker.kernels.coarse`` does: a cosine stays within 0.01
    of the reference, and within 1e-3 of that kernel. ``fused``: by one kernel that reads codes once
    and writes maxima only, where the device has one (``worker.kernels.fused_codes``).
    """
    query_kw, scale_q = rounded_query(query_qk, step)
    device = codes.codes_nck.device
    query_kw = query_kw.to(device)
    inside = None if inside_c is None else torch.from_numpy(inside_c).to(device)
    scale = torch.from_numpy(scale_q).to(device)
    c, k = codes.codes_nck.shape[1:]
    if fused and device.type == "cuda" and fused_is_right(c, k, str(device)):
        best_nw = _fused_maxima(codes, query_kw, inside)
    else:
        best_nw = _blocked_maxima(codes, query_kw, inside)
    return best_nw[:, : len(scale_q)] * scale


def _fused_maxima(codes: DeviceCodes, query_kw: Tensor, inside: Tensor | None) -> Tensor:
    """As :func:`_blocked_maxima`, a few columns at a time: their products fit the registers."""
    from worker.kernels.fused_codes import fused_maxima

    parts = []
    for first in range(0, int(query_kw.shape[1]), _FUSED_COLUMNS):
        part_kw = query_kw[:, first : first + _FUSED_COLUMNS]
        lacking = (1 << (part_kw.shape[1] - 1).bit_length()) - part_kw.shape[1]
        filled_kw = torch.nn.functional.pad(part_kw, (0, lacking))
        parts.append(fused_maxima(codes.codes_nck, codes.weight_nc, filled_kw, inside))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


@cache
def fused_is_right(c: int, k: int, device: str = "cuda") -> bool:
    """Whether the fused kernel can be compiled for codes of ``c`` cells and says what the blocked
    product does; tried once per process, and logged where it is not. For CUDA devices."""
    if k & (k - 1) or k < 32:
        return False
    try:
        chance = torch.Generator(device=device).manual_seed(0)
        codes_nck = torch.randint(
            -127, 128, (_TRIED_FRAMES, c, k), dtype=torch.int8, device=device, generator=chance
        )
        query_kw = torch.randint(
            -127, 128, (k, 48), dtype=torch.int8, device=device, generator=chance
        )
        weight_nc = torch.rand((_TRIED_FRAMES, c), device=device, generator=chance).half()
        inside = torch.arange(c, device=device) % 5 > 0
        for weight, zone in ((None, None), (weight_nc, None), (None, inside), (weight_nc, inside)):
            codes = DeviceCodes(codes_nck, weight)
            expected = _blocked_maxima(codes, query_kw, zone)
            found = _fused_maxima(codes, query_kw, zone)[:, :48]
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.5)
    except Exception as error:  # a compiler's errors are of many kinds
        log.warning("the fused scan is not used: %s", str(error)[:300])
        return False
    return True


def _blocked_maxima(codes: DeviceCodes, query_kw: Tensor, inside: Tensor | None) -> Tensor:
    """Greatest weighted product of every frame and query column, float32 (n, w)."""
    n, c, k = codes.codes_nck.shape
    width = int(query_kw.shape[1])
    best_nw = torch.empty((n, width), dtype=torch.float32, device=query_kw.device)
    step = max(1, _PRODUCT_BYTES // (4 * c * width))
    for first in range(0, n, step):
        block = codes.codes_nck[first : first + step].reshape(-1, k)
        value = torch._int_mm(block, query_kw).view(-1, c, width).float()
        if codes.weight_nc is not None:
            value *= codes.weight_nc[first : first + step, :, None]
        if inside is not None:
            value.masked_fill_(~inside[None, :, None], -torch.inf)
        best_nw[first : first + step] = value.amax(dim=1)
    return best_nw
