"""Search on a device: scan over compact codes, stage 2, two stages; made-up descriptors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_figures import Bench
from worker.core.coarse import best_similarity
from worker.core.region_growing import grow_rigid_seedless
from worker.core.similarity import l2_normalise
from worker.core.types import FloatArray, GridSize
from worker.kernels.device_codes import (
    DeviceCodes,
    best_similarities_on_device,
    fused_is_right,
)
from worker.kernels.device_growth import grow_rigid_on_device
from worker.kernels.device_patches import DevicePatches, cosines_on_device, with_lengths

GRID = GridSize(16, 16)
CODE_DIM, STEP, TAU = 64, 0.01, 0.1
QUERY_CELLS = np.argwhere(np.ones((6, 8))).astype(np.int64) + 4


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is searched."""

    frames: int
    candidates: int
    top_n: int
    dim: int
    pool: int


FULL = Sizes(1_000_000, 1000, 500, 1280, 2000)
MINIATURE = Sizes(400, 12, 8, 64, 16)


def unit(rng: np.random.Generator, *shape: int) -> FloatArray:
    return l2_normalise(rng.standard_normal(shape, dtype=np.float32))


def copy_rate(bench: Bench) -> float:
    """Bytes a second that a copy on the device moves, those read and those written."""
    count = (4 << 30) if bench.gpu else (16 << 20)
    a = torch.zeros(count, dtype=torch.uint8, device=bench.device)
    b = torch.empty_like(a)
    return 2 * count / bench.seconds(lambda: b.copy_(a))


