"""kill -9 of the ingest worker at random moments, with the script that also does it 20 times."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.processes.harness import REPO

pytestmark = pytest.mark.slow


def test_three_kills_lose_and_double_nothing(ris):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kill_worker", "--kills", "3", "--every", "0.4"],
        cwd=REPO,
        env=ris.env,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{ris.logs()}"
    figure = json.loads(done.stdout)
    assert figure["n"] == len(figure["kill_delays_s"]) == 3
    assert figure["frames_found"] == figure["frames_expected"] > 0
    assert (figure["value"], figure["frames_doubled"], figure["verify_problems"]) == (0, 0, 0)
