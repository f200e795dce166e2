"""Whose query runs next: those who ask take turns, whoever was rung for."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from models.repositories import jobs as job_record
from models.repositories import search as search_record
from models.search import SearchQuery
from tests.conftest import Services
from tests.parts import fresh_context, job, sql
from worker.accepting.desk import COMMAND_LINE
from worker.accepting.keys import create_key
from worker.context import Context
from worker.jobs import Handler, run_rung


@pytest.fixture(scope="module")
def shared(
    services: Services, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Context]:
    folder = tmp_path_factory.mktemp("turns")
    with fresh_context(services.database_url, template_database, folder, job_lease_s=30) as made:
        yield made


@pytest.fixture
def context(shared: Context) -> Context:
    sql(shared, "truncate jobs, api_keys cascade")
    return shared


def key(context: Context, name: str) -> int:
    with context.db.transaction() as session:
        made, _ = create_key(session, COMMAND_LINE, name=name, actions=["search"])
        return made.id


def asked(context: Context, key_id: int | None, count: int = 1) -> list[uuid.UUID]:
    """Jobs of queries of that key, or of the command line; each a moment later."""
    made = []
    for _ in range(count):
        with context.db.transaction() as session:
            job_id = job_record.submit(session, "query", "query", {})
            session.add(
                SearchQuery(
                    id=uuid.uuid4(), job_id=job_id, picture_sha256="0" * 64, roi={}, params={},
                    key_id=key_id,
                )
            )  # fmt: skip
        made.append(job_id)
    return made


def ran(context: Context, bells: list[uuid.UUID]) -> list[uuid.UUID]:
    """What a worker runs that hears these bells one after another."""
    order: list[uuid.UUID] = []

    def note(_context: Context, claimed: job_record.ClaimedJob, lease: object) -> str:
        order.append(claimed.id)
        with context.db.transaction() as session:
            job_record.finish(session, claimed.id, claimed.token)
        return "finished"

    for bell in bells:
        run_rung(context, bell, {"query": Handler(note), "changes": Handler(note)})  # type: ignore[arg-type]
    return order


def test_one_with_many_does_not_keep_the_others_waiting(context: Context) -> None:
    many, one = key(context, "many"), key(context, "one")
    a, b, c = asked(context, many, 5), asked(context, one, 2), asked(context, None, 1)
    order = ran(context, [*a, *b, *c])
    assert order == [a[0], b[0], c[0], a[1], b[1], a[2], a[3], a[4]]
    assert all(job(context, job_id).state == "done" for job_id in order)


def test_who_comes_later_is_next(context: Context) -> None:
    many, one = key(context, "many"), key(context, "one")
    a = asked(context, many, 4)
    assert ran(context, a[:2]) == a[:2]
    b = asked(context, one)
    assert ran(context, [a[2], a[3], b[0]]) == [b[0], a[2], a[3]]


def test_queries_that_run_are_turns_taken(context: Context) -> None:
    """As long as two of one run, those of the other come first."""
    many, one = key(context, "many"), key(context, "one")
    a, b = asked(context, many, 4), asked(context, one, 3)
    sql(
        context,
        "update jobs set state = 'running', lease_token = gen_random_uuid(),"
        " lease_until = now() + interval '60 s' where id = any(%s)",
        a[:2],
    )
    assert ran(context, [a[2], a[3], *b]) == [*b, *a[2:]]


def test_a_backlog_of_hours_is_no_advantage(context: Context) -> None:
    many, one = key(context, "many"), key(context, "one")
    a = asked(context, many, 4)
    for table in ("jobs", "search_queries"):
        sql(context, f"update {table} set created_at = created_at - interval '2 h'")
    assert ran(context, a[:1]) == a[:1]
    b = asked(context, one, 2)
    assert ran(context, [*a[1:], *b]) == [b[0], a[1], b[1], a[2], a[3]]


def test_what_is_put_off_waits_and_what_was_left_is_taken(context: Context) -> None:
    one = key(context, "one")
    a = asked(context, one, 3)
    sql(context, "update jobs set run_after = now() + interval '1 h' where id = %s", a[0])
    sql(
        context,
        "update jobs set state = 'running', lease_token = gen_random_uuid(),"
        " lease_until = now() - interval '1 s' where id = %s",
        a[1],
    )
    assert ran(context, a) == [a[1], a[2]]


def test_bells_of_other_kinds_are_their_own(context: Context) -> None:
    a = asked(context, None)
    with context.db.transaction() as session:
        other = job_record.submit(session, "changes", "query", {})
    assert ran(context, [other]) == [other]
    assert ran(context, [other]) == [], "that bell is no query's"
    assert job(context, a[0]).state == "queued"
    assert ran(context, [uuid.uuid4()]) == []


def test_workers_that_hear_at_once_take_one_each(context: Context) -> None:
    bells = asked(context, key(context, "many"), 24)
    taken, lock, begun = list[uuid.UUID](), threading.Lock(), threading.Barrier(4)

    def run(_context: Context, claimed: job_record.ClaimedJob, lease: object) -> str:
        with lock:
            taken.append(claimed.id)
        time.sleep(0.01)
        with context.db.transaction() as session:
            job_record.finish(session, claimed.id, claimed.token)
        return "finished"

    def worker(mine: list[uuid.UUID]) -> None:
        begun.wait()
        for bell in mine:
            run_rung(context, bell, {"query": Handler(run)})  # type: ignore[arg-type]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(worker, [bells[first::4] for first in range(4)]))
    assert sorted(taken) == sorted(bells)


def in_turn(context: Context, rung: uuid.UUID) -> list[uuid.UUID]:
    with context.db.transaction() as session:
        return search_record.queries_in_turn(session, rung, 64)


def test_ten_thousand_of_one_key_leave_the_turn_to_another(context: Context) -> None:
    many, one = key(context, "many"), key(context, "one")
    sql(
        context,
        "with made as (insert into jobs (id, kind, queue, payload)"
        " select gen_random_uuid(), 'query', 'query', '{}' from generate_series(1, 10000)"
        " returning id) insert into search_queries (id, job_id, picture_sha256, roi, params,"
        " key_id) select gen_random_uuid(), id, repeat('0', 64), '{}', '{}', %s from made",
        many,
    )
    sql(context, "analyze")
    b = asked(context, one, 2)
    first = in_turn(context, b[1])
    assert len(first) == 64
    assert b[0] in first[:2] and b[1] in first[2:4]
