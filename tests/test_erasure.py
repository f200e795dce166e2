"""Erasure: what was ordered away is nowhere, and nothing else has changed."""

from __future__ import annotations

import json
import os
import random
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import worker.erasure
import worker.repair
from models.repositories import jobs as job_record
from models.repositories import search as search_record
from tests.parts import (
    HANDLERS,
    ingested,
    job,
    loaded,
    queued_jobs,
    run_jobs,
    sql,
    with_settings,
)
from tests.searching import asked, flip, fresh, scores
from worker.backbones.base import Backbone
from worker.context import Context
from worker.core.sampling import IntervalPolicy
from worker.core.search_params import Strategy
from worker.core.types import Descriptors
from worker.erasure import (
    camera_span,
    order_again,
    receipts,
    submit_erasure,
)
from worker.errors import InputInvalid, NotFound
from worker.generations import require_live_generation
from worker.index.layout import HEADER_BYTES, ShardLayout
from worker.index.shard import hold_shard
from worker.ingest import submit_file
from worker.jobs import run_job
from worker.leftovers import remove_leftovers, remove_stray_shards, remove_strays
from worker.messages import QUERY_QUEUE
from worker.pinning import spec_of
from worker.reindex import submit_reindex
from worker.repair import repair_index
from worker.retention import set_retention, submit_due
from worker.verify import verify_index

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def indexed(context: Context, footage: dict[str, Path]) -> Context:
    """Ten frames of one camera in shard 1, two of another in shard 2."""
    made = loaded(with_settings(context, backbone="tiny-a"))
    ingested(made, footage["car"], "call", 0.4, start_utc=START)
    ingested(made, footage["bikes"], "street", 5.0, start_utc=START)
    return made


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def erased(
    context: Context, camera: str, from_s: float | None = None, to_s: float | None = None
) -> dict[str, Any]:
    """Order an erasure, carry it out, and return its receipt."""
    span, _ = camera_span(
        context,
        camera,
        None if from_s is None else at(from_s),
        None if to_s is None else at(to_s),
    )
    job_id = submit_erasure(context, span)
    run_jobs(context)
    assert job(context, job_id).state == "done", job(context, job_id).retry_detail
    return receipts(context)[-1]


def blocks(context: Context) -> dict[tuple[int, int], tuple[bytes, bytes]]:
    """Stored global and patch bytes by (generation, frame id), as f_map says."""
    found = {}
    query = (
        "select s.generation_id, r.frame_id, s.id, s.revision, r.start_row / r.row_count"
        " from f_map_runs r join shards s on s.id = r.shard_id"
    )
    for generation_id, frame_id, shard_id, revision, block in sql(context, query):
        name = f"s{shard_id}.{revision}" if revision else f"s{shard_id}"
        folder = context.index.root / f"g{generation_id}" / name
        parts = []
        for kind in ("global", "patch"):
            content = (folder / f"{kind}.vec").read_bytes()
            fields = json.loads(content.split(b"\n")[1])
            size = int(np.prod(fields["block_shape"]))  # int8
            start = HEADER_BYTES + block * size
            parts.append(content[start : start + size])
        found[generation_id, frame_id] = (parts[0], parts[1])
    return found


def everything(context: Context) -> bytes:
    """Every byte of the data folder's files, and every row of every table as text."""
    files = [path.read_bytes() for path in context.settings.data_dir.rglob("*") if path.is_file()]
    names = [str(path) for path in context.settings.data_dir.rglob("*")]
    tables = sql(context, "select tablename from pg_tables where schemaname = 'public' order by 1")
    rows = [str(sql(context, f"select * from {name}")) for (name,) in tables]
    return b"\0".join([*files, *(text.encode() for text in (*names, *rows))])


def markers(context: Context, camera: str, from_s: float, to_s: float) -> list[bytes]:
    """What must be found nowhere: pictures, their names, vectors and ids of the span's frames."""
    rows = sql(
        context,
        "select f.id, picture_sha256 from frames f join cameras c on c.id = camera_id"
        " where name = %s and t_utc >= %s and t_utc < %s",
        camera,
        at(from_s),
        at(to_s),
    )
    found = []
    stored = blocks(context)
    for frame_id, sha256 in rows:
        found += [sha256.encode(), context.pictures.path(sha256).read_bytes()[200:]]
        found += [part for key, parts in stored.items() if key[1] == frame_id for part in parts]
    assert found
    return found


