"""Bad files through the real worker: a recorded failure each, and the worker goes on."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest

from tests.video.clips import make_audio

pytestmark = pytest.mark.slow


def test_bad_files_are_recorded_failures_and_the_worker_lives(ris, footage, tmp_path):
    pid = ris.state.pids["worker-ingest"]
    bad = {name: tmp_path / name for name in ("empty.mp4", "cut.mp4", "text.mp4")}
    bad["empty.mp4"].touch()
    bad["text.mp4"].write_text("this is not a video\n" * 200)
    whole = footage["car"].read_bytes()
    bad["cut.mp4"].write_bytes(whole[: len(whole) // 2])  # its index was at the end
    bad["audio.mp4"] = make_audio(tmp_path / "audio.mp4")

    said = ris.json("ingest", *map(str, bad.values()), "--camera", "bad", expect=1)

    assert [(job["state"], job["error_code"]) for job in said["jobs"]] == [
        ("failed", "video_invalid")
    ] * len(bad)
    for path, job in zip(bad.values(), said["jobs"], strict=True):
        assert str(path) in job["error_detail"]
    outcomes = ris.rows(
        "select s.outcome, s.frame_count from video_segments s"
        " join cameras c on c.id = s.camera_id where c.name = 'bad'"
    )
    assert outcomes == [("failed", 0)] * len(bad)

    job_id = ris.ingest(footage["car"], "after-bad", 0.5)
    ris.wait_done(job_id)
    ris.assert_every_frame_once(footage["car"], "after-bad", 0.5)
    assert ris.state.pids["worker-ingest"] == pid


def test_a_file_that_cannot_be_read_is_refused(ris, tmp_path):
    said = ris.json("ingest", str(tmp_path / "none.mp4"), "--camera", "bad", expect=1)
    assert said["error"]["code"] == "video_unreadable"


def test_a_killed_decoder_is_one_failed_file_and_the_worker_lives(ris, footage):
    worker = psutil.Process(ris.state.pids["worker-ingest"])
    job_id = ris.ingest(footage["bikes"], "killed-decoder", 0.04)
    decoder = None
    while decoder is None:  # pytest's own time limit ends it
        time.sleep(0.01)
        found = worker.children()
        decoder = next((one for one in found if "decoding_child" in str(one.cmdline())), None)
    os.kill(decoder.pid, signal.SIGKILL)
    while ris.rows(f"select state from jobs where id = '{job_id}'") in (
        [("queued",)],
        [("running",)],
    ):
        time.sleep(0.1)
    rows = ris.rows(f"select state, error_code from jobs where id = '{job_id}'")
    assert rows[0] in [("failed", "video_killed_decoder"), ("failed", "setup_failed")]

    after = ris.ingest(footage["car"], "after-killed", 0.5)
    ris.wait_done(after)
    assert ris.state.pids["worker-ingest"] == worker.pid
    assert worker.is_running()
