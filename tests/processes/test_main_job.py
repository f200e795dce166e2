"""The main job as a user does it: up, ingest, query, verify, reindex."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import av
import pytest
from PIL import Image

from tests.processes.conftest import Indexed
from tests.processes.harness import PATIENCE_S, REPO, Ris

pytestmark = pytest.mark.slow


@pytest.fixture
def first_frame(ris: Ris, two_cameras: Indexed) -> int:
    return int(
        ris.rows(
            "select f.id from frames f join cameras c on c.id = f.camera_id"
            " where c.name = 'street' order by f.pts limit 1"
        )[0][0]
    )


def assert_png(path: Path) -> None:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        picture.load()
        assert picture.width > 200


def test_two_clips_become_two_cameras(ris, two_cameras):
    for said, frames in ((two_cameras.street, 20), (two_cameras.car, 8)):
        assert said["submitted"][0]["is_new"] is True
        assert [(job["state"], job["progress"]["frames"]) for job in said["jobs"]] == [
            ("done", frames)
        ]
    listed = ris.json("cameras")
    assert {"street": 20, "car": 8}.items() <= {c["name"]: c["frames"] for c in listed}.items()


def test_box_on_an_indexed_frame_finds_others_and_draws_them(ris, first_frame, tmp_path):
    out = tmp_path / "box.png"
    answer = ris.json(
        "query", "--frame", str(first_frame), "--roi", "0.3,0.3,0.7,0.9", "--out", str(out)
    )
    hits = answer["hits"]
    assert [hit["rank"] for hit in hits] == list(range(1, len(hits) + 1))
    assert hits
    assert hits[0]["camera"] == "street"
    assert [hit["score"] for hit in hits] == sorted((h["score"] for h in hits), reverse=True)
    assert first_frame not in {hit["frame_id"] for hit in hits}
    assert all(hit["region_cells"] and hit["box"] for hit in hits)
    assert answer["picture"] == str(out)
    assert_png(out)


def test_polygon_on_a_picture_with_camera_and_time_filters(ris, two_cameras, footage, tmp_path):
    picture, out = tmp_path / "asked.png", tmp_path / "polygon.png"
    with av.open(str(footage["car"])) as clip:
        Image.fromarray(next(clip.decode(video=0)).to_ndarray(format="rgb24")).save(picture)
    answer = ris.json(
        *("query", "--image", str(picture), "--polygon", "0.2,0.2 0.8,0.2 0.5,0.9"),
        *("--camera", "car", "--from", "2026-01-01T13:00:01+00:00"),
        *("--to", "2026-01-01T13:00:03+00:00", "--limit", "3", "--out", str(out)),
    )
    times = [hit["t_utc"] for hit in answer["hits"]]
    assert answer["stats"]["frames_searched"] >= len(times) > 0
    assert {hit["camera"] for hit in answer["hits"]} == {"car"}
    assert all("2026-01-01T13:00:01" <= t < "2026-01-01T13:00:03" for t in times), times
    assert_png(out)


def test_verify_doctor_and_backbones_speak_json(ris, two_cameras):
    report = ris.json("verify")
    assert report["problems"] == []
    assert report["frames"] >= 28
    checks = {check["check"]: check for check in ris.json("doctor")}
    assert all(check["ok"] for check in checks.values())
    assert checks["postgres"]["detail"].startswith("PostgreSQL 18")
    assert checks["redis"]["detail"].startswith("Redis 6")
    listed = {entry["name"]: entry for entry in ris.json("backbones")}
    assert listed["efficientnet-lite0"]["available"] is True
    assert listed["other"]["available"] is True


def test_a_second_up_on_the_folder_is_refused(ris):
    said = ris.json("up", expect=1)
    assert said["error"]["code"] == "already_running"
    assert str(ris.data_dir) in said["error"]["detail"]
    assert ris.state.phase == "ready"


def test_queries_are_answered_all_through_a_reindex(ris, first_frame, tmp_path):
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
    said = ris.json("reindex", "--backbone", "other")
    assert said["job"]["state"] == "done", said
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
    assert ris.json("verify")["problems"] == []
