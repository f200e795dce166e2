"""Embedding and search on a GPU, against the chip's own limits in the same run.

    python -m benchmarks.gpu [--seconds 440] [--device cuda] [--part embedding|search|all]

Needs torch, transformers and numpy; faiss-gpu where it is there. Prints one JSON object per figure.
Weights and descriptors are random: right for speed, meaningless for quality; what is computed is
checked in the same run against the core and the network that is not compiled. Without a CUDA device
a miniature of it runs on the CPU, which says so in every line: it shows that the program works, and
nothing about a GPU.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import torch

from benchmarks import gpu_embedding, gpu_search
from benchmarks.gpu_figures import Bench


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=440, help="begin nothing new after these")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--part", choices=("embedding", "search", "all"), default="all")
    given = parser.parse_args()
    started_s = time.perf_counter()
    bench = Bench(torch.device(given.device), started_s + given.seconds)
    search = gpu_search.FULL if bench.gpu else gpu_search.MINIATURE
    if given.part != "embedding":  # the shorter part, first
        bench.attempt("search", lambda: gpu_search.search_figures(bench, search))
        faiss = partial(gpu_search.faiss_figures, bench, search.frames, search.dim)
        bench.attempt("faiss-gpu", faiss)
    if given.part != "search":
        shapes = gpu_embedding.FULL if bench.gpu else gpu_embedding.MINIATURE
        bench.attempt("embedding", lambda: gpu_embedding.forward_figures(bench, shapes))
    bench.tell("benchmark", time.perf_counter() - started_s, "s", goal="< 480")
    if bench.failed:
        raise SystemExit(f"failed: {', '.join(bench.failed)}")


if __name__ == "__main__":
    main()
