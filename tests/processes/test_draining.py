"""SIGTERM of each process: it ends what it is at, and well, and is started again."""

from __future__ import annotations

import os
import signal

import pytest

pytestmark = pytest.mark.slow

PROCESSES = ("worker-ingest", "worker-query", "worker-feed", "worker-watch", "beat", "api")


def test_each_process_drains_and_comes_back(ris, footage):
    job_id = ris.ingest(footage["bikes"], "drained", 0.25)
    ris.eventually(lambda: ris.frames_of(job_id) > 0, "an ingest is under way")
    told: dict[str, str] = {}
    for name in PROCESSES:
        pid = ris.state.pids[name]
        os.kill(pid, signal.SIGTERM)
        ris.wait_restarted(name, pid)
        log = (ris.data_dir / "logs" / "supervisor.log").read_text().splitlines()
        told[name] = [line for line in log if f"{name} ended with status" in line][-1].split()[-1]
    assert told == dict.fromkeys(PROCESSES, "0"), ris.logs()
    ris.wait_done(job_id)
    assert ris.json("verify")["problems"] == []
