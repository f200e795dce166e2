"""Sealed shards on object storage: searched as before, found when harmed, erased with the rest."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import psycopg
import pytest

from models.index import IndexGeneration
from models.repositories import index as index_record
from models.session import DatabaseUnavailable
from tests.conftest import REPO, Services, psycopg_url
from tests.object_server import ObjectServer, object_server
from tests.parts import (
    HANDLERS,
    acts,
    fresh_database,
    ingested,
    job,
    loaded,
    run_jobs,
    sql,
    with_settings,
)
from tests.searching import asked, flip, fresh, lost, scores
from worker import compacting, offloading, sealing
from worker.accepting.queries import QueryState
from worker.backup import back_up
from worker.context import Context
from worker.core.search_params import SearchParams, Strategy
from worker.core.types import Box
from worker.describe import describe_query
from worker.erasure import camera_span, receipts, submit_erasure
from worker.errors import ObjectStoreUnavailable
from worker.generations import require_live_generation
from worker.index import moved_file, part_cache, runs_file
from worker.index.layout import HEADER_BYTES
from worker.index.part_cache import PartCache, StoredObject
from worker.index.store import IndexStore, PinnedShard
from worker.jobs import run_job
from worker.leftovers import remove_stray_objects
from worker.moved import stored_object
from worker.objects.store import ObjectStore, open_store
from worker.offloading import bring_back
from worker.pinning import FMapCache, pin_shard
from worker.ranked_frame import QueryDescriptors
from worker.reindex import remove_generation, submit_reindex
from worker.repair import repair_index
from worker.restore import restore
from worker.runtime import make_context
from worker.search import search_generation
from worker.verify import verify_index

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
CACHE_BYTES = 64 * 1024 * 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    with object_server(tmp_path_factory.mktemp("objects")) as made:
        yield made


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, server: ObjectServer) -> Iterator[None]:
    monkeypatch.setattr(sealing, "MIN_FRAMES", 4)
    monkeypatch.setattr(sealing, "BLOCKS_AT_ONCE", 3)
    monkeypatch.setattr(sealing, "seal_distance", lambda _name: 0.2)
    monkeypatch.setattr(compacting, "MIN_FRAMES", 8)
    monkeypatch.setattr(compacting, "MIN_LAG", 1)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-that-nobody-logs")
    yield
    server.clear()


def with_objects(context: Context, server: ObjectServer, cache_bytes: int = CACHE_BYTES) -> Context:
    """As the composition root makes it."""
    data_dir = context.settings.data_dir.resolve()
    objects = open_store(
        server.url, data_dir / "objects.id", endpoint=server.endpoint, region="us-east-1"
    )
    parts = PartCache(data_dir / "cache" / "objects", cache_bytes, objects.read)
    return replace(context, objects=objects, index=IndexStore(context.index.root, parts))


@pytest.fixture
def indexed(context: Context, server: ObjectServer, footage: dict[str, Path]) -> Context:
    """Two cameras, coded and sealed; the first shard has 10 frames."""
    changes = {"seal_after_s": 0.0, "s3_after_s": 0.0, "job_lease_s": 60.0}
    made = loaded(with_settings(context, backbone="tiny-a", **changes))
    made = with_objects(made, server)
    ingested(made, footage["car"], "call", 0.4, start_utc=START)
    ingested(made, footage["bikes"], "street", 2.0, start_utc=START)
    seal(made)
    return made


def seal(context: Context) -> None:
    if compacting.submit_due(context):
        run_jobs(context)
    assert sealing.submit_due(context) is not None
    run_jobs(context)


def moved(context: Context) -> None:
    job_id = offloading.submit_due(context)
    assert job_id is not None
    assert offloading.submit_due(context) is None, "not again while it is under way"
    run_jobs(context)
    done = job(context, job_id)
    assert done.state == "done", (done.error_code, done.error_detail)
    assert sql(context, "select count(*) from shards where not object_only") == [(0,)]
    assert offloading.submit_due(context) is None


def pinned(context: Context, shard_id: int = 1) -> PinnedShard:
    with context.db.snapshot() as session:
        shard = index_record.find_shard(session, shard_id)
        assert shard is not None
        generation = index_record.find_generation(session, shard.generation_id)
        assert generation is not None
        return pin_shard(session, context.index, FMapCache(), generation, shard)


def patches(context: Context, shard_id: int = 1) -> np.ndarray:
    shard = pinned(fresh(context), shard_id)
    return shard.read("patch", np.arange(shard.blocks))


def away(state: QueryState) -> int:
    assert state.query.stats is not None
    return int(state.query.stats["frames_away"])


def objects_of(context: Context) -> ObjectStore:
    assert context.objects is not None
    return context.objects


def test_searches_answer_from_moved_shards_alike(indexed: Context, server: ObjectServer) -> None:
    before, ours = scores(asked(fresh(indexed))), patches(indexed)
    default = scores(asked(fresh(indexed), tau=None))
    moved(indexed)
    assert not list(indexed.index.root.rglob("patch.runs")), "they are not here any more"
    assert len(server.objects()) == 2
    answer = asked(fresh(indexed))
    assert scores(answer) == before and (lost(answer), away(answer)) == (0, 0)
    assert scores(asked(fresh(indexed), tau=None)) == default
    assert np.array_equal(patches(indexed), ours)
    assert verify_index(fresh(indexed)).problems == ()


def test_parts_of_any_size_make_up_the_same_rows(
    indexed: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small ones: rows lie across them, and each frame needs several."""
    ours = patches(indexed)
    for module in (part_cache, moved_file, runs_file):
        monkeypatch.setattr(module, "PART_BYTES", 1000)
    moved(indexed)
    assert len(pinned_object(indexed).crc32s) > 5
    assert np.array_equal(patches(indexed), ours)
    shard = pinned(fresh(indexed))
    for block in (0, 4, shard.blocks - 1):
        emptied(indexed)
        assert np.array_equal(shard.read("patch", [block])[0], ours[block])
    assert verify_index(fresh(indexed)).problems == ()


