"""What a worker finds that goes on with a feed, and what it loses on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.conftest import Services
from tests.feeding import feed_worker, frame_times, gap_rows, until
from tests.parts import fresh_context, sql
from tests.rtsp_server import Camera
from worker.context import Context
from worker.core.sampling import IntervalPolicy
from worker.feeds import add_feed


@pytest.fixture(scope="module")
def shared(
    services: Services, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Context]:
    folder = tmp_path_factory.mktemp("feed-restarts")
    with fresh_context(
        services.database_url,
        template_database,
        folder,
        backbone="tiny-a",
        job_lease_s=3.0,
        job_slice_s=1.0,
        feed_hosts="127.0.0.0/8",
        feed_stall_s=2.0,
        feed_status_every_s=0.3,
    ) as made:
        made.backbone("tiny-a")  # once, before many threads ask for it
        yield made


@pytest.fixture
def context(shared: Context) -> Context:
    sql(shared, "truncate jobs, cameras cascade")
    return shared


def test_a_machine_whose_clock_was_hours_ahead_goes_on_at_once(context: Context) -> None:
    with Camera() as camera:
        add_feed(context, "ahead", camera.url, IntervalPolicy(0.3))
        sql(
            context,
            "update feed_status set phase = 'live', last_seen_utc = now() + interval '9 hours',"
            " last_frame_utc = now() + interval '9 hours'",
        )
        sql(
            context,
            "insert into feed_gaps (camera_id, from_utc, reason)"
            " select camera_id, now() + interval '9 hours', 'stopped' from feeds",
        )
        with feed_worker(context):
            until(lambda: len(frame_times(context, "ahead")) >= 3, what="3 frames")
            (gap,) = gap_rows(context, "ahead")
            first = frame_times(context, "ahead")[0]
            assert gap == (first, first, "stopped")
    assert abs(first - time.time()) < 60
    assert gap_rows(context, "ahead")[1][1:] == (None, "stopped")  # another can begin
