"""The main job as a user does it: up, ingest, query, verify, reindex."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
from PIL import Image

pytestmark = pytest.mark.slow


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
        *("query", "--frame", str(first_frame), "--roi", "0.3,0.3,0.7,0.9", "--out", str(out)),
        *("--camera", "street", "--camera", "car"),  # other tests index the same clips
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
    assert listed["tiny"]["available"] is True


def test_a_second_up_on_the_folder_is_refused(ris):
    said = ris.json("up", expect=1)
    assert said["error"]["code"] == "already_running"
    assert str(ris.data_dir) in said["error"]["detail"]
    assert ris.state.phase == "ready"


def test_changes_of_a_box_are_told(ris, two_cameras):
    box = ("--camera", "car", "--roi", "0.78,0.42,0.98,0.6")
    told = ris.json("changes", *box)
    assert told["frames"] == 8
    assert told["states"][0]["number"] == 1
    assert "no change in 8 frames" in ris.run("changes", *box).stdout
    refused = ris.json("changes", "--camera", "car", expect=1)["error"]
    assert refused["code"] == "input_invalid"
    late = ris.json("changes", *box, "--from", "2030-01-01T00:00:00+00:00", expect=1)["error"]
    assert late["code"] == "not_found" and "no frames in that time" in late["detail"]


def test_no_generation_has_an_id_that_large(ris):
    for given in (("generations", "--remove"), ("reindex", "--generation")):
        assert "Invalid value" in ris.run(*given, "9" * 20, expect=2).stderr
        assert ris.json(*given, "999", expect=1)["error"]["code"] == "not_found"


def test_standing_queries_on_the_command_line(ris, first_frame):
    box = ("--frame", str(first_frame), "--roi", "0.2,0.2,0.8,0.8")
    made = ris.json("standing", "add", "a man", *box, "--camera", "car", "--backfill")
    name = str(made["standing_query_id"])
    assert (made["name"], made["state"], made["alerts"]) == ("a man", "running", 0)
    ris.eventually(
        lambda: ris.rows(
            """select 1 from search_queries q join jobs j on j.id = q.job_id
               where q.id = %s and j.state = 'done'""",
            made["backfill_query_id"],
        ),
        "what is there is searched",
    )
    assert f"standing query {name}: paused" in ris.run("standing", "pause", name).stdout
    (listed,) = ris.json("standing", "ls")
    assert listed == {key: made[key] for key in listed} | {"state": "paused"}
    assert ris.json("standing", "alerts", "--standing", name) == []
    assert "running" in ris.run("standing", "resume", name).stdout
    ris.run("standing", "rm", name)
    assert ris.json("standing", "ls") == []
    gone = ris.json("standing", "alerts", "--standing", name, expect=1)["error"]
    assert gone["code"] == "not_found"
