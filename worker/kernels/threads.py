"""Threads that share a search: each computes its products alone.

A product of a few cells with a few hundred is over before a second thread has begun, and libraries
that share each of them wait for one another busily: beside ingest, a search of a camera's hour took
3.5 times its processor time that way (benchmarks/LOG.md). What is shared is shards and chunks.
"""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

from threadpoolctl import ThreadpoolController


def keep_products_single() -> None:
    """From now on numpy's matrix products take one thread each, in this process; torch's, which
    embeds, keep theirs."""
    ThreadpoolController().select(prefix=["libscipy_openblas", "libopenblas64_"]).limit(limits=1)


@cache
def thread_pool(threads: int) -> ThreadPoolExecutor:
    """Threads that stay: starting them for every shard costs more than the scan of a small one."""
    return ThreadPoolExecutor(threads, "search", keep_own_products_single)


# A forked process has the pools of its parent, and none of their threads.
os.register_at_fork(after_in_child=thread_pool.cache_clear)


def keep_own_products_single() -> None:
    """Of this thread, torch's: OpenMP counts threads for each that calls it."""
    import torch

    torch.get_num_threads()  # sets this thread's count when asked first, and not again
    ThreadpoolController().select(user_api="openmp").limit(limits=1)
    # MKL, which multiplies floats, is linked into torch and keeps a count of its own.
    built_in = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    with suppress(OSError, AttributeError):  # a torch without MKL
        ctypes.CDLL(str(built_in)).MKL_Set_Num_Threads_Local(1)
