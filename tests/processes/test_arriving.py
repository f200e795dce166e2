"""Recordings arrive in every way while the worker that takes them is killed: each once."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ris_client import RisClient
from tests.processes.harness import Ris
from tests.processes.test_api import url_of
from tests.test_fetching import Clips, serving

pytestmark = pytest.mark.slow


def test_nothing_that_arrived_is_lost_or_doubled(
    ris: Ris, footage: dict[str, Path], tmp_path: Path
):
    secret = ris.json("keys", "--create", "arriving", "--action", "admin")["secret"]
    client = RisClient(url_of(ris), secret)
    folder = tmp_path / "nvr"
    (folder / "arriving").mkdir(parents=True)
    clip = tmp_path / "sent.mp4"
    ris.run("watch", "add", str(folder), "--camera-from-folder", "--name", "%Y%m%d.mp4")
    for path in (clip, folder / "arriving" / "20260101.mp4"):
        path.write_bytes(footage["car"].read_bytes() + uuid.uuid4().bytes)
    ris.run("ingest", str(clip), "--camera", "arriving", "--every", "60")  # makes the camera
    with serving(Clips(footage["car"].read_bytes(), answers=["503"])) as clips:
        pid = ris.kill("worker-ingest")
        sent = client.send_segment(clip, "arriving", datetime(2026, 1, 2, tzinfo=UTC))
        again = client.send_segment(clip, "arriving", datetime(2026, 1, 2, tzinfo=UTC))
        fetched = client.fetch_segment(clips.url(), "arriving", datetime(2026, 1, 3, tzinfo=UTC))
        ris.wait_restarted("worker-ingest", pid)
        statement = """select s.id, start_utc::date::text, outcome, frame_count,
            (select count(*) from frames f where f.segment_id = s.id), held_sha256
            from video_segments s join cameras c on c.id = camera_id
            where c.name = 'arriving' and start_source <> 'file-mtime' order by start_utc"""
        ris.eventually(
            lambda: [row[2] for row in ris.rows(statement)] == ["complete"] * 3, "all are indexed"
        )
    assert sent.segment_id == again.segment_id
    found = ris.rows(statement)
    assert [row[0] for row in found[1:]] == [sent.segment_id, fetched.segment_id]
    assert [row[1] for row in found] == ["2026-01-01", "2026-01-02", "2026-01-03"]
    assert all(row[3] == row[4] > 0 and row[5] is None for row in found)
    ris.eventually(lambda: not list((ris.data_dir / "recordings").iterdir()), "files are gone")
    ris.run("watch", "rm", str(folder))
    ris.run("verify")
