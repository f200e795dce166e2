"""The kernel runs wherever the package lies; compiled code is kept where that can be done."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core.caching import IndexDataCacheFile

from worker.kernels.jit import compiled

REPO = Path(__file__).resolve().parents[2]
GROW_ONE = """
import numpy as np
from worker.core.types import GridSize
from worker.kernels.region_growing import grow_seedless_chunk
similarity, cells = np.ones((1, 1, 1), dtype=np.float32), np.zeros((1, 2), dtype=np.int64)
for _ in range(2):
    print(grow_seedless_chunk(similarity, cells, GridSize(1, 1), 0.5, "rigid")[0].size, end=" ")
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package in which nothing can be kept; a file stops root, too."""
    root = tmp_path / "installed"
    shutil.copytree(REPO / "worker", root / "worker", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "worker" / "kernels" / "__pycache__").touch()
    return root


def grow_in(root: Path, user_cache: Path) -> str:
    """What a new process prints: regions' sizes, log lines."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "PYTHON"))}
    env |= {"XDG_CACHE_HOME": str(user_cache), "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", GROW_ONE],
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_read_only_package_keeps_its_kernel_in_the_users_cache_even_if_damaged(
    package: Path, tmp_path: Path
):
    user_cache = tmp_path / "cache"
    assert grow_in(package, user_cache) == "1 1 "
    kept = sorted(path for path in user_cache.rglob("*") if path.suffix in {".nbc", ".nbi"})
    assert [path.suffix for path in kept] == [".nbc", ".nbi"]
    kept[1].write_bytes(b"\0" * 100)
    said = grow_in(package, user_cache)
    assert said.endswith("1 1 ") and said.count("kernel_not_kept") == 1


def test_without_any_writable_folder_the_kernel_still_runs(package: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    said = grow_in(package, tmp_path / "file" / "cache")
    assert said.endswith("1 1 ") and said.count("kernel_not_kept") == 1


def test_a_full_disk_does_not_stop_the_kernel(monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def add(left: int, right: int) -> int:
        return left + right

    monkeypatch.setattr(IndexDataCacheFile, "save", full)
    monkeypatch.setattr(IndexDataCacheFile, "load", lambda *_: None)
    kernel = compiled(add)
    assert [kernel(1, 2), kernel(3, 4)] == [3, 7]
