"""Products of codes with a query and their maxima as one kernel: codes are read once, and products
never leave the chip.

Needs Triton, which torch brings along with CUDA: import it only there. Its reference and stand-in
is ``worker.kernels.device_codes``.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_FRAMES_PER_PROGRAM = 8


def fused_maxima(
    codes_nck: Tensor, weight_nc: Tensor | None, query_kw: Tensor, inside_c: Tensor | None
) -> Tensor:
    """Greatest weighted product of every frame and query column, float32 (n, w).

    int8 (n, c, k), float16 (n, c) or None, int8 (k, w), bool (c,) or None; ``k`` and ``w`` are
    powers of two, from 32 and 16. Raises what the compiler does.
    """
    n, c, k = codes_nck.shape
    width = int(query_kw.shape[1])
    best_nw = torch.empty((n, width), dtype=torch.float32, device=query_kw.device)
    unused = codes_nck  # a pointer that nothing follows
    with torch.cuda.device(codes_nck.device):  # Triton launches on the current one
        _maxima[(-(-n // _FRAMES_PER_PROGRAM),)](
            codes_nck,
            query_kw.contiguous(),
            unused if weight_nc is None else weight_nc,
            unused if inside_c is None else inside_c.to(torch.int8),
            best_nw,
            n,
            C=c,
            CELLS=max(16, 1 << (c - 1).bit_length()),
            K=k,
            W=width,
            WEIGHTED=weight_nc is not None,
            ZONED=inside_c is not None,
            FRAMES=_FRAMES_PER_PROGRAM,
            num_warps=8,
        )
    return best_nw


@triton.jit  # type: ignore[untyped-decorator]  # annotations are compiled too: of Triton only
def _maxima(
    codes: tl.tensor,
    query: tl.tensor,
    weight: tl.tensor,
    inside: tl.tensor,
    best: tl.tensor,
    n: tl.tensor,
    C: tl.constexpr,
    CELLS: tl.constexpr,
    K: tl.constexpr,
    W: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ZONED: tl.constexpr,
    FRAMES: tl.constexpr,
) -> None:
    cell = tl.arange(0, CELLS)
    at = tl.arange(0, K)
    column = tl.arange(0, W)
    there = cell < C
    seen = there
    if ZONED:
        seen = there & (tl.load(inside + cell, mask=there, other=0) != 0)
    query_kw = tl.load(query + at[:, None] * W + column[None, :])
    for turn in range(FRAMES):
        frame = tl.program_id(0).to(tl.int64) * FRAMES + turn
        if frame < n:
            first = frame * C
            rows_ck = tl.load(
                codes + (first + cell[:, None]) * K + at[None, :], mask=there[:, None], other=0
            )
            value_cw = tl.dot(rows_ck, query_kw, out_dtype=tl.int32).to(tl.float32)
            if WEIGHTED:
                counts = tl.load(weight + first + cell, mask=there, other=0.0).to(tl.float32)
                value_cw = value_cw * counts[:, None]
            value_cw = tl.where(seen[:, None], value_cw, -float("inf"))
            tl.store(best + frame * W + column, tl.max(value_cw, axis=0))
