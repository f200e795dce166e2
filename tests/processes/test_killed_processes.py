"""kill -9 of random processes at random moments, with the script that does it more often."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.processes.harness import REPO

pytestmark = pytest.mark.slow


def test_six_kills_lose_and_double_nothing(ris):
    given = ("--kills", "6", "--every", "0.4", "--seed", "4")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kill_processes", *given],
        cwd=REPO,
        env=ris.env,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{ris.logs()}"
    figure = json.loads(done.stdout)
    assert figure["n"] == len(figure["kill_delays_s"]) == 6
    assert figure["frames_found"] == figure["frames_expected"] > 0
    assert (figure["value"], figure["frames_doubled"], figure["verify_problems"]) == (0, 0, 0)