def search_figures(bench: Bench, sizes: Sizes) -> None:
    """All of them; the large ones with as many frames as memory holds."""
    limit = copy_rate(bench)
    bench.tell("copy-on-device", limit / 1e9, "GB/s read and written")
    bench.attempt("stage-2", lambda: stage_2(bench, sizes))
    frames = min(sizes.frames, bench.free_bytes() // (GRID.cells * (CODE_DIM + 2)))
    codes = made_codes(bench, frames)
    bench.attempt("scan", lambda: scan(bench, codes, limit))
    bench.attempt("two-stage", lambda: two_stages(bench, sizes, codes))


def made_codes(bench: Bench, frames: int) -> DeviceCodes:
    codes_nck = torch.empty((frames, GRID.cells, CODE_DIM), dtype=torch.int8, device=bench.device)
    for first in range(0, frames, 10_000):
        codes_nck[first : first + 10_000].random_(-100, 101)
    weight_nc = torch.rand((frames, GRID.cells), device=bench.device, dtype=torch.float32)
    return DeviceCodes(codes_nck, weight_nc.half())


def scan(bench: Bench, codes: DeviceCodes, limit: float) -> None:
    """Every cell of every frame, for 48 query rows."""
    query_qk = unit(np.random.default_rng(1), len(QUERY_CELLS), CODE_DIM)
    few = codes.codes_nck[:64]
    expected = best_similarity(few.cpu().numpy(), STEP, query_qk, None)
    found = best_similarities_on_device(DeviceCodes(few), STEP, query_qk).cpu().numpy()
    off = float(np.abs(found - expected).max() / np.abs(expected).max())
    assert off < 0.01, off
    fused = bench.gpu and fused_is_right(GRID.cells, CODE_DIM)
    read = codes.frames * GRID.cells * (CODE_DIM + 2)

    def run() -> Tensor:
        return best_similarities_on_device(codes, STEP, query_qk)

    took_s = bench.seconds(run)
    bench.tell(
        f"scan-{codes.frames}-frames-48-rows", read / took_s / 1e9, "GB/s of codes and weights",
        peer="copy on the device, same run", peer_value=limit / 1e9, ratio=read / took_s / limit,
        goal=">= 0.6", ms=round(1000 * took_s, 2), fused=fused, off_core=round(off, 5),
    )  # fmt: skip


def smooth_patches(bench: Bench, frames: int, dim: int) -> DevicePatches:
    """Stored directions that are alike among neighbours, so that regions exist."""
    made = []
    for first in range(0, frames, 100):
        n = min(100, frames - first)
        field = torch.randn((n, GRID.h, GRID.w, dim), device=bench.device)
        for axis in (1, 2):
            field = field + field.roll(1, axis) + field.roll(-1, axis)
        field += torch.randn(dim, device=bench.device)
        peak = field.abs().amax(dim=-1, keepdim=True)
        made.append((field * (127 / peak)).round_().to(torch.int8).view(n, GRID.cells, dim))
    return with_lengths(torch.cat(made))


def query_of(patches: DevicePatches) -> FloatArray:
    """Rows of one of the frames, unit length: float32 (48, d)."""
    at = torch.from_numpy(QUERY_CELLS[:, 0] * GRID.w + QUERY_CELLS[:, 1])
    rows = patches.stored_mcd[0].cpu()[at].float().numpy()
    return l2_normalise(rows)


def match_level(similarity_mqc: Tensor) -> float:
    """A tenth of all pairs match."""
    few = similarity_mqc[:64].flatten()[:1_000_000].contiguous()
    return float(few.quantile(0.9))


def stage_2(bench: Bench, sizes: Sizes) -> None:
    """Cosines and regions of all candidates, patches on the device."""
    patches = smooth_patches(bench, sizes.candidates, sizes.dim)
    query_qd = query_of(patches)
    similarity = cosines_on_device(patches, query_qd)
    tau = match_level(similarity)
    regions = grow_rigid_on_device(similarity, QUERY_CELLS, GRID, tau)
    checked = min(8, sizes.candidates)
    for n in range(checked):
        alone = similarity[n].cpu().contiguous().numpy()
        expected, found = grow_rigid_seedless(alone, QUERY_CELLS, GRID, tau), regions[n]
        assert (expected is None) == (found is None), n
        if expected is not None and found is not None:
            assert np.array_equal(expected.cell_index, found.cell_index), n
            assert np.array_equal(expected.query_index, found.query_index), n

    parts: dict[str, Callable[[], object]] = {
        "cosines": lambda: cosines_on_device(patches, query_qd),
        "regions": lambda: grow_rigid_on_device(similarity, QUERY_CELLS, GRID, tau),
    }
    ms = {name: 1000 * bench.seconds(run) for name, run in parts.items()}
    both_ms = 1000 * bench.seconds(
        lambda: grow_rigid_on_device(cosines_on_device(patches, query_qd), QUERY_CELLS, GRID, tau),
    )
    bench.tell(
        f"stage-2-{sizes.candidates}x{GRID.cells}x{sizes.dim}x{len(QUERY_CELLS)}", both_ms, "ms",
        goal="<= 3 ms for 1000x256x1280x48", regions_equal_core=checked,
        cosines_ms=round(ms["cosines"], 3), regions_ms=round(ms["regions"], 3),
        includes="regions as objects in host memory; patches lie on the device",
    )  # fmt: skip


def two_stages(bench: Bench, sizes: Sizes, codes: DeviceCodes) -> None:
    """Scan, the best frames, their patches from host memory, stage 2."""
    rng = np.random.default_rng(2)
    made = smooth_patches(bench, sizes.pool, sizes.dim)
    query_qd, tau = query_of(made), match_level(cosines_on_device(made, query_of(made)))
    pool = made.stored_mcd.cpu()
    pool = pool.pin_memory() if bench.gpu else pool
    del made
    landing = torch.empty(
        (sizes.top_n, GRID.cells, sizes.dim), dtype=torch.int8, device=bench.device
    )

    def search(query_qk: FloatArray) -> None:
        best_nq = best_similarities_on_device(codes, STEP, query_qk)
        chosen = best_nq.mean(dim=1).topk(min(sizes.top_n, codes.frames)).indices.tolist()
        for at, frame in enumerate(chosen):
            landing[at].copy_(pool[frame % sizes.pool], non_blocking=True)
        patches = with_lengths(landing[: len(chosen)])
        grow_rigid_on_device(cosines_on_device(patches, query_qd), QUERY_CELLS, GRID, tau)

    queries = [unit(rng, len(QUERY_CELLS), CODE_DIM) for _ in range(20 if bench.gpu else 3)]
    times_ms = [1000 * bench.seconds(lambda q=query: search(q), 1) for query in queries]  # type: ignore[misc]
    bench.tell(
        f"two-stage-{codes.frames}-frames-p50", float(np.median(times_ms)), "ms",
        goal="<= 30 ms for 1,000,000", p95=round(float(np.quantile(times_ms, 0.95)), 2),
        candidates=sizes.top_n, n=len(queries),
        note=f"patches of {sizes.pool} frames in page-locked memory stand for all frames';"
        " without embedding the query, Postgres and what the default search learns",
    )  # fmt: skip


def faiss_figures(bench: Bench, frames: int, dim: int) -> None:
    """Whole-frame descriptors by faiss-gpu, flat and IVF, against one product of torch."""
    try:
        import faiss

        on_gpu = bench.gpu and hasattr(faiss, "StandardGpuResources")
    except ImportError:
        bench.leave_out("faiss-gpu", "FAISS is not installed")
        return
    if not on_gpu:
        bench.leave_out("faiss-gpu", "this FAISS has no GPU part, or there is no GPU")
        return
    frames = min(frames, bench.free_bytes() // (dim * 4 * 6))
    rows, query, product_s = globals_and_product(bench, frames, dim)
    kinds = {"flat": f"{frames}x{dim}", "ivf1024": f"{frames}x{dim}, 32 lists looked at"}
    exact: set[int] = set()
    for kind, size in kinds.items():
        index = faiss_index(faiss, kind, rows)

        def run(index: Any = index) -> Any:
            return index.search(query, 500)[1][0]

        took_s, found = bench.seconds(run), set(run().tolist())
        exact = exact or found
        bench.tell(
            f"faiss-{kind}-top-500 ({size})", 1000 * took_s, "ms", peer="torch product and topk",
            peer_value=1000 * product_s, ratio=product_s / took_s,
            recall=len(found & exact) / 500,
            note="random rows have no clusters: recall of IVF on footage is another",
        )  # fmt: skip
        del index, run


def globals_and_product(
    bench: Bench, frames: int, dim: int
) -> tuple[FloatArray, FloatArray, float]:
    """Unit rows and one of them as a query, in host memory; seconds of a product on the device."""
    made = torch.randn((frames, dim), device=bench.device)
    made /= torch.linalg.vector_norm(made, dim=1, keepdim=True)
    took_s = bench.seconds(lambda: (made @ made[7]).topk(500))
    return made.cpu().numpy(), made[7:8].cpu().numpy(), took_s


def faiss_index(faiss: Any, kind: str, rows: FloatArray) -> Any:
    resources, dim = faiss.StandardGpuResources(), rows.shape[1]
    if kind == "flat":
        index = faiss.GpuIndexFlatIP(resources, dim)
    else:
        index = faiss.GpuIndexIVFFlat(resources, dim, 1024, faiss.METRIC_INNER_PRODUCT)
        index.train(rows[:100_000])
        index.nprobe = 32
    index.add(rows)
    return index
