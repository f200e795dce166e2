"""Live feeds end to end: a camera on loopback, real slices, real rows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.conftest import Services
from tests.feeding import feed_worker, frame_times, until
from tests.parts import fresh_context, sql
from tests.rtsp_server import Camera
from worker.context import Context
from worker.core.sampling import IntervalPolicy
from worker.feeds import add_feed

EVERY_S = 0.5


@pytest.fixture(scope="module")
def shared(
    services: Services, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Context]:
    folder = tmp_path_factory.mktemp("feeds")
    with fresh_context(
        services.database_url,
        template_database,
        folder,
        backbone="tiny-a",
        job_lease_s=3.0,
        job_slice_s=2.0,
        feed_hosts="127.0.0.0/8",
        feed_stall_s=2.0,
        feed_status_every_s=0.5,
    ) as made:
        made.backbone("tiny-a")  # once, before many threads ask for it
        yield made


@pytest.fixture
def context(shared: Context) -> Context:
    sql(shared, "truncate jobs, cameras cascade")
    return shared


def test_a_camera_is_indexed_slice_after_slice_over_one_connection(context: Context) -> None:
    with Camera() as camera, feed_worker(context):
        add_feed(context, "yard", camera.url, IntervalPolicy(EVERY_S))
        until(lambda: len(frame_times(context, "yard")) >= 14, what="14 frames")
        assert camera.connections == 1
    times = frame_times(context, "yard")
    gaps_s = [after - before for before, after in pairwise(times)]
    assert all(abs(gap_s - EVERY_S) < 0.25 for gap_s in gaps_s), gaps_s
    assert abs(times[-1] - time.time()) < 5
    (slices,) = sql(context, "select count(*) from jobs")
    assert slices == (1,)