def test_a_span_is_found_nowhere_and_the_rest_is_as_it_was(indexed: Context) -> None:
    """In the live, the retired and the failed generation; searched for and uploaded."""
    for _ in range(2):
        submit_reindex(indexed, "tiny-b")
        run_jobs(indexed)
    sql(indexed, "update index_generations set state = 'failed' where id = 1")
    ids = [i for (i,) in sql(indexed, "select id from frames where camera_id = 1 order by t_utc")]
    inside = sql(indexed, "select picture_sha256 from frames where id = %s", ids[4])[0][0]
    upload = indexed.pictures.path(inside).read_bytes()
    for given in ({"uploaded": True}, {"strategy": Strategy.MAX_SIM, "top_n": 100}):
        asked(indexed, **given)
    sql(indexed, "update search_queries set frame_id = %s where frame_id is not null", ids[3])
    indexed.uploads.put(upload)
    sql(indexed, "update search_queries set picture_sha256 = %s where frame_id is null", inside)
    before = blocks(indexed)
    planted = markers(indexed, "call", 1.0, 2.6)
    assert all(marker in everything(indexed) for marker in planted)

    receipt = erased(indexed, "call", 1.0, 2.6)

    assert [marker[:20] for marker in planted if marker in everything(indexed)] == []
    assert (receipt["frames"], receipt["pictures"], receipt["shards_rewritten"]) == (4, 4, 3)
    assert (receipt["queries"], receipt["state"], receipt["reason"]) == (2, "done", "request")
    gone = set(ids[3:7])
    assert blocks(indexed) == {key: value for key, value in before.items() if key[1] not in gone}
    assert sql(indexed, "select count(*) from search_hits")[0][0] < 11
    assert verify_index(indexed).problems == ()
    for reader in (indexed, fresh(indexed)):
        assert gone.isdisjoint(scores(asked(reader, strategy=Strategy.MAX_SIM, top_n=100)))


def test_a_camera_goes_whole_and_may_come_back(indexed: Context, footage: dict[str, Path]) -> None:
    receipt = erased(indexed, "call")
    assert (receipt["frames"], receipt["shards_removed"], receipt["shards_rewritten"]) == (10, 1, 0)
    assert not (indexed.index.root / "g1" / "s1").exists()
    assert sql(indexed, "select count(*) from video_segments") == [(1,)]
    assert len(list(indexed.pictures.root.rglob("*.jpg"))) == 2
    assert erased(indexed, "call")["frames"] == 0
    ingested(indexed, footage["car"], "call", 0.4, start_utc=START)
    assert sql(indexed, "select count(*) from frames") == [(12,)]
    assert verify_index(indexed).problems == ()


def test_any_order_of_erasures_keeps_the_rest_byte_for_byte(
    indexed: Context, footage: dict[str, Path]
) -> None:
    rng = random.Random(5)
    known = blocks(indexed)
    for number in range(12):
        from_s = rng.uniform(-0.5, 4.0)
        camera = rng.choice(["call", "street"])
        receipt = erased(indexed, camera, from_s, from_s + rng.uniform(0.1, 1.0))
        left = blocks(indexed)
        assert left == {key: known[key] for key in left}
        assert len(left) == len(known) - receipt["frames"]
        assert verify_index(indexed).problems == ()
        if number == 5:
            later = at(20 * number)
            ingested(indexed, footage["car"], "call", 1.0, start_utc=later)
            left = blocks(indexed)
        known = left
    files = list(indexed.index.root.rglob("*.vec"))
    assert len(files) == 2 * sql(indexed, "select count(*) from shards")[0][0]


def test_a_damaged_neighbour_stays_damaged_and_can_be_repaired(indexed: Context) -> None:
    path = indexed.index.root / "g1" / "s1" / "patch.vec"
    size = (path.stat().st_size - HEADER_BYTES) // 10
    for block in (2, 4):
        flip(path, HEADER_BYTES + block * size + 3)
    erased(indexed, "call", 1.4, 1.8)  # block 4, damaged, goes; block 2 stays as it is
    assert len(verify_index(indexed).problems) == 1
    assert repair_index(indexed).frames == 1
    assert verify_index(indexed).problems == ()
    assert sql(indexed, "select frame_count from shards order by id") == [(9,), (2,)]


