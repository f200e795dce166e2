"""Two thousand damaged files, each in a limited process of its own (benchmarks/fuzz_decode.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODES = {"video_invalid", "video_killed_decoder", "video_too_slow"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_thousand_damaged_files_all_end() -> None:
    """A hundred of them in processes that start as the product starts them, the rest forked."""
    command = [sys.executable, "-m", "benchmarks.fuzz_decode", "--inputs", "2000"]
    done = subprocess.run(
        [*command, "--fresh", "100"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["unforeseen"] == []
    assert told["late"] == 0
    assert sum(told["endings"].values()) == told["inputs"] == 2000
    states = [ending.split() for ending in told["endings"]]
    assert {state for state, *_ in states} == {"done", "partial", "failed"}
    assert {code for _, *codes in states for code in codes} <= CODES
    assert told["growth_bytes"] < 300 * 1024 * 1024
    assert told["largest_child_bytes"] < 300 * 1024 * 1024
