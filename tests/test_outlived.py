"""Queries and jobs go when they were kept for their time, and nothing else does."""

from __future__ import annotations

import os
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.parts import HANDLERS, ingested, job, loaded, sql, with_settings
from tests.searching import asked
from worker.accepting.queries import submit_query
from worker.context import Context
from worker.core.search_params import SearchParams
from worker.core.types import Box
from worker.erasure import camera_span, submit_erasure
from worker.jobs import run_job
from worker.leftovers import STRAY_AFTER_S
from worker.retention import forget_outlived
from worker.verify import verify_index

LONG_AGO = "update jobs set finished_at = now() - interval '40 days' where id = %s"
BOX = Box(0.2, 0.2, 0.8, 0.8)


@pytest.fixture
def indexed(context: Context, footage: dict[str, Path]) -> Context:
    """A few frames of one camera."""
    made = loaded(with_settings(context, backbone="tiny-a"))
    start = datetime(2026, 3, 1, 12, tzinfo=UTC)
    ingested(made, footage["car"], "call", 1.0, start_utc=start)
    return made


def queries(context: Context) -> set[uuid.UUID]:
    return {row[0] for row in sql(context, "select id from search_queries")}


def test_queries_go_after_their_time_with_all_that_is_theirs(indexed: Context) -> None:
    old, new = (asked(indexed, uploaded=True).query for _ in range(2))
    other = asked(indexed).query
    sql(indexed, LONG_AGO, old.job_id)
    sql(indexed, LONG_AGO, other.job_id)
    forget_outlived(indexed)
    assert queries(indexed) == {old.id, new.id, other.id}  # for ever, unless told otherwise

    forget_outlived(with_settings(indexed, query_keep_days=30.0))
    assert queries(indexed) == {new.id}
    assert sql(indexed, "select distinct query_id from search_hits") == [(new.id,)]
    assert indexed.uploads.load(str(new.picture_sha256))  # the same picture is still asked with
    assert not (indexed.uploads.root / str(other.terms_sha256)).exists()
    acts = "select details from audit_entries where act = 'query.forget'"
    ((details,),) = sql(indexed, acts)
    assert details["queries"] == 2 and details["hits"] > 0

    sql(indexed, LONG_AGO, new.job_id)
    forget_outlived(with_settings(indexed, query_keep_days=30.0))
    assert not list(indexed.uploads.root.iterdir())
    assert not verify_index(indexed).problems


def test_an_upload_that_a_killed_worker_left_goes(indexed: Context) -> None:
    """No erasure has to come by, after which strays are swept."""
    names = [indexed.uploads.put(content) for content in (b"old", b"new")]
    long_ago_s = time.time() - 2 * STRAY_AFTER_S
    os.utime(indexed.uploads.root / names[0], (long_ago_s, long_ago_s))
    forget_outlived(indexed)
    assert len(list(indexed.uploads.root.iterdir())) == 2
    forget_outlived(with_settings(indexed, query_keep_days=30.0))
    assert [path.name for path in indexed.uploads.root.iterdir()] == [names[1]]


def test_what_is_not_answered_yet_stays(indexed: Context) -> None:
    frame_id = sql(indexed, "select min(id) from frames")[0][0]
    waiting = submit_query(indexed, BOX, SearchParams(), frame_id=frame_id)
    sql(indexed, "update search_queries set created_at = now() - interval '1 year'")
    forget_outlived(with_settings(indexed, query_keep_days=30.0))
    assert queries(indexed) == {waiting}


def test_jobs_go_once_nothing_names_them(indexed: Context) -> None:
    kept = [asked(indexed).query.job_id]
    ((ingest_id,),) = sql(indexed, "select job_id from video_segments")
    span, _ = camera_span(indexed, "call", datetime(2026, 3, 1, 12, 0, 4, tzinfo=UTC), None)
    erasure = submit_erasure(indexed, span, "request")
    run_job(indexed, erasure, HANDLERS)
    assert job(indexed, erasure).state == "done"
    kept += [ingest_id, erasure]
    made = (
        "insert into jobs (id, kind, queue, state, payload, finished_at, error_code) values"
        " (%s, 'compact', 'admin', %s, '{}', now() - interval '40 days', %s)"
    )
    ended, failed, open_one, fresh = (uuid.uuid4() for _ in range(4))
    sql(indexed, made, ended, "done", None)
    sql(indexed, made, failed, "failed", "internal")
    sql(indexed, made, open_one, "queued", None)
    sql(indexed, made, fresh, "done", None)
    for one in kept:
        sql(indexed, LONG_AGO, one)
    sql(indexed, "update jobs set finished_at = now() where id = %s", fresh)

    forget_outlived(with_settings(indexed, job_keep_days=0.0))
    assert sql(indexed, "select count(*) from jobs where id = %s", ended) == [(1,)]
    forget_outlived(with_settings(indexed, job_keep_days=30.0))
    left = {row[0] for row in sql(indexed, "select id from jobs")}
    assert left == {*kept, open_one, fresh}


def test_the_job_of_an_erased_query_ends(indexed: Context) -> None:
    """Else it would run once more, only to find nothing to do."""
    frame_id = sql(indexed, "select min(id) from frames")[0][0]
    waiting = submit_query(indexed, BOX, SearchParams(), frame_id=frame_id)
    ((job_id,),) = sql(indexed, "select job_id from search_queries where id = %s", waiting)
    span, _ = camera_span(indexed, "call", None, None)
    run_job(indexed, submit_erasure(indexed, span, "request"), HANDLERS)
    assert queries(indexed) == set()
    ended = job(indexed, job_id)
    assert (ended.state, ended.error_code) == ("failed", "not_found")
