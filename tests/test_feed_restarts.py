"""What a worker finds that goes on with a feed, and what it loses on the way."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import pytest
from sqlalchemy import text

from models.repositories import jobs as job_record
from models.repositories.jobs import ClaimedJob
from models.session import Database, DatabaseUnavailable, Session
from tests.conftest import Services
from tests.feed_faults import wrong_gaps
from tests.feeding import SlowBackbone, feed_context, feed_worker, frame_times, gap_rows, until
from tests.parts import sql, with_settings
from tests.rtsp_server import Camera
from worker.backbones.base import Backbone
from worker.context import Context
from worker.core.backbone_spec import BackboneSpec
from worker.core.sampling import IntervalPolicy
from worker.core.types import Descriptors, ImageArray
from worker.errors import WeightsMissing
from worker.feed_host import FeedHost
from worker.feeds import add_feed, fail_feed, pause_feed, reconcile, remove_feed, resume_feed
from worker.jobs import Handler, Lease, Outcome, run_job


@pytest.fixture(scope="module")
def shared(
    services: Services, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Context]:
    folder = tmp_path_factory.mktemp("feed-restarts")
    with feed_context(
        services, template_database, folder, job_slice_s=1.0, feed_status_every_s=0.3
    ) as made:
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
        with feed_worker(with_settings(context, job_slice_s=60)):
            until(lambda: len(frame_times(context, "ahead")) >= 3, what="3 frames")
            (gap,) = gap_rows(context, "ahead")
            first = frame_times(context, "ahead")[0]
            assert gap == (first, first, "stopped")
    assert abs(first - time.time()) < 60
    assert gap_rows(context, "ahead")[1][1:] == (None, "stopped")  # another can begin


def test_a_job_that_is_claimed_again_waits_for_the_slice_that_still_runs(
    context: Context, capfd: pytest.CaptureFixture[str]
) -> None:
    """As after an outage of Postgres: the lease ran out, and the same process has the next bell."""
    with Camera() as camera, feed_worker(with_settings(context, job_slice_s=60)) as worker:
        add_feed(context, "twice", camera.url, IntervalPolicy(0.3))
        until(lambda: len(frame_times(context, "twice")) >= 2, what="2 frames")
        ((job_id,),) = sql(
            context,
            "update jobs set lease_until = now() - interval '1 hour', rung_at = now() returning id",
        )
        handlers = {"feed": Handler(worker.host.run)}
        second = threading.Thread(target=run_job, args=(worker.context, job_id, handlers))
        second.start()
        before = len(frame_times(context, "twice"))
        until(lambda: len(frame_times(context, "twice")) >= before + 4, what="4 more")
        worker.stop()
        second.join(20)
    written = "".join(capfd.readouterr())
    assert "lease_lost" in written
    assert "job_unexpected" not in written
    assert camera.connections == 2


def test_the_lease_of_an_attempt_that_hangs_is_not_renewed_for_ever(context: Context) -> None:
    quick = with_settings(context, job_lease_s=0.6)
    hung, taken = threading.Event(), threading.Event()

    def hang(_context: Context, _job: ClaimedJob, lease: Lease) -> Outcome:
        lease.alive_for(0.1)
        hung.wait(10)
        return "yield"

    def take(_context: Context, _job: ClaimedJob, _lease: Lease) -> Outcome:
        taken.set()
        return "yield"

    with context.db.transaction() as session:
        job_id = job_record.submit(session, "feed", "feed", {})
    first = threading.Thread(target=run_job, args=(quick, job_id, {"feed": Handler(hang)}))
    first.start()
    until(lambda: sql(context, "select state from jobs") == [("running",)], what="the claim")
    try:
        while not taken.wait(0.1):
            run_job(quick, job_id, {"feed": Handler(take)})
            assert first.is_alive()
    finally:
        hung.set()
        first.join(10)


def test_what_is_recorded_too_late_for_its_slice_waits_for_the_next(
    context: Context, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("worker.feed_slice.FLUSH_S", 0.0)
    slow = SlowBackbone(context.backbone("tiny-a"))
    late = replace(context, backbone=lambda _name: slow)
    with Camera() as camera:
        with feed_worker(late):
            add_feed(context, "late", camera.url, IntervalPolicy(0.2))
            until(lambda: len(frame_times(context, "late")) >= 20, what="20 frames")
        assert camera.connections == 1
    assert "lease_lost" not in "".join(capfd.readouterr())
    steps_s = [after - before for before, after in pairwise(frame_times(context, "late"))]
    missing = sum(round(step_s / 0.2) - 1 for step_s in steps_s)
    ((dropped,),) = sql(context, "select coalesce(sum(frames), 0)::int from feed_drops")
    assert missing <= dropped + 1  # a busy machine drops some, and counts them


@dataclass
class HeldBackbone:
    """A real backbone that waits until it is let go on."""

    real: Backbone
    free: threading.Event

    @property
    def spec(self) -> BackboneSpec:
        return self.real.spec

    def embed(self, pictures: Sequence[ImageArray]) -> Descriptors:
        self.free.wait(30)
        return self.real.embed(pictures)


def test_all_that_was_missed_while_the_recorder_is_late_is_told(context: Context) -> None:
    """Several gaps wait, each behind frames that wait too."""
    free = threading.Event()
    free.set()
    held = HeldBackbone(context.backbone("tiny-a"), free)
    slow = with_settings(
        replace(context, backbone=lambda _name: held),
        job_slice_s=60,
        feed_clock_tolerance_s=40,
        feed_queue_frames=1000,
    )
    seen = "select extract(epoch from last_seen_utc)::float8 from feed_status"

    def ahead_s() -> float:
        return float(sql(context, seen)[0][0]) - time.time()

    def seen_since(t_s: float) -> bool:
        return ahead_s() + time.time() > t_s

    with Camera() as camera, feed_worker(slow):
        add_feed(slow, "behind", camera.url, IntervalPolicy(0.3))
        until(lambda: len(frame_times(context, "behind")) >= 2, what="2 frames")
        free.clear()
        for back in range(2):
            time.sleep(1.0)  # frames
            camera.stop()
            time.sleep(1.2)
            camera.start()
            until(partial(seen_since, time.time()), what=f"return {back}")
        time.sleep(1.0)
        camera.faults.clock_offset_s = 5.0
        until(lambda: ahead_s() > 4, what="the jump")
        time.sleep(0.5)
        before = len(frame_times(context, "behind"))
        free.set()
        until(lambda: len(frame_times(context, "behind")) >= before + 12, what="what waited")
    assert wrong_gaps(context, "behind", 0.3) == []
    told = [reason for *_, reason in gap_rows(context, "behind")]
    assert len(told) == 4
    assert told[2:] == ["clock", "stopped"]


def test_what_a_pause_does_not_wait_for_is_missing_in_its_gap(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.feed_slice.FLUSH_S", 0.2)
    free = threading.Event()
    free.set()
    held = HeldBackbone(context.backbone("tiny-a"), free)
    slow = with_settings(replace(context, backbone=lambda _name: held), job_slice_s=60)
    with Camera() as camera, feed_worker(slow):
        add_feed(slow, "late", camera.url, IntervalPolicy(0.3))
        until(lambda: len(frame_times(context, "late")) >= 2, what="2 frames")
        free.clear()
        time.sleep(1.5)
        pause_feed(slow, "late")
        until(lambda: sql(context, "select state from jobs") == [("done",)], what="the pause")
        free.set()
        time.sleep(1.0)
        last_s = frame_times(context, "late")[-1]
        assert gap_rows(context, "late") == [(last_s, None, "paused")]
        resume_feed(slow, "late")
        until(lambda: frame_times(context, "late")[-1] > last_s, what="frames after it")
    assert wrong_gaps(context, "late", 0.3) == []


def test_a_camera_that_is_not_there_can_be_paused_and_removed_at_once(context: Context) -> None:
    often = with_settings(
        context, feed_status_every_s=300.0, job_slice_s=300.0, feed_retry_max_s=0.2
    )
    failing = "select error_code from feed_status"
    ended = "select count(*) from jobs where state <> 'done'"
    with Camera() as camera:
        url = camera.url
    with feed_worker(often):
        add_feed(often, "gone", url, IntervalPolicy(0.3))
        until(lambda: sql(context, failing) == [("unreachable",)], what="the failure")
        pause_feed(often, "gone")
        until(lambda: sql(context, ended) == [(0,)], 15, "the pause")
        sql(context, "update feed_status set last_seen_utc = now() - interval '1 s'")
        resume_feed(often, "gone")
        until(lambda: gap_rows(context, "gone"), what="the gap")
        remove_feed(often, "gone")
        until(lambda: sql(context, ended) == [(0,)], 15, "the end of its job")
    assert None not in [to_s for _, to_s, _ in gap_rows(context, "gone")]


def test_cameras_are_read_on_while_nobody_can_be_rung(context: Context) -> None:
    """Redis is away for several slices, and comes back."""
    with Camera() as camera, feed_worker(context) as worker:
        add_feed(worker.context, "unrung", camera.url, IntervalPolicy(0.3))
        until(lambda: len(frame_times(context, "unrung")) >= 2, what="2 frames")
        worker.broker_away = True
        before = len(frame_times(context, "unrung"))
        until(lambda: len(frame_times(context, "unrung")) >= before + 12, 15, "3 slices' frames")
        worker.broker_away = False
        before = len(frame_times(context, "unrung"))
        until(lambda: len(frame_times(context, "unrung")) >= before + 5, what="more after it")
        assert gap_rows(context, "unrung") == []
        worker.broker_away = True  # and it stops all the same
    assert camera.connections == 1
    assert [reason for *_, reason in gap_rows(context, "unrung")] == ["stopped"]


def test_a_bell_that_reaches_nobody_says_so() -> None:
    script = "import uuid; from worker.bell import ring; print(ring(uuid.uuid4(), 'feed'))"
    rung = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "RIS_REDIS_URL": "redis://127.0.0.1:1/0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert rung.stdout.splitlines()[-1] == "False"


@dataclass(frozen=True, slots=True)
class LosesAnswers(Database):
    """A real database that is cut off after a commit of the recorder, once for each in ``at``."""

    at: list[int]

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        with super(LosesAnswers, self).transaction() as session:
            yield session
            frames = session.scalar(text("select count(*) from frames"))
        if threading.current_thread().name == "feeds" and self.at and frames >= self.at[0]:
            self.at.pop(0)
            raise DatabaseUnavailable("the answer was lost")


def test_a_commit_whose_answer_is_lost_doubles_nothing(context: Context) -> None:
    """The first one makes a segment, the second adds to it."""
    at = [1, 8]
    cut = replace(context, db=LosesAnswers(context.db.engine, context.db.sessions, at))
    with Camera() as camera:
        add_feed(context, "lost", camera.url, IntervalPolicy(0.2))
        sql(context, "update feed_status set phase = 'live', last_seen_utc = now()")
        with feed_worker(with_settings(cut, job_slice_s=60)):
            until(lambda: len(frame_times(context, "lost")) >= 12, what="12 frames")
            # As an erasure of two of them does.
            sql(context, "update video_segments set frame_count = frame_count - 2")
            until(lambda: len(frame_times(context, "lost")) >= 16, what="4 more")
    assert at == []
    times = frame_times(context, "lost")
    assert len(times) == len(set(times))
    counts = sql(context, "select sum(frame_count)::int, count(*) from video_segments")
    assert counts == [(len(times) - 2, 1)]
    assert [reason for *_, reason in gap_rows(context, "lost")] == ["worker_lost", "stopped"]


def test_a_backbone_that_cannot_be_loaded_is_told_and_waited_for(context: Context) -> None:
    missing = threading.Event()
    missing.set()

    def backbone(name: str) -> Backbone:
        if missing.is_set():
            raise WeightsMissing(f"weights of {name} are not there")
        return context.backbone(name)

    status = "select phase, error_code, error_detail from feed_status"
    with Camera() as camera, feed_worker(replace(context, backbone=backbone)):
        add_feed(context, "blind", camera.url, IntervalPolicy(0.3))
        sql(context, "update feed_status set last_frame_utc = now() - interval '5 s'")
        until(
            lambda: sql(context, status)[0][:2] == ("waiting", "weights_missing"), what="the words"
        )
        assert "weights of tiny-a" in sql(context, status)[0][2]
        assert [gap[1:] for gap in gap_rows(context, "blind")] == [(None, "backbone")]
        time.sleep(2)  # of sweeps and retries
        assert sql(context, "select count(*) from jobs") == [(1,)]
        missing.clear()
        until(lambda: len(frame_times(context, "blind")) >= 2, what="frames")
    assert sql(context, "select count(*), max(attempts) from jobs") == [(1, 0)]


def test_a_feed_whose_job_failed_says_so_and_rests(context: Context) -> None:
    add_feed(context, "failed", "rtsp://127.0.0.1:1/a", IntervalPolicy(1))
    ((job_id,),) = sql(context, "update jobs set attempts = 99 returning id")
    run_job(context, job_id, {"feed": Handler(FeedHost().run, fail_feed)})
    assert sql(context, "select state from jobs") == [("failed",)]
    ((phase, code),) = sql(context, "select phase, error_code from feed_status")
    assert (phase, code) == ("waiting", "worker_lost")
    assert reconcile(context) == 0
    sql(context, "update jobs set finished_at = finished_at - interval '1 hour'")
    assert reconcile(context) == 1


@pytest.mark.parametrize(("phase", "reasons"), [("live", ["worker_lost"]), ("idle", [])])
def test_a_lost_worker_is_a_gap_since_the_last_frame_and_what_had_ended_is_none(
    context: Context, phase: str, reasons: list[str]
) -> None:
    with Camera() as camera:
        add_feed(context, "next", camera.url, IntervalPolicy(0.3))
        ((last_s,),) = sql(
            context,
            "update feed_status set phase = %s, last_seen_utc = now() - interval '5 s',"
            " last_frame_utc = now() - interval '9 s'"
            " returning extract(epoch from last_frame_utc)::float8",
            phase,
        )
        with feed_worker(context):
            until(lambda: len(frame_times(context, "next")) >= 2, what="2 frames")
            gaps = gap_rows(context, "next")
    first_s = frame_times(context, "next")[0]
    assert gaps == [(last_s, first_s, reason) for reason in reasons]
