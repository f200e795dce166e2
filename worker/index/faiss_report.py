"""What the installed FAISS can do, found out by having it search."""

from __future__ import annotations

import faiss
import numpy as np


def describe_faiss() -> tuple[bool, str]:
    """Whether it works, and how it was built, in words. A GPU build searches on every GPU that
    torch would use too: it lists no architectures, so that only a search tells."""
    options = faiss.get_compile_options().strip()
    rows = np.eye(8, 16, dtype=np.float32)
    if not hasattr(faiss, "StandardGpuResources"):
        _, found = faiss.knn(rows, rows, 1, metric=faiss.METRIC_INNER_PRODUCT)
        return bool((found[:, 0] == np.arange(8)).all()), f"{options}; no GPU part"
    count = faiss.get_num_gpus()
    if count == 0:
        return True, f"{options}; it sees no GPU, and searches on the CPU"
    for device in range(count):
        try:
            resources = faiss.StandardGpuResources()
            _, found = faiss.knn_gpu(
                resources, rows, rows, 1, metric=faiss.METRIC_INNER_PRODUCT, device=device
            )
        except Exception as error:  # FAISS throws what C++ threw
            first_line = (str(error).splitlines() or ["?"])[0]
            return False, f"{options}; GPU {device} cannot be used: {first_line}"
        if not (found[:, 0] == np.arange(8)).all():
            return False, f"{options}; GPU {device} finds wrong rows: not built for this chip"
    return True, f"{options}; searches on {count} GPUs"
