"""The processor time that a decoding process may use, as the kernel counts it."""

from __future__ import annotations

import subprocess
import sys

import pytest

WAKES_WITH_TICKS = """
import time
from worker.video.confinement import renew_cpu

ended_s = time.monotonic() + 9
while (now_s := time.monotonic()) < ended_s:
    renew_cpu(0.1)
    edge_s = (int(now_s / 0.004) + 1) * 0.004
    time.sleep(max(0.0, edge_s - now_s - 1e-4))
    while time.monotonic() < edge_s + 5e-5:
        pass
"""
BURNS = """
from worker.video.confinement import renew_cpu

renew_cpu(0.5)
while True:
    pass
"""


def ended(program: str) -> int:
    return subprocess.run([sys.executable, "-c", program], timeout=300, check=False).returncode


@pytest.mark.slow
def test_who_wakes_with_the_ticks_of_the_kernel_is_not_killed_for_it() -> None:
    """Charged a whole tick each time, such a process seems to use forty times what it does."""
    assert ended(WAKES_WITH_TICKS) == 0


def test_who_uses_more_is_killed() -> None:
    assert ended(BURNS) < 0
