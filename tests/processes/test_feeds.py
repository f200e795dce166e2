"""A live camera under a real RIS: through its commands, and through kill -9 of its worker."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.processes.harness import Ris
from tests.rtsp_server import Camera

pytestmark = pytest.mark.slow
MARKER = "hunter2MARKER"


@pytest.fixture
def ris(tmp_path, quick_settings):
    settings = {
        **quick_settings,
        "RIS_BACKBONE": "tiny",
        "RIS_FEED_HOSTS": "127.0.0.0/8",
        "RIS_FEED_SLOTS": "4",
        "RIS_FEED_STATUS_EVERY_S": "0.5",
        "RIS_JOB_SLICE_S": "2",
    }
    running = Ris(tmp_path / "var", settings, cwd=tmp_path)
    running.run("up")
    yield running
    running.run("down")


def frames(ris: Ris) -> int:
    return int(ris.rows("select count(*) from frames")[0][0])


def test_a_killed_worker_is_followed_and_the_gap_is_written_down(ris: Ris, tmp_path: Path) -> None:
    with Camera(user="ris", password=MARKER) as camera:
        ris.run("feed", "add", "yard", camera.url, "--every", "0.5")
        ris.eventually(lambda: frames(ris) >= 8, "8 frames are recorded")
        pid = ris.kill("worker-feed")
        killed_s = time.time()
        ris.wait_restarted("worker-feed", pid)
        before = frames(ris)
        ris.eventually(lambda: frames(ris) >= before + 4, "it goes on")
        (gap,) = ris.json("feed", "gaps")["gaps"]
        assert (gap["camera"], gap["reason"]) == ("yard", "worker_lost")
        from_s, to_s = ris.rows(
            "select extract(epoch from from_utc)::float8, extract(epoch from to_utc)::float8"
            " from feed_gaps"
        )[0]
        assert from_s == pytest.approx(killed_s, abs=1.1)
        (first_after,) = ris.rows(
            "select extract(epoch from min(t_utc))::float8 from frames, feed_gaps g"
            " where t_utc > g.from_utc + interval '0.6 s'"
        )[0]
        assert to_s == first_after
        (listed,) = ris.json("feed", "ls")
        assert (listed["phase"], listed["url"]) == (
            "live",
            f"rtsp://***@127.0.0.1:{camera.port}/live",
        )
        assert [c["feed"] for c in ris.json("cameras")] == ["live"]
        for arguments in (("feed", "ls"), ("feed", "gaps"), ("cameras",)):
            shown = ris.run(*arguments)
            assert "yard" in shown.stdout
            assert MARKER not in shown.stdout + shown.stderr
        ris.run("feed", "pause", "yard")
        ris.eventually(
            lambda: ris.rows("select count(*) from jobs where state = 'done'") == [(1,)], "paused"
        )
        ris.run("feed", "resume", "yard")
        before = frames(ris)
        ris.eventually(lambda: frames(ris) > before, "frames again")
        ris.run("feed", "rm", "yard")
        refused = ris.run("feed", "add", "x", f"rtsp://u:{MARKER}@169.254.169.254/", expect=1)
        assert "address_refused" in refused.stderr
        assert MARKER not in refused.stderr
        ris.run("backup", str(tmp_path / "backup"))
    key = ris.data_dir / "secret.key"
    assert key.stat().st_mode & 0o777 == 0o600
    kept = [path for path in ris.data_dir.rglob("*") if path.is_file()]  # write-ahead log included
    backed_up = [path for path in (tmp_path / "backup").rglob("*") if path.is_file()]
    assert len(backed_up) > 3
    secret = key.read_bytes().strip()
    for path in kept + backed_up:
        content = path.read_bytes()
        assert MARKER.encode() not in content, path
        assert path == key or secret not in content, path
    logs = ris.data_dir / "logs"
    written = "".join(path.read_text() for path in logs.glob("*.log"))
    written += (ris.data_dir / "postgres" / "postgres.log").read_text()
    assert "feed_live" in written
    assert MARKER not in written
    assert ris.json("verify")["problems"] == []
