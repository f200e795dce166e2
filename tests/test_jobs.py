"""The job record and runner: exactly once, from bells that ring twice, late or never."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from models.repositories import jobs as job_record
from models.repositories import videos as video_record
from models.repositories.jobs import ClaimedJob
from models.session import Session
from tests.conftest import Services, psycopg_url
from tests.parts import fresh_context, job, queued_jobs, sql, with_settings
from worker.context import Context
from worker.errors import LeaseLost, NotFound, StorageFull, VideoInvalid
from worker.jobs import Handler, Lease, Outcome, job_state, run_job, sweep

Rung = list[tuple[uuid.UUID, str]]


@pytest.fixture(scope="module")
def shared(
    services: Services, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Context]:
    folder = tmp_path_factory.mktemp("jobs")
    with fresh_context(services.database_url, template_database, folder, job_lease_s=30) as made:
        yield made


@pytest.fixture
def context(shared: Context, rung: Rung) -> Context:
    """The module's context with no jobs in it."""
    from dataclasses import replace

    sql(shared, "truncate jobs, cameras cascade")
    return replace(shared, ring=lambda job_id, kind: rung.append((job_id, kind)))


def submitted(context: Context, kind: str = "ingest", **payload: Any) -> uuid.UUID:
    with context.db.transaction() as session:
        return job_record.submit(session, kind, kind, payload)


def claim(context: Context, job_id: uuid.UUID, lease_s: float = 30) -> ClaimedJob | None:
    with context.db.transaction() as session:
        return job_record.claim(session, job_id, lease_s)


def expire_lease(context: Context, job_id: uuid.UUID) -> None:
    sql(context, "update jobs set lease_until = now() - interval '1 s' where id = %s", job_id)


def make_due(context: Context) -> None:
    sql(context, "update jobs set run_after = now()")


def handled(
    run: Callable[[Context, ClaimedJob, Lease], Outcome], **kwargs: Any
) -> dict[str, Handler]:
    return {"ingest": Handler(run, **kwargs)}


def finishing(context: Context, _job: ClaimedJob, lease: Lease) -> Outcome:
    with context.db.transaction() as session:
        lease.finish(session, {"frames": 1})
    return "finished"


def test_a_job_has_one_claimer_among_many(context: Context) -> None:
    job_id = submitted(context)
    gate = threading.Barrier(8)

    def try_to_claim(_: int) -> ClaimedJob | None:
        gate.wait()
        return claim(context, job_id)

    with ThreadPoolExecutor(8) as threads:
        for _ in range(5):
            claims = list(threads.map(try_to_claim, range(8)))
            won = [found for found in claims if found is not None]
            assert len(won) == 1
            with context.db.transaction() as session:
                assert job_record.requeue(session, job_id, won[0].token)


def test_a_claim_waits_for_nobody(context: Context) -> None:
    """A row locked by another claimer counts as taken."""
    job_id = submitted(context)
    with context.db.transaction() as holder:
        assert job_record.claim(holder, job_id, 30)
        assert claim(context, job_id) is None


def test_bells_rung_twice_run_a_job_once(context: Context) -> None:
    job_id = submitted(context)
    runs = []

    def run(context: Context, claimed: ClaimedJob, lease: Lease) -> Outcome:
        runs.append(claimed.token)
        run_job(context, job_id, handled(run))  # a second bell while it runs
        return finishing(context, claimed, lease)

    for _ in range(3):
        run_job(context, job_id, handled(run))
    assert len(runs) == 1
    done = job(context, job_id)
    assert (done.state, done.progress) == ("done", {"frames": 1})
    assert done.finished_at is not None
    assert done.lease_token is None


def test_a_bell_for_an_unknown_job_is_harmless(context: Context) -> None:
    run_job(context, uuid.uuid4(), {})


def test_a_job_put_off_is_not_yet_to_be_taken(context: Context) -> None:
    job_id = submitted(context)
    sql(context, "update jobs set run_after = now() + interval '1 hour'")
    assert claim(context, job_id) is None


