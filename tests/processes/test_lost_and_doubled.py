"""Bells that ring twice or never, services that are away: every job runs, every frame once."""

from __future__ import annotations

import os
import signal

import pytest
import redis
from celery import Celery

from tests.processes.harness import Ris, clean_env

pytestmark = pytest.mark.slow

NOWHERE_REDIS = "redis://127.0.0.1:1/0"
WORKERS = ("worker-ingest", "worker-query", "beat")


@pytest.fixture
def same_workers(ris: Ris):
    """The workers of before are the workers of after: nothing made one die."""
    before = {name: ris.state.pids[name] for name in WORKERS}
    yield
    assert {name: ris.state.pids.get(name) for name in WORKERS} == before, ris.logs()


def test_a_job_delivered_twenty_times_to_two_workers_is_done_once(ris, footage, same_workers):
    clip = footage["bikes"]
    job_id = ris.ingest(clip, "doubled", 0.5, {"RIS_BROKER_URL": NOWHERE_REDIS})
    bell = Celery(broker=ris.state.broker_url)
    for number in range(20):
        bell.send_task("ris.run_job", args=[job_id], queue=("ingest", "query")[number % 2])
    ris.wait_done(job_id)
    with redis.Redis.from_url(str(ris.state.broker_url)) as broker:
        ris.eventually(
            lambda: broker.llen("ingest") + broker.llen("query") == 0, "every copy was taken"
        )
    assert ris.job(job_id)[0] == "done"
    ris.assert_every_frame_once(clip, "doubled", 0.5)


def test_a_bell_that_never_rang_is_rung_by_the_sweeper(ris, footage, same_workers):
    job_id = ris.ingest(footage["car"], "unrung", 0.5, {"RIS_BROKER_URL": NOWHERE_REDIS})
    ris.wait_done(job_id)
    ris.assert_every_frame_once(footage["car"], "unrung", 0.5)


def test_a_bell_that_the_broker_forgot_is_rung_again(ris, footage, same_workers):
    long_job = ris.ingest(footage["bikes"], "before-flush", 0.5)
    waiting_job = ris.ingest(footage["car"], "flushed", 0.5)
    with redis.Redis.from_url(str(ris.state.broker_url)) as broker:
        broker.flushall()
    for job_id, camera, clip, every_s in (
        (long_job, "before-flush", footage["bikes"], 0.5),
        (waiting_job, "flushed", footage["car"], 0.5),
    ):
        ris.wait_done(job_id)
        ris.assert_every_frame_once(clip, camera, every_s)


def test_a_job_submitted_while_redis_is_down_runs_when_it_is_back(ris, footage, same_workers):
    supervisor = ris.state.supervisor_pid
    os.kill(supervisor, signal.SIGSTOP)  # or it would be back at once
    try:
        old_pid = ris.kill("redis")
        job_id = ris.ingest(footage["car"], "no-redis", 0.5)
        assert ris.job(job_id)[0] == "queued"
    finally:
        os.kill(supervisor, signal.SIGCONT)
    ris.wait_restarted("redis", old_pid)
    ris.wait_done(job_id)
    ris.assert_every_frame_once(footage["car"], "no-redis", 0.5)


@pytest.mark.parametrize("service", ["redis", "postgres"])
def test_a_service_killed_in_mid_job_comes_back_and_the_job_ends(
    ris, footage, same_workers, service
):
    camera = f"{service}-killed"
    job_id = ris.ingest(footage["bikes"], camera, 0.5)
    ris.wait_mid_job(job_id)
    old_pid = ris.kill(service)
    ris.wait_restarted(service, old_pid)
    ris.wait_done(job_id)
    ris.assert_every_frame_once(footage["bikes"], camera, 0.5)
    after = ris.ingest(footage["car"], f"{camera}-after", 0.5)
    ris.wait_done(after)


def test_a_worker_whose_acknowledgement_is_lost_takes_the_next_job(ris, footage, same_workers):
    """Redis is away when the job ends: the worker must not wait for ever with a full window."""
    job_id = ris.ingest(footage["bikes"], "no-ack", 0.5)
    ris.wait_mid_job(job_id)
    supervisor = ris.state.supervisor_pid
    os.kill(supervisor, signal.SIGSTOP)  # or it would be back at once
    try:
        old_pid = ris.kill("redis")
        ris.eventually(lambda: ris.job(job_id)[0] == "done", "the job ends without Redis")
        ris.eventually(lambda: "Couldn't ack" in ris.logs(), "the acknowledgement fails")
    finally:
        os.kill(supervisor, signal.SIGCONT)
    ris.wait_restarted("redis", old_pid)
    after = ris.ingest(footage["car"], "no-ack-after", 0.5)
    ris.wait_done(after)
    ris.assert_every_frame_once(footage["car"], "no-ack-after", 0.5)


def test_postgres_out_of_reach_is_one_clear_line(ris):
    url = "postgresql://ris@127.0.0.1:1/ris"
    said = ris.run("cameras", expect=1, changes={"RIS_DATABASE_URL": url})
    assert said.stdout == ""
    assert "service_unavailable" in said.stderr
    assert "ris doctor" in said.stderr
    assert "Traceback" not in said.stderr
    as_json = ris.json("cameras", expect=1, changes={"RIS_DATABASE_URL": url})
    assert as_json["error"]["code"] == "service_unavailable"


def test_nothing_running_says_how_to_start(tmp_path, ris):
    nobody = Ris(tmp_path / "empty", {}, cwd=tmp_path)
    assert "RIS_DATABASE_URL" not in clean_env({})
    said = nobody.json("cameras", expect=1)
    assert said["error"]["code"] == "service_unavailable"
    assert "ris up" in said["error"]["detail"]


def test_verify_is_clean_after_all_this(ris):
    assert ris.json("verify")["problems"] == []