def test_footage_accepted_before_the_order_is_not_recorded_after_it(
    indexed: Context, footage: dict[str, Path]
) -> None:
    later = at(100)
    submit_file(indexed, footage["car"], "call", IntervalPolicy(0.4), later)
    span, _ = camera_span(indexed, "call", at(101), at(102.6))
    waiting, order = queued_jobs(indexed)[0], submit_erasure(indexed, span)
    run_job(indexed, order, HANDLERS)
    run_job(indexed, waiting, HANDLERS)
    assert job(indexed, waiting).state == "done"
    recorded = "select count(*) from frames where t_utc >= %s and t_utc < %s"
    assert sql(indexed, recorded, at(101), at(102.6)) == [(0,)]
    assert sql(indexed, recorded, at(100), at(110)) == [(6,)]
    pictures = sql(indexed, "select count(distinct picture_sha256) from frames")[0][0]
    assert len(list(indexed.pictures.root.rglob("*.jpg"))) == pictures
    assert verify_index(indexed).problems == ()


class OrdersWhileEmbedding:
    """A backbone during whose first call the erasure of its camera is ordered."""

    def __init__(self, inner: Backbone, order: Callable[[], object]) -> None:
        self.spec = inner.spec
        self._inner = inner
        self._orders = [order]

    def embed(self, imgs_hwc: Any) -> Descriptors:
        if self._orders:
            self._orders.pop()()
        return self._inner.embed(imgs_hwc)


def test_a_batch_in_the_making_is_made_again_without_what_was_erased(
    indexed: Context, footage: dict[str, Path]
) -> None:
    submit_file(indexed, footage["car"], "call", IntervalPolicy(0.4), at(100))
    span, _ = camera_span(indexed, "call", at(100.4), at(101))
    backbone = OrdersWhileEmbedding(
        indexed.backbone("tiny-a"), lambda: submit_erasure(indexed, span)
    )
    busy = replace(indexed, backbone=lambda _name: backbone)
    waiting = queued_jobs(indexed)[0]
    run_job(busy, waiting, HANDLERS)
    assert job(busy, waiting).retry_code == "erased_meanwhile"
    kept = {sha for (sha,) in sql(indexed, "select picture_sha256 from frames")}
    assert {path.stem for path in indexed.pictures.root.rglob("*.jpg")} == kept
    run_jobs(indexed)
    times = sql(indexed, "select t_utc from frames where t_utc >= %s order by 1", at(100))
    assert len(times) == 8 and times[0] == (at(100),) and times[1][0] >= at(101)
    assert verify_index(indexed).problems == ()


