"""Some fifty faults of cameras, on several at once: each is noticed, mended and written down."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise

import pytest

from tests.conftest import Services
from tests.feed_faults import FAULTS, Outcome, Trial, wrong_gaps
from tests.feeding import feed_worker, frame_times, gap_rows
from tests.parts import fresh_context, sql
from tests.rtsp_server import Camera
from worker.context import Context
from worker.core.sampling import IntervalPolicy
from worker.feeds import add_feed

CAMERAS = 6
EVERY_S = 0.5
STALL_S = 4.0


@pytest.fixture(scope="module")
def context(
    services: Services, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Context]:
    folder = tmp_path_factory.mktemp("feed-faults")
    with fresh_context(
        services.database_url,
        template_database,
        folder,
        backbone="tiny-a",
        job_lease_s=6.0,
        job_slice_s=5.0,
        feed_hosts="127.0.0.0/8",
        feed_stall_s=STALL_S,
        feed_status_every_s=1.0,
        feed_clock_tolerance_s=40.0,
    ) as made:
        made.backbone("tiny-a")  # once, before many threads ask for it
        yield made


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_every_fault_is_noticed_mended_and_written_down(context: Context) -> None:
    with ExitStack() as stack, feed_worker(context, slots=CAMERAS + 2):
        trials = []
        for number in range(CAMERAS):
            camera = stack.enter_context(
                Camera(user="ris", password="right", digest=number % 2 == 0)
            )
            name = f"camera {number}"
            add_feed(context, name, camera.url, IntervalPolicy(EVERY_S))
            trials.append(Trial(context, name, camera, STALL_S, EVERY_S, random.Random(number)))

        def harm(trial: Trial) -> list[Outcome]:
            order = list(FAULTS)
            trial.dice.shuffle(order)
            return [trial.run(fault) for fault in order]

        with ThreadPoolExecutor(CAMERAS) as threads:
            outcomes = [outcome for found in threads.map(harm, trials) for outcome in found]

    assert Counter(outcome.fault for outcome in outcomes) == dict.fromkeys(FAULTS, CAMERAS)
    for trial in trials:
        times = frame_times(context, trial.name)
        assert all(before < after for before, after in pairwise(times))
        assert wrong_gaps(context, trial.name, EVERY_S) == []
        assert {reason for _, _, reason in gap_rows(context, trial.name)} >= {"stalled"}
        sizes = sql(
            context,
            "select distinct s.w_px from video_segments s join cameras c on c.id = camera_id"
            " where c.name = %s",
            trial.name,
        )
        assert len(sizes) == 2
    assert sql(context, "select distinct state, attempts from jobs where state = 'failed'") == []
