"""The Python client's orders: feeds and masks, over a real connection."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
import uvicorn

from api.app import make_app
from ris_client import Feed, Gap, RisApiError, RisClient
from tests.api.conftest import STREET_START, Api
from tests.feeding import until
from tests.parts import run_jobs, sql


@pytest.fixture(scope="module")
def client(api: Api) -> Iterator[RisClient]:
    configured = uvicorn.Config(make_app(api.desk), port=0, log_config=None, lifespan="off")
    server = uvicorn.Server(configured)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started, what="the server")
    port = server.servers[0].sockets[0].getsockname()[1]
    secret = api.key("admin")["Authorization"].split()[1]
    yield RisClient(f"http://127.0.0.1:{port}", secret)
    server.should_exit = True
    thread.join(20)


def test_feeds(api: Api, client: RisClient):
    made = client.add_feed("live", "rtsp://u:p@10.0.0.7/s", "keyframe", 2.0)
    assert client.feeds() == [made]
    assert isinstance(made, Feed)
    assert (made.camera_name, made.url) == ("live", "rtsp://***@10.0.0.7/s")
    assert (made.desired_state, made.trouble, made.last_frame_utc) == ("running", None, None)
    assert made.told["policy"] == {"kind": "keyframe", "min_gap_s": 2.0}
    assert client.pause_feed(made.feed_id).desired_state == "paused"
    assert client.resume_feed(made.feed_id).desired_state == "running"
    trouble = "update feed_status set error_code = 'feed_failed', last_frame_utc = '2026-03-01Z'"
    sql(api.context, trouble)
    (found,) = client.feeds()
    assert (found.trouble, found.last_frame_utc) == (
        "feed_failed",
        datetime(2026, 3, 1, tzinfo=UTC),
    )
    sql(
        api.context,
        "insert into feed_gaps (camera_id, from_utc, reason)"
        f" values ({made.camera_id}, '2026-03-01Z', 'stalled')",
    )
    gaps = client.gaps(made.camera_id)
    assert gaps == [Gap(datetime(2026, 3, 1, tzinfo=UTC), None, "stalled")]
    client.remove_feed(made.feed_id)
    assert client.feeds() == []
    with pytest.raises(RisApiError) as refused:
        client.remove_feed(made.feed_id)
    assert refused.value.code == "not_found"


def test_webhooks(client: RisClient):
    made, secret = client.add_webhook("vms", "https://vms.example/ris?token=1", ["query.done"])
    assert secret.startswith("whsec_")
    assert secret not in repr(made)
    assert (made.name, made.kinds, made.state) == ("vms", ("query.done",), "active")
    assert made.url == "https://vms.example/ris?..."
    assert client.webhooks() == [made]
    client.remove_webhook(made.webhook_id)
    assert client.webhooks() == []
    with pytest.raises(RisApiError) as refused:
        client.add_webhook("vms", "http://169.254.169.254/")
    assert refused.value.code == "address_refused"


def test_standing_queries_and_their_alerts(api: Api, client: RisClient):
    frame_id, other_id = api.frame("car", 0), api.frame("car", 1)
    made = client.watch_for("a bow tie", frame_id, (0.4, 0.6, 0.7, 0.9), camera_ids=[1, 2])
    assert (made.name, made.state, made.alerts) == ("a bow tie", "running", 0)
    assert made.told["params"]["camera_ids"] == [1, 2]
    assert [one.standing_query_id for one in client.standing_queries()] == [made.standing_query_id]
    sql(
        api.context,
        """insert into alerts (standing_query_id, frame_id, camera_id, t_utc, generation_id,
             likeness, false_per_day, similarity, coverage, grid_h, grid_w, region_query_index,
             region_cell_index)
           select %s, id, camera_id, t_utc, 1, 3.0, 0.25, 0.8, 0.5, 4, 4, '{0}', '{5}'
           from frames where id = %s""",
        made.standing_query_id,
        other_id,
    )
    (alert,) = client.alerts()
    assert (alert.standing_query_id, alert.frame_id) == (made.standing_query_id, other_id)
    assert (alert.camera_name, alert.false_per_day) == ("car", 0.25)
    assert alert.t_utc.tzinfo is not None
    assert client.overlay(alert)[:2] == b"\xff\xd8"
    client.remove_standing_query(made.standing_query_id)
    assert client.standing_queries() == []
    assert list(client.alerts()) == []


def test_changes_of_a_box(api: Api, client: RisClient):
    camera_id = client.camera("street").camera_id
    with ThreadPoolExecutor(1) as beside:
        box = (0.2, 0.2, 0.8, 0.8)
        waiting = beside.submit(client.changes, camera_id, box=box, t_from_utc=STREET_START)
        while not waiting.done():
            run_jobs(api.context)
    found = waiting.result()
    assert found.frames == found.told["frames"] > 3
    assert (found.states[0].number, found.states[0].like) == (1, 1)
    assert found.states[0].from_utc >= STREET_START
    with pytest.raises(RisApiError) as refused:
        client.changes(999_999, box=(0.2, 0.2, 0.8, 0.8))
    assert refused.value.code == "not_found"


def test_masks(client: RisClient):
    camera_id = client.camera("street").camera_id
    area = {"box": [0.0, 0.0, 0.25, 0.5]}
    assert client.mask(camera_id) == []
    client.set_mask(camera_id, [area])
    assert client.mask(camera_id) == [area]
    client.set_mask(camera_id, [])
    assert client.mask(camera_id) == []


def test_a_recording_is_sent_piece_by_piece(api: Api, client: RisClient, tmp_path: Path):
    clip = tmp_path / 'Zoë "1".mp4'
    clip.write_bytes((api.footage / "bikes.mp4").read_bytes() + bytes(3 << 20))
    start = datetime(2026, 3, 3, tzinfo=UTC)
    sent = client.send_segment(clip, "street", start, 2.0)
    assert (sent.camera_id, sent.state) == (api.camera("street"), "queued")
    assert client.send_segment(clip, "street", start, 2.0).segment_id == sent.segment_id
    run_jobs(api.context)
    told = client.segment(sent.segment_id)
    assert (told.state, told.outcome) == ("done", "complete")
    assert told.frames >= 4
    with pytest.raises(RisApiError) as refused:
        client.send_segment(clip, "nowhere", start)
    assert refused.value.code == "not_found"


def test_an_address_of_a_recording_is_only_asked_where_it_may(api: Api, client: RisClient):
    with pytest.raises(RisApiError) as refused:
        client.fetch_segment("http://10.0.0.1/a.mp4", "street", datetime(2026, 3, 3, tzinfo=UTC))
    assert refused.value.code == "input_invalid"