def test_after_a_take_over_the_first_worker_records_nothing(context: Context) -> None:
    """The first worker is slow, not dead: its results come after another one took the job."""
    job_id = submitted(context)
    raised: list[LeaseLost] = []

    def slow(context: Context, _claimed: ClaimedJob, lease: Lease) -> Outcome:
        expire_lease(context, job_id)
        run_job(context, job_id, handled(finishing))
        for record in (lease.record_progress, lease.finish):
            try:
                with context.db.transaction() as session:
                    video_record.ensure_camera(session, "written by the slow one")
                    record(session, {"frames": 99})
            except LeaseLost as error:
                raised.append(error)
        raise raised[-1]

    run_job(context, job_id, handled(slow))
    assert len(raised) == 2
    assert str(job_id) in str(raised[0])
    done = job(context, job_id)
    assert (done.state, done.progress) == ("done", {"frames": 1})
    assert sql(context, "select count(*) from cameras") == [(0,)]


def test_a_take_over_waits_for_results_being_recorded(context: Context) -> None:
    """Progress and results are one transaction: while it is open nobody takes the job."""
    job_id = submitted(context)
    first = claim(context, job_id)
    assert first is not None
    expire_lease(context, job_id)
    with context.db.transaction() as session:
        assert job_record.record_progress(session, job_id, first.token, {"frames": 1}, 30)
        assert claim(context, job_id) is None
    assert claim(context, job_id) is None
    expire_lease(context, job_id)
    assert claim(context, job_id) is not None


@pytest.mark.parametrize("ending", ["yield", "failure", "retry"])
def test_a_loser_does_not_change_the_job_by_its_end(context: Context, ending: str) -> None:
    job_id = submitted(context)
    taken: list[ClaimedJob | None] = []

    def slow(context: Context, _claimed: ClaimedJob, _lease: Lease) -> Outcome:
        expire_lease(context, job_id)
        taken.append(claim(context, job_id))
        if ending == "failure":
            raise VideoInvalid("too late")
        if ending == "retry":
            raise StorageFull("too late")
        return "yield"

    run_job(context, job_id, handled(slow))
    found = job(context, job_id)
    assert taken[0] is not None
    assert (found.state, found.lease_token) == ("running", taken[0].token)
    assert found.error_code is None
    assert found.retry_code is None


def test_surroundings_that_fail_do_not_use_up_attempts(context: Context, rung: Rung) -> None:
    context = with_settings(context, job_max_attempts=2)
    job_id = submitted(context)

    def full(_context: Context, _job: ClaimedJob, _lease: Lease) -> Outcome:
        raise StorageFull("no space on /data")

    for _ in range(5):
        run_job(context, job_id, handled(full))
        found = job(context, job_id)
        assert (found.state, found.attempts) == ("queued", 0)
        assert (found.retry_code, found.retry_detail) == ("storage_full", "no space on /data")
        assert found.run_after > found.created_at
        make_due(context)
    run_job(context, job_id, handled(finishing))
    found = job(context, job_id)
    assert (found.state, found.retry_code, found.retry_detail) == ("done", None, None)


def test_a_database_lost_in_mid_job_is_a_retry(context: Context) -> None:
    job_id = submitted(context)

    def cut_off(context: Context, _job: ClaimedJob, lease: Lease) -> Outcome:
        with context.db.transaction() as session:
            lease.finish(session, {"frames": 1})
            url = psycopg_url(str(context.settings.database_url))
            with psycopg.connect(url, autocommit=True) as killer:
                killer.execute(
                    "select pg_terminate_backend(pid, 10000) from pg_stat_activity where"
                    " application_name = 'ris tests' and datname = current_database()"
                )
        return "finished"

    run_job(context, job_id, handled(cut_off))
    found = job(context, job_id)
    assert (found.state, found.retry_code, found.attempts) == ("queued", "service_unavailable", 0)


