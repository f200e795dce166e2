"""`ris reindex` with another backbone while queries go on, and a camera. Last of these tests: it
loads slowly."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.processes.harness import PATIENCE_S, REPO, Ris
from tests.rtsp_server import Camera

pytestmark = pytest.mark.slow
OF_GATE = "select count(*) from frames f join cameras c on c.id = camera_id where name = 'gate'"
HELD = """
    select count(*), count(distinct frame_id) from f_map_runs r
    join shards s on s.id = r.shard_id where s.generation_id = %s
"""


@pytest.fixture
def live_camera(ris: Ris) -> Iterator[None]:
    """Two frames a second, on and on."""
    with Camera() as camera:
        ris.run("feed", "add", "gate", camera.url, "--every", "0.5")
        ris.eventually(lambda: ris.rows(OF_GATE)[0][0], "the camera has a frame")
        yield
        ris.run("feed", "rm", "gate")


def test_queries_are_answered_all_through_a_reindex(ris, first_frame, live_camera, tmp_path):
    (before,) = ris.rows("select id, backbone from index_generations where state = 'live'")[0:1]
    answers_path, errors_path = tmp_path / "answers", tmp_path / "errors"

    def answers() -> list[dict[str, int]]:
        return [json.loads(line) for line in answers_path.read_text().splitlines()]

    with answers_path.open("w") as out, errors_path.open("w") as errors:
        loop = subprocess.Popen(
            [sys.executable, "-m", "tests.processes.query_loop", str(first_frame)],
            cwd=REPO,
            env=ris.env,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=errors,
        )
    ris.eventually(lambda: loop.poll() is not None or answers(), "a query is answered before")
    said = ris.json("reindex", "--backbone", "tiny")
    assert said["job"]["state"] == "done", said
    live_frames = ris.rows(OF_GATE)[0][0]
    ris.eventually(lambda: ris.rows(OF_GATE)[0][0] > live_frames, "the camera goes on")
    ris.eventually(
        lambda: (
            loop.poll() is not None
            or any(answer["generation"] == said["generation_id"] for answer in answers())
        ),
        "the new generation answers",
    )
    assert loop.stdin is not None
    loop.stdin.close()
    assert loop.wait(PATIENCE_S) == 0, errors_path.read_text()
    generations = [answer["generation"] for answer in answers()]
    assert set(generations) == {before[0], said["generation_id"]}
    assert generations == sorted(generations)
    assert all(answer["hits"] > 0 for answer in answers())
    ((rows, held),) = ris.rows(HELD, said["generation_id"])
    assert rows == held >= said["job"]["progress"]["of"] > live_frames > 0
    assert ris.json("verify")["problems"] == []
