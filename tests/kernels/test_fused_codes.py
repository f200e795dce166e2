"""The fused kernel without a GPU: compiled for the chips it is meant for, and interpreted.

Triton is a gigabyte that only GPUs use, so that it is not among the tests' packages.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton: .venv/bin/python -m pip install triton")

ARRANGED = """
import contextlib
import torch
from worker.kernels import device_codes, fused_codes

torch.cuda.device = lambda _device: contextlib.nullcontext()  # it only says where to launch
"""
COMPILED = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

kernel = fused_codes._maxima
kinds = dict.fromkeys(kernel.arg_names, "constexpr")
kinds |= {"codes": "*i8", "query": "*i8", "inside": "*i8", "best": "*fp32", "n": "i32"}
for zoned in (False, True):
    kinds["weight"] = "*fp16" if zoned else "*i8"
    given = {"C": 196, "CELLS": 256, "K": 64, "W": 64, "WEIGHTED": zoned, "ZONED": zoned}
    source = ASTSource(kernel, kinds, given | {"FRAMES": 8})
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    ptx = compile(source, target=target, options={"num_warps": 8}).asm["ptx"]
    assert "s8" in ptx or "kind::i8" in ptx, "no 8-bit product of the tensor cores"
"""
INTERPRETED = """
chance = torch.Generator().manual_seed(0)
for c, k in ((256, 64), (49, 32), (196, 64), (400, 128)):
    codes_nck = torch.randint(-127, 128, (41, c, k), dtype=torch.int8, generator=chance)
    query_kw = torch.randint(-127, 128, (k, 48), dtype=torch.int8, generator=chance)
    weight_nc = torch.rand((41, c), generator=chance).half()
    inside = torch.arange(c) % 5 > 0
    for weight, zone in ((None, None), (weight_nc, None), (None, inside), (weight_nc, inside)):
        codes = device_codes.DeviceCodes(codes_nck, weight)
        expected = device_codes._blocked_maxima(codes, query_kw, zone)
        found = device_codes._fused_maxima(codes, query_kw, zone)[:, :48]
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
"""


def run(folder: Path, script: str, *arguments: str, **env: str) -> None:
    """In a process of its own: Triton asks the environment once."""
    done = subprocess.run(
        [sys.executable, "-c", ARRANGED + script, *arguments],
        env={**os.environ, "TRITON_CACHE_DIR": str(folder), **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("compute_capability", ["80", "86", "89", "90", "100", "120"])
def test_it_compiles_to_products_of_bytes(tmp_path: Path, compute_capability: str) -> None:
    run(tmp_path, COMPILED, compute_capability)


def test_it_says_what_the_blocked_product_does(tmp_path: Path) -> None:
    run(tmp_path, INTERPRETED, TRITON_INTERPRET="1")