def test_a_typed_refusal_fails_at_once_and_is_noted_by_the_kind(context: Context) -> None:
    job_id = submitted(context, segment_id=7)
    noted: list[tuple[int, str]] = []

    def refuse(_context: Context, _job: ClaimedJob, _lease: Lease) -> Outcome:
        raise VideoInvalid("/a.mp4 holds no video stream")

    def note(_session: Session, claimed: ClaimedJob, code: str) -> None:
        noted.append((claimed.payload["segment_id"], code))

    run_job(context, job_id, handled(refuse, on_fail=note))
    assert noted == [(7, "video_invalid")]
    state = job_state(context, job_id)
    assert (state["state"], state["error_code"]) == ("failed", "video_invalid")
    assert state["error_detail"] == "/a.mp4 holds no video stream"
    run_job(context, job_id, handled(finishing))
    assert job(context, job_id).state == "failed"


def broken(_context: Context, _job: ClaimedJob, _lease: Lease) -> Outcome:
    raise ZeroDivisionError("a fault of ours")


def test_unexpected_errors_are_tried_again_a_few_times(context: Context) -> None:
    context = with_settings(context, job_max_attempts=3)
    job_id = submitted(context)
    for attempt in (1, 2):
        run_job(context, job_id, handled(broken))
        found = job(context, job_id)
        assert (found.state, found.attempts) == ("queued", attempt)
        assert found.retry_code == "internal"
        make_due(context)
    run_job(context, job_id, handled(broken))
    found = job(context, job_id)
    assert (found.state, found.error_code) == ("failed", "internal")
    assert found.error_detail == "ZeroDivisionError: a fault of ours"


def test_a_try_that_made_progress_is_not_the_last_one(context: Context) -> None:
    """Attempts are counted in a row without progress, the running one included."""
    context = with_settings(context, job_max_attempts=2)
    job_id = submitted(context)
    run_job(context, job_id, handled(broken))
    make_due(context)

    def some_progress(context: Context, claimed: ClaimedJob, lease: Lease) -> Outcome:
        with context.db.transaction() as session:
            lease.record_progress(session, {"frames": 4})
        return broken(context, claimed, lease)

    run_job(context, job_id, handled(some_progress))
    found = job(context, job_id)
    assert (found.state, found.progress) == ("queued", {"frames": 4})


def test_progress_resets_attempts(context: Context) -> None:
    job_id = submitted(context)
    for _ in range(3):
        assert claim(context, job_id) is not None
        expire_lease(context, job_id)
    last = claim(context, job_id)
    assert last is not None
    assert last.attempts == 4
    with context.db.transaction() as session:
        assert job_record.record_progress(session, job_id, last.token, {"frames": 1}, 30)
    assert job(context, job_id).attempts == 0


def test_workers_that_vanish_again_and_again_end_the_job(context: Context) -> None:
    """A job that kills its worker must not kill workers for ever."""
    context = with_settings(context, job_max_attempts=3)
    job_id = submitted(context)
    for _ in range(3):
        assert claim(context, job_id) is not None  # and the worker is gone
        expire_lease(context, job_id)
    noted: list[str] = []
    handlers = handled(finishing, on_fail=lambda _session, _job, code: noted.append(code))
    run_job(context, job_id, handlers)
    found = job(context, job_id)
    assert (found.state, found.error_code) == ("failed", "worker_lost")
    assert "3 attempts" in str(found.error_detail)
    assert noted == ["worker_lost"]


def test_a_slice_yields_and_rings_for_the_next(context: Context, rung: Rung) -> None:
    context = with_settings(context, job_slice_s=0.0)
    job_id = submitted(context)
    slices = []

    def sliced(context: Context, claimed: ClaimedJob, lease: Lease) -> Outcome:
        slices.append(claimed.attempts)
        if len(slices) == 3:
            return finishing(context, claimed, lease)
        with context.db.transaction() as session:
            lease.record_progress(session, {"slices": len(slices)})
        assert lease.slice_over()
        return "yield"

    for expected in ("queued", "queued", "done"):
        run_job(context, job_id, handled(sliced))
        assert job(context, job_id).state == expected
    assert rung == [(job_id, "ingest")] * 2
    assert slices == [1, 1, 1]


def test_a_fresh_lease_has_time_left(context: Context) -> None:
    claimed = ClaimedJob(uuid.uuid4(), "ingest", {}, uuid.uuid4(), 1)
    assert not Lease(with_settings(context, job_slice_s=600.0), claimed).slice_over()


