"""The Python client's orders: feeds and masks, over a real connection."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import uvicorn

from api.app import make_app
from ris_client import Feed, Gap, RisApiError, RisClient
from tests.api.conftest import Api
from tests.feeding import until
from tests.parts import sql


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


def test_masks(client: RisClient):
    camera_id = client.camera("street").camera_id
    area = {"box": [0.0, 0.0, 0.25, 0.5]}
    assert client.mask(camera_id) == []
    client.set_mask(camera_id, [area])
    assert client.mask(camera_id) == [area]
    client.set_mask(camera_id, [])
    assert client.mask(camera_id) == []