@pytest.mark.parametrize("dies_at", ["remove_leftovers", "remove_strays"])
def test_what_a_crash_left_is_removed_by_the_next_try(
    indexed: Context, dies_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = markers(indexed, "call", 1.0, 2.6)
    span, _ = camera_span(indexed, "call", at(1.0), at(2.6))
    job_id = submit_erasure(indexed, span)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(worker.erasure, dies_at, dies)
        with pytest.raises(KeyboardInterrupt):
            run_job(indexed, job_id, HANDLERS)
    assert verify_index(indexed).problems == ()  # rows and what they name agree all the while
    sql(indexed, "update jobs set lease_until = now() - interval '1 second'")
    run_job(indexed, job_id, HANDLERS)
    assert job(indexed, job_id).state == "done"
    assert [marker[:20] for marker in planted if marker in everything(indexed)] == []
    assert receipts(indexed)[-1]["pictures"] == 4


def test_a_failed_erasure_is_told_and_a_later_one_makes_up_for_it(
    indexed: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = markers(indexed, "call", 1.0, 2.6)
    span, _ = camera_span(indexed, "call", at(1.0), at(2.6))
    job_id = submit_erasure(indexed, span)

    def fails(*_: object) -> None:
        raise InputInvalid("planted")

    with monkeypatch.context() as patched:
        patched.setattr(worker.erasure, "remove_leftovers", fails)
        run_job(indexed, job_id, HANDLERS)
    assert job(indexed, job_id).state == "failed"
    assert "order it again" in verify_index(indexed).problems[0]
    erased(indexed, "call", 1.0, 2.6)
    assert [marker[:20] for marker in planted if marker in everything(indexed)] == []
    assert verify_index(indexed).problems == ()


def test_what_is_noted_while_an_earlier_note_is_cleared_stays_noted(indexed: Context) -> None:
    """By the erasure's own worker, when a later erasure of the camera clears up behind it."""
    job_id = submit_erasure(indexed, camera_span(indexed, "call", at(1.0), at(2.6))[0])
    run_job(indexed, job_id, HANDLERS)
    (erasure_id,) = sql(indexed, "select id from erasures")[0]
    nothing: dict[str, Any] = {"pictures": [], "uploads": [], "objects": {}}
    first, second = ({"shards": [f"g1/s{i}"], **nothing} for i in (77, 78))
    noted = "update erasures set leftovers = %s returning leftovers"
    sql(indexed, noted, json.dumps(second))
    remove_leftovers(indexed, erasure_id, first)
    assert sql(indexed, "select leftovers from erasures") == [(second,)]
    remove_leftovers(indexed, erasure_id, second)
    assert sql(indexed, "select leftovers from erasures") == [({},)]


def test_searches_go_on_while_a_camera_is_erased(
    indexed: Context, footage: dict[str, Path]
) -> None:
    small = with_settings(indexed, shard_span_s=60)
    for number in range(1, 8):
        ingested(small, footage["car"], "call", 2.0, start_utc=at(60 * number))
    outcomes: list[object] = []
    stop = threading.Event()

    def search() -> None:
        while not stop.is_set():
            outcomes.append(len(asked(small, uploaded=True, top_n=100).hits))

    thread = threading.Thread(target=search)
    thread.start()
    try:
        erased(small, "call", 30, 400)
    finally:
        stop.set()
        thread.join()
    assert len(outcomes) > 1 and all(isinstance(n, int) and n > 0 for n in outcomes)
    assert len(asked(small, uploaded=True, top_n=100).hits) == 2 + 10 + 2
    assert verify_index(small).problems == ()


def test_a_reindex_under_way_goes_round_what_was_erased(indexed: Context) -> None:
    """Ordered and carried out while a batch of those very frames is being embedded."""
    submitted = submit_reindex(indexed, "tiny-b")
    span, _ = camera_span(indexed, "call", at(0.3), at(1.0))

    def order() -> None:
        run_job(indexed, submit_erasure(indexed, span), HANDLERS)

    backbone = OrdersWhileEmbedding(indexed.backbone("tiny-b"), order)
    run_job(replace(indexed, backbone=lambda _name: backbone), submitted.job_id, HANDLERS)
    run_jobs(indexed)
    assert job(indexed, submitted.job_id).state == "done"
    assert sql(indexed, "select count(*) from frames") == [(10,)]
    assert verify_index(indexed).problems == ()


def test_retention_erases_whole_spans_that_have_outlived_it(
    indexed: Context, footage: dict[str, Path]
) -> None:
    now = datetime.now(UTC)
    for hours in (30, 26, 25, 20, 1):
        ingested(indexed, footage["car"], "gate", 2.0, start_utc=now - timedelta(hours=hours))
    assert submit_due(indexed) == 0  # kept for ever, unless told otherwise
    set_retention(indexed, "gate", 1)
    assert (submit_due(indexed), submit_due(indexed)) == (1, 0)  # not again while under way
    run_jobs(indexed)
    oldest = sql(indexed, "select min(t_utc) from frames where camera_id = 3")[0][0]
    assert now - timedelta(hours=26) < oldest
    receipt = receipts(indexed)[-1]
    assert receipt["reason"] == "retention" and receipt["shards_rewritten"] == 0
    assert receipt["shards_removed"] in (2, 3)
    set_retention(indexed, "gate", 0)
    ruled = with_settings(indexed, retention_days=30)
    assert submit_due(ruled) == 2  # the two cameras of March; this one has its own rule
    run_jobs(ruled)
    assert sql(ruled, "select distinct camera_id from frames") == [(3,)]
    set_retention(ruled, "gate", None)
    assert submit_due(with_settings(ruled, retention_days=1)) == 0
    assert verify_index(ruled).problems == ()


def test_a_restored_backup_is_rid_of_what_was_erased_since(
    indexed: Context, footage: dict[str, Path]
) -> None:
    erased(indexed, "call", 1.0, 2.6)
    erased(indexed, "street", 4.0)
    orders = json.loads(json.dumps(receipts(indexed)))
    assert order_again(indexed, orders) == []  # known here
    sql(indexed, "delete from erasures")  # as the backup was: without receipts, with the frames
    sql(
        indexed,
        "delete from video_segments s where not exists"
        " (select from frames f where f.segment_id = s.id)",
    )
    ingested(indexed, footage["car"], "call", 0.2, start_utc=START)
    orders.append({"camera": "never here", "from": None, "to": None, "ordered": "x"})
    assert len(order_again(indexed, orders)) == 2
    run_jobs(indexed)
    inside = "select count(*) from frames where camera_id = 1 and t_utc >= %s and t_utc < %s"
    assert sql(indexed, inside, at(1.0), at(2.6)) == [(0,)]
    assert {r["reason"] for r in receipts(indexed)} == {"again"}
    for wrong in ({}, {**orders[0], "from": "yesterday"}, {**orders[0], "to": 3}):
        with pytest.raises(InputInvalid, match="not a list of receipts"):
            order_again(indexed, [wrong])


def test_strays_are_removed_and_nothing_else(indexed: Context) -> None:
    img_hwc = np.full((32, 32, 3), 5, np.uint8)
    old, young = indexed.pictures.put(img_hwc), indexed.pictures.put(img_hwc + 90)
    half = indexed.pictures.path(old.sha256).with_name(".half.tmp")
    half.write_bytes(b"x")
    asked(indexed, uploaded=True)
    stray = indexed.uploads.put(b"never asked")
    long_ago = time.time() - 7200
    for path in (*indexed.pictures.root.rglob("*"), *indexed.uploads.root.rglob("*")):
        if path.is_file() and path.stem != young.sha256:
            os.utime(path, (long_ago, long_ago))
    assert remove_strays(indexed) == 3
    assert not half.exists() and not (indexed.uploads.root / stray).exists()
    assert not indexed.pictures.has(old.sha256) and indexed.pictures.has(young.sha256)
    assert verify_index(indexed).problems == ()
    assert asked(indexed, uploaded=True).state == "done"


def test_an_upload_is_not_swept_while_a_query_is_made_from_it(indexed: Context) -> None:
    """It lay there unused, and old; the query's row is not committed yet."""
    stray = indexed.uploads.put(b"asked before")
    swept: list[int] = []
    sweep = threading.Thread(target=lambda: swept.append(remove_strays(indexed, -1.0)))
    with indexed.db.transaction() as session:
        search_record.lock_uploads(session, exclusive=False)
        sweep.start()
        sweep.join(0.5)
        assert sweep.is_alive() and (indexed.uploads.root / stray).exists()
        job_id = job_record.submit(session, "query", QUERY_QUEUE, {})
        search_record.create_query(
            session,
            query_id=uuid.uuid4(),
            job_id=job_id,
            frame_id=None,
            picture_sha256=stray,
            roi={"type": "box"},
            params={},
        )
    sweep.join(20)
    assert swept == [0] and (indexed.uploads.root / stray).exists()


def test_a_shard_that_cannot_be_written_anew_is_left_as_it_was(indexed: Context) -> None:
    before = blocks(indexed)
    span, _ = camera_span(indexed, "call", at(1.0), at(2.6))
    full = with_settings(indexed, min_free_bytes=2**62)
    job_id = submit_erasure(full, span)
    run_job(full, job_id, HANDLERS)
    assert job(full, job_id).retry_code == "storage_full"
    assert blocks(indexed) == before
    run_jobs(indexed)
    assert len(blocks(indexed)) == 8


def test_bad_orders_are_refused(indexed: Context) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        camera_span(indexed, "nowhere", None, None)
    with pytest.raises(InputInvalid, match="time zone"):
        camera_span(indexed, "call", START.replace(tzinfo=None), None)
    with pytest.raises(InputInvalid, match="swap"):
        camera_span(indexed, "call", at(5), at(5))
    assert receipts(indexed) == []
    for beyond in ("9999-12-31T23:59:59-05:00", "0001-01-01T00:00:00+14:00"):
        with pytest.raises(InputInvalid, match="outside what a date can say"):
            camera_span(indexed, "call", None, datetime.fromisoformat(beyond))
    whole = {"camera": "call", "from": None, "to": None, "ordered": "x"}
    bad = {**whole, "to": "9999-12-31T23:59:59-05:00"}
    with pytest.raises(InputInvalid):
        order_again(indexed, [whole, bad])
    assert receipts(indexed) == [], "none is ordered where one is wrong"


def test_what_was_erased_comes_back_when_it_is_ingested_again(
    indexed: Context, footage: dict[str, Path]
) -> None:
    before = sql(indexed, "select count(*) from frames where camera_id = 1")
    erased(indexed, "call", 1.0, 2.6)
    made = submit_file(indexed, footage["car"], "call", IntervalPolicy(0.4), START)
    assert made.is_new
    run_jobs(indexed)
    assert sql(indexed, "select count(*) from frames where camera_id = 1") == before
    assert verify_index(indexed).problems == ()
    assert not submit_file(indexed, footage["car"], "call", IntervalPolicy(0.4), START).is_new


def test_what_was_erased_before_it_was_recorded_comes_back_too(
    indexed: Context, footage: dict[str, Path]
) -> None:
    given = (footage["car"], "call", IntervalPolicy(0.4), at(100))
    submit_file(indexed, *given)
    waiting = queued_jobs(indexed)[0]
    span, _ = camera_span(indexed, "call", at(90), None)
    order = submit_erasure(indexed, span)
    with pytest.raises(InputInvalid, match="under way"):
        submit_file(indexed, *given)
    run_job(indexed, order, HANDLERS)
    run_job(indexed, waiting, HANDLERS)
    later = "select count(*) from frames where t_utc >= %s"
    assert sql(indexed, later, at(90)) == [(0,)]
    assert submit_file(indexed, *given).is_new
    run_jobs(indexed)
    assert sql(indexed, later, at(90)) == [(10,)]


def test_a_repair_and_an_erasure_do_not_write_over_each_other(
    indexed: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each finds the revision it was about to write taken by the other."""
    flip(indexed.index.root / "g1" / "s1" / "patch.vec", HEADER_BYTES + 1)

    def after_an_erasure(layout: ShardLayout) -> Any:
        monkeypatch.setattr(worker.repair, "hold_shard", hold_shard)
        erased(indexed, "call", 1.0, 2.6)
        return hold_shard(layout)

    monkeypatch.setattr(worker.repair, "hold_shard", after_an_erasure)
    assert repair_index(indexed).frames == 0  # looked at files that were replaced
    assert repair_index(indexed).frames == 1
    assert verify_index(indexed).problems == ()
    flip(indexed.index.root / "g1" / "s1.2" / "patch.vec", HEADER_BYTES + 1)

    def after_a_repair(*given: Any) -> Any:
        monkeypatch.setattr(worker.erasure, "_open_rewrite", opened)
        assert repair_index(indexed).frames == 1
        return opened(*given)

    opened = worker.erasure._open_rewrite
    monkeypatch.setattr(worker.erasure, "_open_rewrite", after_a_repair)
    erased(indexed, "call", 2.8, 3.3)
    assert verify_index(indexed).problems == ()
    assert sql(indexed, "select frame_count, revision from shards where id = 1") == [(4, 4)]


def test_strays_of_a_batch_that_was_erased_go_with_a_later_look(indexed: Context) -> None:
    erased(indexed, "street", 4.0)
    img_hwc = np.full((32, 32, 3), 5, np.uint8)
    stray = indexed.pictures.path(indexed.pictures.put(img_hwc).sha256)
    os.utime(stray, (time.time() - 7200,) * 2)
    submit_due(indexed)
    assert stray.exists()  # the erasure has only just ended: it may be about to be recorded
    sql(indexed, "update erasures set finished_at = now() - interval '2 hours'")
    submit_due(indexed)
    assert not stray.exists()


def test_vectors_of_a_writer_that_died_are_swept(indexed: Context) -> None:
    root = indexed.index.root / "g1"
    street = sql(indexed, "select id from shards where camera_id = 2")[0][0]
    for name in ("s77", "s1.1", f"s{street}.7", "other"):
        (root / name).mkdir()
        (root / name / "patch.vec").write_bytes(b"x")
    assert remove_stray_shards(indexed) == 0  # young
    with hold_shard(indexed.index.at_revision(layout_of(indexed), street, 7)):
        assert remove_stray_shards(indexed, older_than_s=-1) == 2
    assert remove_stray_shards(indexed, older_than_s=-1) == 1
    assert sorted(path.name for path in root.iterdir()) == ["other", "s1", f"s{street}"]


def layout_of(context: Context) -> ShardLayout:
    generation = require_live_generation(context)
    return context.index.layout(generation.id, 1, 0, spec_of(generation), generation.codec)
