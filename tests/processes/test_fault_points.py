"""Kills, a failing disk and a lost database at the steps of every writer: the script that can do it
for hours."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.processes.harness import REPO

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # a busy machine is ten times slower


def disturbed(*given: str) -> list[dict[str, Any]]:
    """A figure for each kind of work; nothing may be wrong."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.fault_points", "--seed", "1", *given],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=880,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    figures = [json.loads(line) for line in done.stdout.splitlines()]
    for figure in figures:
        assert (figure["value"], figure["verify_problems"]) == (0, 0)
        # 10 s are aimed at; here other tests run beside it.
        assert figure["slowest_recovery_s"] < 30
    return figures


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
    (figure,) = disturbed("--faults", str(faults), "--kind", *kind.split())
    assert figure["n"] == faults
    if answer is not None:
        assert set(figure["answers"]) <= {answer, "done"}
        assert figure["answers"][answer] >= faults // 2


@pytest.mark.parametrize(
    ("kind", "every", "works", "answers"),
    [
        ("kill", 19, "seal compact repair upload reindex", None),
        ("EIO", 17, "seal compact repair upload reindex", {"storage_failed", "problems"}),
        ("lost", 13, "seal repair", {"service_unavailable"}),
    ],
)
def test_other_writers_lose_nothing_either(
    kind: str, every: int, works: str, answers: set[str] | None
) -> None:
    """A few of what the script does by the hundred; a repair is a command and tells of problems."""
    given = ("--faults", "2", "--every", str(every), "--kind", kind)
    figures = disturbed(*given, "--of", *works.split())
    assert [figure["n"] for figure in figures] == [2] * len(works.split())
    if answers is not None:
        for figure in figures:
            assert set(figure["answers"]) <= {*answers, "done"}