def test_the_heartbeat_keeps_a_long_job(context: Context) -> None:
    """The job runs past the end of its first lease, and nobody can take it over."""
    context = with_settings(context, job_lease_s=1.2)
    job_id = submitted(context)
    first_until = []

    def long(context: Context, claimed: ClaimedJob, lease: Lease) -> Outcome:
        until = job(context, job_id).lease_until
        first_until.append(until)
        deadline_s = time.monotonic() + 30
        while sql(context, "select now() < %s", until) == [(True,)]:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        assert claim(context, job_id) is None
        return finishing(context, claimed, lease)

    run_job(context, job_id, handled(long))
    assert first_until
    assert job(context, job_id).state == "done"


def rung_by_sweep(context: Context, rung: Rung, waiting: dict[str, int] | None = None) -> Rung:
    rung.clear()
    count = sweep(context, lambda queue: (waiting or {}).get(queue, 0))
    assert count == len(rung)
    return list(rung)


def forget_rings(context: Context) -> None:
    """As if the last ring were longer ago than a sweep's distance."""
    sql(context, "update jobs set rung_at = rung_at - interval '1 hour'")


def test_sweep_rings_for_lost_bells_once_per_round(context: Context, rung: Rung) -> None:
    job_id = submitted(context)
    assert rung_by_sweep(context, rung) == [(job_id, "ingest")]
    assert rung_by_sweep(context, rung) == []
    forget_rings(context)
    assert rung_by_sweep(context, rung) == [(job_id, "ingest")]


def test_sweep_rings_for_orphans_only_once_their_lease_ended(context: Context, rung: Rung) -> None:
    job_id = submitted(context)
    assert claim(context, job_id) is not None
    assert rung_by_sweep(context, rung) == []
    expire_lease(context, job_id)
    assert rung_by_sweep(context, rung) == [(job_id, "ingest")]
    run_job(context, job_id, handled(finishing))
    forget_rings(context)
    assert rung_by_sweep(context, rung) == []


def test_sweep_does_not_pile_up_bells_of_a_busy_queue(context: Context, rung: Rung) -> None:
    waiting = submitted(context)
    other = submitted(context, "query")
    assert {job_id for job_id, _ in rung_by_sweep(context, rung)} == {waiting, other}
    forget_rings(context)
    assert rung_by_sweep(context, rung, {"ingest": 3}) == [(other, "query")]
    forget_rings(context)
    new = submitted(context)
    assert (new, "ingest") in rung_by_sweep(context, rung, {"ingest": 3, "query": 1})
    assert (waiting, "ingest") not in rung


def test_sweep_leaves_jobs_that_are_put_off_and_those_that_ended(
    context: Context, rung: Rung
) -> None:
    ended = submitted(context)
    run_job(context, ended, handled(finishing))
    submitted(context)
    sql(context, "update jobs set run_after = now() + interval '1 hour' where state = 'queued'")
    assert rung_by_sweep(context, rung) == []


def test_two_sweepers_share_the_work(context: Context, rung: Rung) -> None:
    submitted(context)
    with context.db.transaction() as session:
        assert len(job_record.take_due(session, 10.0)) == 1
        with context.db.transaction() as other:
            assert job_record.take_due(other, 10.0) == []


def test_a_retried_job_is_found_by_the_sweeper(context: Context, rung: Rung) -> None:
    job_id = submitted(context)
    assert rung_by_sweep(context, rung) == [(job_id, "ingest")]
    run_job(context, job_id, handled(broken))
    make_due(context)
    assert rung_by_sweep(context, rung) == [(job_id, "ingest")]


def test_open_jobs_are_counted(context: Context) -> None:
    first = submitted(context)
    submitted(context)
    assert claim(context, first) is not None
    with context.db.transaction() as session:
        assert job_record.count_open(session) == {"queued": 1, "running": 1}
    assert len(queued_jobs(context)) == 1


def test_an_unknown_job_is_not_found(context: Context) -> None:
    job_id = uuid.uuid4()
    with pytest.raises(NotFound, match=str(job_id)):
        job_state(context, job_id)
