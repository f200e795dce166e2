"""Kills, a failing disk and a lost database at the steps of every writer: the script that can do it
for hours."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.processes.harness import REPO

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "faults", "answer"),
    [
        ("kill", 50, None),
        ("ENOSPC", 12, "storage_full"),
        ("EIO", 10, "storage_failed"),
        ("kill --of erase", 20, None),
        ("EIO --of erase", 10, "storage_failed"),
    ],
)
def test_a_fault_at_any_step_loses_and_doubles_nothing(
    kind: str, faults: int, answer: str | None
) -> None:
    """The disk's errors are given by name, and the job goes on by itself."""
    command = ["-m", "benchmarks.fault_points", "--faults", str(faults), "--kind", *kind.split()]
    done = subprocess.run(
        [sys.executable, *command, "--seed", "1"],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    figure = json.loads(done.stdout)
    assert figure["n"] == faults
    assert (figure["value"], figure["verify_problems"]) == (0, 0)
    assert figure["slowest_recovery_s"] < 10
    if answer is not None:
        assert set(figure["answers"]) <= {answer, "done"}
        assert figure["answers"][answer] >= faults // 2
