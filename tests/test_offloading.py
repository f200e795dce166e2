"""Sealed shards on object storage: searched as before, found when harmed, erased with the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from models.repositories import index as index_record
from tests.object_server import ObjectServer, object_server
from tests.parts import (
    ingested,
    job,
    loaded,
    run_jobs,
    sql,
    with_settings,
)
from tests.searching import asked, fresh, lost, scores
from worker import compacting, offloading, sealing
from worker.context import Context
from worker.index.part_cache import PartCache
from worker.index.store import IndexStore, PinnedShard
from worker.objects.store import ObjectStore, open_store
from worker.pinning import FMapCache, pin_shard
from worker.search import QueryState
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
    made = loaded(with_settings(context, backbone="tiny-a", seal_after_s=0.0, s3_after_s=0.0))
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