def free_port() -> int:
    """Where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pinned_object(context: Context, shard_id: int = 1) -> StoredObject:
    with context.db.transaction() as session:
        shard = index_record.find_shard(session, shard_id)
    assert shard is not None
    return stored_object(shard)


def emptied(context: Context) -> None:
    assert context.index.parts is not None
    assert context.index.parts.discard_all_but([]) >= 0


def key_of(url: str) -> str:
    return url.removeprefix("s3://footage/")


@pytest.mark.parametrize("where", ["row", "runs", "cut", "gone", "other"])
def test_a_harmed_object_is_damage_and_repaired(
    indexed: Context, server: ObjectServer, where: str
) -> None:
    before = scores(asked(fresh(indexed)))
    moved(indexed)
    key = key_of(pinned_object(indexed).url)
    body = server.everything()[key]
    at = HEADER_BYTES + 3 if where == "row" else len(body) - 3
    if where == "gone":
        server.remove(key)
    elif where == "cut":
        server.put(key, body[: HEADER_BYTES + 5])
    elif where == "other":
        server.put(key, bytes(len(body)))
    else:
        server.put(key, body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :])
    emptied(indexed)
    found = verify_index(fresh(indexed)).problems
    assert len(found) == 10 and all("patch.runs" in problem for problem in found)
    answer = asked(fresh(indexed))
    assert (lost(answer), away(answer)) == (10, 0)
    report = repair_index(fresh(indexed))
    assert (report.problems, report.repaired, report.frames) == ((), 1, 10)
    assert verify_index(fresh(indexed)).problems == ()
    assert key not in server.everything(), "what was replaced is not kept"
    assert len(scores(asked(fresh(indexed)))) == len(before)
    seal(indexed)
    moved(indexed)
    assert verify_index(fresh(indexed)).problems == ()


def test_an_object_that_is_short_by_whole_parts_is_read_as_far_as_it_goes(
    server: ObjectServer, tmp_path: Path
) -> None:
    store = open_store(
        server.url, tmp_path / "objects.id", endpoint=server.endpoint, region="us-east-1"
    )
    server.put("ris/index/short.runs", bytes(1000))
    spans = [(0, 800), (800, 1600), (1600, 2400), (2400, 3200)]
    found = store.read(f"{server.url}/short.runs", spans)
    assert [len(body) for body in found] == [800, 200, 0, 0]


def test_harm_on_its_way_is_not_damage(indexed: Context) -> None:
    moved(indexed)
    real, harmed = objects_of(indexed).read, list[str]()

    def once(url: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        bodies = real(url, spans)
        if not harmed:
            harmed.append(url)
            return [bytes([body[0] ^ 1]) + body[1:] for body in bodies]
        return bodies

    assert indexed.index.parts is not None
    parts = replace(indexed.index.parts, fetch=once)
    reader = replace(indexed, index=IndexStore(indexed.index.root, parts))
    assert verify_index(fresh(reader)).problems == () and harmed


def test_without_the_store_a_search_answers_from_what_is_here_and_says_so(
    indexed: Context, server: ObjectServer, footage: dict[str, Path]
) -> None:
    moved(indexed)
    whole = asked(fresh(indexed))
    ingested(indexed, footage["bikes"], "street", 2.0, start_utc=START + timedelta(hours=3))
    emptied(indexed)
    gone = with_objects(indexed, replace(server, port=free_port()))
    answer = asked(fresh(gone))
    assert (lost(answer), away(answer)) == (0, 15)
    assert len(answer.hits) == 5, "the late frames are here"
    # Whoever moved it died between removing the local copy and saying so.
    sql(indexed, "update shards set object_only = false where id = 1 returning id")
    assert away(asked(fresh(gone), tau=None)) == 15
    sql(indexed, "update shards set object_only = true where id = 1 returning id")
    cameras = sql(indexed, "select id from cameras where name = 'street'")[0]
    assert away(asked(fresh(gone), camera_ids=cameras)) == 5, "of those that were asked for"
    problems = verify_index(fresh(gone)).problems
    assert len(problems) == 2 and all("cannot be used" in problem for problem in problems)
    report = repair_index(fresh(gone))
    assert len(report.problems) == 2 and report.repaired == 0, "nothing is given up for that"
    assert len(asked(fresh(indexed)).hits) == len(whole.hits) + 5, "and it is back"
    assert verify_index(fresh(indexed)).problems == ()


def test_what_was_read_last_is_searched_without_the_store(
    indexed: Context, server: ObjectServer
) -> None:
    moved(indexed)
    before = scores(asked(fresh(indexed)))
    gone = with_objects(indexed, replace(server, port=free_port()))
    answer = asked(fresh(gone))
    assert scores(answer) == before and away(answer) == 0


def test_another_bucket_is_no_damage(indexed: Context, server: ObjectServer) -> None:
    moved(indexed)
    emptied(indexed)
    kept = server.everything()
    server.clear()
    assert away(asked(fresh(indexed))) == 15
    assert all("does not hold this index" in one for one in verify_index(fresh(indexed)).problems)
    for key, body in kept.items():
        server.put(key, body)
    objects_of(indexed).check()
    assert verify_index(fresh(indexed)).problems == ()
    unset = replace(indexed, objects=None, index=IndexStore(indexed.index.root))
    assert away(asked(fresh(unset))) == 15
    assert all("RIS_S3_URL" in problem for problem in verify_index(fresh(unset)).problems)


def test_jobs_that_need_the_store_wait_for_it(indexed: Context, server: ObjectServer) -> None:
    gone = with_objects(indexed, replace(server, port=free_port()))
    job_id = offloading.submit_due(gone)
    assert job_id is not None
    run_job(gone, job_id, HANDLERS)
    waiting = job(indexed, job_id)
    assert (waiting.state, waiting.retry_code) == ("queued", "object_store_unavailable")
    assert "a-secret" not in str(waiting.retry_detail)
    run_jobs(indexed)
    assert job(indexed, job_id).state == "done"
    assert len(server.objects()) == 2


def test_an_erasure_removes_objects_and_says_so(indexed: Context, server: ObjectServer) -> None:
    moved(indexed)
    shard = pinned(indexed)
    kept = patches(indexed)
    erased_rows = [
        shard.layout.codec.encode(patch)[cell].tobytes()
        for patch in kept[:3]
        for cell in range(0, 16, 5)
    ]
    asked(fresh(indexed))
    span, _ = camera_span(indexed, "call", START, START + timedelta(seconds=1.5))
    submit_erasure(indexed, span)
    run_jobs(indexed)
    (receipt,) = receipts(indexed)
    assert (receipt["objects"], receipt["shards_rewritten"]) == (1, 1)
    assert len(server.objects()) == 1
    assert np.array_equal(patches(indexed), kept[10 - counts(indexed)[1] :])
    first = kept[0]
    assert not (first == patches(indexed)[:, None]).all(axis=(2, 3)).any()
    assert verify_index(fresh(indexed)).problems == ()
    seal(indexed)
    moved(indexed)
    submit_erasure(indexed, camera_span(indexed, "call", None, None)[0])
    submit_erasure(indexed, camera_span(indexed, "street", None, None)[0])
    run_jobs(indexed)
    assert [receipt["objects"] for receipt in receipts(indexed)] == [1, 1, 1]
    everywhere = [*server.everything().values()]
    everywhere += [path.read_bytes() for path in indexed.index.root.rglob("*") if path.is_file()]
    cache = indexed.settings.data_dir / "cache"
    everywhere += [path.read_bytes() for path in cache.rglob("*") if path.is_file()]
    assert erased_rows and not any(row in body for row in erased_rows for body in everywhere)
    assert not server.objects() and not list(cache.rglob("*.parts"))


def test_an_erasure_waits_for_the_store(indexed: Context, server: ObjectServer) -> None:
    moved(indexed)
    gone = with_objects(indexed, replace(server, port=free_port()))
    job_id = submit_erasure(gone, camera_span(gone, "call", None, None)[0])
    for _ in range(2):
        run_job(gone, job_id, HANDLERS)
        time.sleep(0.3)
    assert job(indexed, job_id).retry_code == "object_store_unavailable"
    assert receipts(indexed)[0]["finished"] is None
    assert len(server.objects()) == 2, "not yet"
    objects_of(indexed).check()
    run_jobs(indexed)
    assert receipts(indexed)[0]["finished"] is not None and len(server.objects()) == 1
    assert receipts(indexed)[0]["objects"] == 1
    assert receipts(indexed)[0]["pictures"] == 10, "counted once"


def test_rows_do_not_wait_for_the_store(
    indexed: Context, server: ObjectServer, footage: dict[str, Path]
) -> None:
    """Of several hours all go at once; objects follow, all of them."""
    ingested(indexed, footage["car"], "call", 0.4, start_utc=START + timedelta(hours=2))
    seal(indexed)
    moved(indexed)
    gone = with_objects(indexed, replace(server, port=free_port()))
    job_id = submit_erasure(gone, camera_span(gone, "call", None, None)[0])
    run_job(gone, job_id, HANDLERS)
    assert sql(indexed, "select count(*) from frames") == [(5,)]
    assert job(indexed, job_id).state == "queued" and len(server.objects()) == 3
    run_jobs(indexed)
    (receipt,) = receipts(indexed)
    assert receipt["finished"] and (receipt["objects"], receipt["pictures"]) == (2, 10)
    assert len(server.objects()) == 1


def test_late_frames_are_sealed_and_moved_again(
    indexed: Context, server: ObjectServer, footage: dict[str, Path]
) -> None:
    moved(indexed)
    first = patches(indexed)
    ingested(indexed, footage["car"], "call", 0.4, start_utc=START + timedelta(minutes=5))
    assert np.array_equal(patches(indexed)[:10], first)
    assert verify_index(fresh(indexed)).problems == ()
    seal(indexed)
    assert counts(indexed)[:2] == (2, 20)
    assert len(server.objects()) == 1, "the former revision's is removed"
    assert np.array_equal(patches(indexed)[:10], first)
    moved(indexed)
    assert len(server.objects()) == 2
    assert np.array_equal(patches(indexed)[:10], first)


def counts(context: Context, shard_id: int = 1) -> tuple[int, ...]:
    (row,) = sql(
        context, "select revision, frame_count, sealed_count from shards where id = %s", shard_id
    )
    return row


def test_everything_can_be_brought_back(indexed: Context, server: ObjectServer) -> None:
    ours = patches(indexed)
    moved(indexed)
    reader = fresh(indexed)
    before = scores(asked(reader))
    emptied(indexed)
    assert bring_back(indexed) == 2 and bring_back(indexed) == 0
    assert [act["shards"] for act in acts(indexed, "offload.back")] == [2, 0]
    assert server.objects() == {} and not list(indexed.index.root.rglob("patch.map"))
    assert sql(indexed, "select count(*) from shards where object_url is not null") == [(0,)]
    assert scores(asked(reader)) == before
    assert np.array_equal(patches(indexed), ours)
    assert verify_index(fresh(indexed)).problems == ()


def test_what_is_brought_back_under_a_reader_is_read_here(indexed: Context, tmp_path: Path) -> None:
    ours = patches(indexed)
    moved(indexed)
    real, back = objects_of(indexed).read, list[int]()

    def late(url: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        if not back:
            back.append(bring_back(indexed))
        return real(url, spans)

    assert indexed.index.parts is not None
    parts = replace(indexed.index.parts, root=tmp_path / "another", fetch=late)
    reader = replace(indexed, index=IndexStore(indexed.index.root, parts))
    shard = pinned(reader)
    assert np.array_equal(shard.read("patch", np.arange(shard.blocks)), ours) and back == [2]


@pytest.mark.parametrize("harm", ["gone", "flipped"])
def test_a_lost_map_is_named_and_made_again(indexed: Context, harm: str) -> None:
    moved(indexed)
    ours = patches(indexed)
    path = pinned(indexed).layout.folder / "patch.map"
    if harm == "gone":
        path.unlink()
    else:
        flip(path, 20)
    assert any("patch" in problem for problem in verify_index(fresh(indexed)).problems)
    answer = asked(fresh(indexed))
    assert lost(answer) == 10
    report = repair_index(fresh(indexed))
    assert (report.problems, report.frames, report.repaired) == ((), 0, 0), "nothing was lost"
    assert verify_index(fresh(indexed)).problems == ()
    assert np.array_equal(patches(indexed), ours)


KILLED = """
import os, signal, sys
from tests.parts import HANDLERS
from worker import offloading
from worker.jobs import run_job
from worker.runtime import process_context
import uuid
def die(*given, **named):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(offloading, sys.argv[1], die)
run_job(process_context(), uuid.UUID(sys.argv[2]), HANDLERS)
"""


@pytest.mark.parametrize("step", ["_is_still", "_record", "_remove_local"])
def test_a_kill_loses_nothing(
    indexed: Context, server: ObjectServer, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between upload and map, between map and commit, between commit and the local copy's end."""
    ours = patches(indexed)
    job_id = offloading.submit_due(indexed)
    env = {
        **os.environ,
        "RIS_DATABASE_URL": str(indexed.settings.database_url),
        "RIS_DATA_DIR": str(indexed.settings.data_dir),
        "RIS_S3_URL": server.url,
        "RIS_S3_ENDPOINT": server.endpoint,
        "RIS_S3_REGION": "us-east-1",
        "RIS_JOB_LEASE_S": "0.3",
    }
    done = subprocess.run(
        [sys.executable, "-c", KILLED, step, str(job_id)], env=env, cwd=REPO, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert len(server.objects()) == 1
    recorded = sql(indexed, "select count(*) from shards where object_url is not null")
    assert recorded == [(int(step == "_remove_local"),)]
    assert verify_index(fresh(indexed)).problems == ()
    assert np.array_equal(patches(indexed), ours)
    if step != "_remove_local":
        assert remove_stray_objects(indexed) == 0, "not before it is old enough"
        assert remove_stray_objects(indexed, older_than_s=-60) == 1
        assert server.objects() == {}
        assert verify_index(fresh(indexed)).problems == ()
    sql(indexed, "update jobs set state = 'queued', lease_token = null, lease_until = null")
    run_jobs(indexed)
    assert len(server.objects()) == 2
    assert sql(indexed, "select count(*) from shards where not object_only") == [(0,)]
    assert not list(indexed.index.root.rglob("patch.runs"))
    assert verify_index(fresh(indexed)).problems == ()
    assert np.array_equal(patches(indexed), ours)
    assert remove_stray_objects(indexed, older_than_s=-60) == 0, "what is referenced stays"
    assert len(server.objects()) == 2


@pytest.mark.parametrize("went_through", [True, False])
def test_a_connection_lost_at_the_commit_loses_nothing(
    indexed: Context, monkeypatch: pytest.MonkeyPatch, server: ObjectServer, went_through: bool
) -> None:
    record = offloading._record

    def lose(*given: object) -> bool:
        monkeypatch.setattr(offloading, "_record", record)
        if went_through:
            record(*given)  # type: ignore[arg-type]
        raise DatabaseUnavailable("the connection is lost")

    monkeypatch.setattr(offloading, "_record", lose)
    job_id = offloading.submit_due(indexed)
    assert job_id is not None
    run_job(indexed, job_id, HANDLERS)
    assert job(indexed, job_id).retry_code == "service_unavailable"
    assert len(server.objects()) == int(went_through)
    assert verify_index(fresh(indexed)).problems == ()
    run_jobs(indexed)
    assert len(server.objects()) == 2 and not list(indexed.index.root.rglob("patch.runs"))
    assert verify_index(fresh(indexed)).problems == ()


def test_an_object_that_the_sweep_took_is_not_recorded(
    indexed: Context, monkeypatch: pytest.MonkeyPatch, server: ObjectServer
) -> None:
    """The machine slept for hours after the upload, and the sweep wakes first."""
    ours, record, swept = patches(indexed), offloading._record, list[int]()

    def late(*given: object) -> bool:
        swept.append(remove_stray_objects(indexed, older_than_s=-60))
        return record(*given)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(offloading, "_record", late)
        assert offloading.submit_due(indexed) is not None
        run_jobs(indexed)
    assert swept == [1, 1] and server.objects() == {}
    assert sql(indexed, "select count(*) from shards where object_url is not null") == [(0,)]
    moved(indexed)
    assert np.array_equal(patches(indexed), ours)


def test_a_shard_erased_while_it_is_uploaded_leaves_no_object(
    indexed: Context, monkeypatch: pytest.MonkeyPatch, server: ObjectServer
) -> None:
    still = offloading._is_still

    def erase(*given: object) -> bool:
        monkeypatch.setattr(offloading, "_is_still", still)
        submitted = submit_erasure(indexed, camera_span(indexed, "call", None, None)[0])
        run_job(indexed, submitted, HANDLERS)
        assert job(indexed, submitted).state == "done"
        assert receipts(indexed)[0]["objects"] == 1, "though no row named it yet"
        return still(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(offloading, "_is_still", erase)
    assert offloading.submit_due(indexed) is not None
    run_jobs(indexed)
    assert len(server.objects()) == 1
    assert verify_index(fresh(indexed)).problems == ()


def test_a_removed_generation_takes_its_objects_along(
    indexed: Context, server: ObjectServer
) -> None:
    moved(indexed)
    made = submit_reindex(indexed, "tiny-b", compare=False)
    run_jobs(indexed)
    assert job(indexed, made.job_id).state == "done"
    assert len(server.objects()) == 2, "the retired one's stay"
    gone = with_objects(indexed, replace(server, port=free_port()))
    with pytest.raises(ObjectStoreUnavailable):
        remove_generation(gone, 1)
    remove_generation(indexed, 1)
    assert server.objects() == {}
    assert verify_index(fresh(indexed)).problems == ()


def test_a_backup_is_whole_and_restores_without_the_store(
    indexed: Context, server: ObjectServer, tmp_path: Path, services: Services
) -> None:
    moved(indexed)
    ours = patches(indexed)
    emptied(indexed)
    report = back_up(indexed, tmp_path / "backup")
    assert report.problems == ()
    assert back_up(indexed, tmp_path / "backup").problems == ()
    with fresh_database(services.database_url) as database:
        configured = indexed.settings.model_copy(
            update={"data_dir": tmp_path / "again", "database_url": database}
        )
        again = loaded(make_context(configured, database, application_name="ris tests"))
        restore(again, tmp_path / "backup", database)
        assert np.array_equal(patches(again), ours)
        assert verify_index(fresh(again)).problems == ()
        swept = with_objects(again, server)
        assert remove_stray_objects(swept, older_than_s=-60) == 0, "not the index's it is a copy of"
        again.db.close()
    assert verify_index(fresh(indexed)).problems == ()
    gone = with_objects(indexed, replace(server, port=free_port()))
    emptied(indexed)
    with pytest.raises(ObjectStoreUnavailable):
        back_up(gone, tmp_path / "other")


def test_a_backup_of_a_harmed_object_names_it_and_holds_the_rest(
    indexed: Context, server: ObjectServer, tmp_path: Path
) -> None:
    moved(indexed)
    server.remove(key_of(pinned_object(indexed).url))
    emptied(indexed)
    report = back_up(indexed, tmp_path / "backup")
    assert len(report.problems) == 1 and "10 blocks are damaged" in report.problems[0]
    assert repair_index(fresh(indexed)).problems == ()
    assert back_up(indexed, tmp_path / "backup").problems == ()


def test_only_whole_sealed_shards_with_codes_are_moved(
    indexed: Context, footage: dict[str, Path]
) -> None:
    ingested(indexed, footage["car"], "call", 0.4, start_utc=START + timedelta(minutes=5))
    sql(indexed, "update shards set coded_count = 0 where camera_id = 2")
    assert offloading.submit_due(indexed) is None
    seal(indexed)
    assert offloading.submit_due(indexed, after_s=3600.0) is None, "too young"
    moved(indexed)


def test_damage_here_is_not_moved(indexed: Context, server: ObjectServer) -> None:
    flip(pinned(indexed).layout.path_of("patch", 0), HEADER_BYTES + 3)
    assert offloading.submit_due(indexed) is not None
    run_jobs(indexed)
    assert len(server.objects()) == 1
    assert counts(indexed)[2] == 10 and repair_index(fresh(indexed)).problems == ()
    seal(indexed)
    moved(indexed)
    assert verify_index(fresh(indexed)).problems == ()


def test_an_object_that_does_not_read_back_is_not_recorded(
    indexed: Context, server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, left = ObjectStore.put, [1]

    def harmed(self: ObjectStore, url: str, path: Path) -> None:
        put(self, url, path)
        if left.pop() if left else 0:
            body = server.everything()[key_of(url)]
            server.put(key_of(url), body[:-1])

    monkeypatch.setattr(ObjectStore, "put", harmed)
    job_id = offloading.submit_due(indexed)
    assert job_id is not None
    run_job(indexed, job_id, HANDLERS)
    assert sql(indexed, "select count(*) from shards where object_url is not null") == [(1,)]
    assert len(server.objects()) == 1 and verify_index(fresh(indexed)).problems == ()
    sql(indexed, "update shards set changed_at = now() - interval '1 day'")
    while (due := offloading.submit_due(indexed)) is not None:
        run_jobs(indexed)
        assert job(indexed, due).state == "done"
    assert len(server.objects()) == 2
    assert verify_index(fresh(indexed)).problems == ()


def ris(
    context: Context, server: ObjectServer, *given: str, before: str = "pass", **env: str
) -> subprocess.CompletedProcess[str]:
    """A command of its own process, on the context's database and the server."""
    code = f"import sys; {before}; from worker.admin.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *given],
        env={
            **os.environ,
            "RIS_DATABASE_URL": str(context.settings.database_url),
            "RIS_DATA_DIR": str(context.settings.data_dir),
            "RIS_BROKER_URL": str(context.settings.broker_url),
            "RIS_S3_URL": server.url,
            "RIS_S3_ENDPOINT": server.endpoint,
            "RIS_S3_REGION": "us-east-1",
            **env,
        },
        cwd=REPO,
        check=False,
        capture_output=True,
        text=True,
    )


def test_the_commands(indexed: Context, server: ObjectServer) -> None:
    said = ris(indexed, server, "offload", "--all", "--no-wait", "--json")
    assert json.loads(said.stdout) == {"job": None, "cameras": []}, said.stderr
    run_jobs(indexed)
    (call, street) = json.loads(ris(indexed, server, "offload", "--json").stdout)["cameras"]
    assert (call["camera"], call["shards"], call["frames"]) == ("call", 1, 10)
    assert (street["camera"], street["frames"]) == ("street", 5)
    assert call["object_bytes"] == pinned_object(indexed).byte_count
    assert "street" in ris(indexed, server, "seal", "--no-wait").stdout
    assert ris(indexed, server, "verify").returncode == 0
    both = ris(indexed, server, "offload", "--all", "--back")
    assert both.returncode == 1 and "input_invalid" in both.stderr
    back = ris(indexed, server, "offload", "--back", "--json")
    assert json.loads(back.stdout) == {"job": None, "cameras": []}
    assert server.objects() == {}
    off = ris(indexed, server, "offload", RIS_S3_URL="")
    assert off.returncode == 1 and "RIS_S3_URL is not set" in off.stderr


def test_doctor_says_whether_the_store_answers(indexed: Context, server: ObjectServer) -> None:
    def checked(**env: str) -> dict[str, dict[str, object]]:
        said = ris(indexed, server, "doctor", "--json", **env)
        return {check["check"]: check for check in json.loads(said.stdout)}

    assert checked()["object storage"]["ok"] is True
    away = checked(RIS_S3_ENDPOINT=f"http://127.0.0.1:{free_port()}")["object storage"]
    assert away["ok"] is False and "RIS_S3_ENDPOINT" in str(away["detail"])
    wrong = checked(RIS_S3_URL="s3://no-such-bucket/x")["object storage"]
    assert wrong["ok"] is False and "no-such-bucket" in str(wrong["detail"])
    assert "object storage" not in checked(RIS_S3_URL="")


def test_a_missing_package_is_named(indexed: Context, server: ObjectServer) -> None:
    without = "sys.modules['obstore'] = None"
    for command in ("up", "offload", "verify"):
        said = ris(indexed, server, command, before=without)
        assert said.returncode == 1
        assert "setup_failed" in said.stderr and "obstore" in said.stderr
    said = ris(indexed, server, "doctor", "--json", before=without)
    checks = {check["check"]: check for check in json.loads(said.stdout)}
    assert said.returncode == 1 and "obstore" in checks["object storage"]["detail"]
    assert ris(indexed, server, "verify", before=without, RIS_S3_URL="").returncode == 0


def test_credentials_are_neither_logged_nor_recorded(
    indexed: Context, server: ObjectServer, capfd: pytest.CaptureFixture[str]
) -> None:
    moved(indexed)
    emptied(indexed)
    gone = with_objects(indexed, replace(server, port=free_port()))
    asked(fresh(gone))
    said = ris(indexed, server, "doctor", "--json", RIS_S3_ENDPOINT="http://127.0.0.1:9")
    printed = capfd.readouterr()
    dump = recorded_text(str(indexed.settings.database_url))
    for text in (printed.out, printed.err, said.stdout, said.stderr, dump, repr(gone)):
        assert "a-secret" not in text
    assert "object_url" in dump


def recorded_text(url: str) -> str:
    """Every row of the tables that speak of object storage, as text."""
    with psycopg.connect(psycopg_url(url)) as connection:
        columns = str(
            connection.execute(
                "select column_name from information_schema.columns where table_name = 'shards'"
            ).fetchall()
        )
        rows = [connection.execute(f"select * from {name}").fetchall() for name in TABLES]
    return columns + str(rows)


TABLES = ("shards", "jobs", "erasures", "search_queries")


def test_candidates_of_moved_shards_are_fetched_at_the_same_time(
    indexed: Context, footage: dict[str, Path]
) -> None:
    """And the answer is the same."""
    for hour in (1, 2, 3):
        ingested(indexed, footage["car"], "call", 0.4, start_utc=START + timedelta(hours=hour))
    seal(indexed)
    before = scores(asked(fresh(indexed)))
    moved(indexed)
    real, under_way, together = objects_of(indexed).read, list[str](), threading.Event()

    def met(url: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        under_way.append(url)
        if len(under_way) > 1:
            together.set()
        together.wait(timeout=60)  # nobody goes on before two have come
        found = real(url, spans)
        under_way.remove(url)
        return found

    assert indexed.index.parts is not None
    emptied(indexed)
    parts = replace(indexed.index.parts, fetch=met)
    reader = replace(indexed, index=IndexStore(indexed.index.root, parts))
    generation, descriptors = described(reader)
    found = search_generation(
        fresh(reader), generation, descriptors, SearchParams(tau=-1.0, strategy=Strategy.MAX_SIM)
    )
    assert together.is_set() and len(found.ranked) == 45 and found.frames_away == 0
    assert scores(asked(fresh(indexed))) == before


def described(context: Context) -> tuple[IndexGeneration, QueryDescriptors]:
    """A query on an uploaded picture: nothing of it is read from the index."""
    generation = require_live_generation(context)
    sha256 = sql(context, "select picture_sha256 from frames order by id limit 1")[0][0]
    upload = context.uploads.put(context.pictures.path(sha256).read_bytes())
    roi = Box(0.2, 0.2, 0.8, 0.8)
    return generation, describe_query(
        context, generation, roi, SearchParams(), picture_sha256=upload
    )
