"""Other engines on the same vectors, where they are installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from sqlalchemy import text

from models.session import Database
from worker.core.backbone_spec import BackboneSpec
from worker.core.types import FloatArray, IntArray
from worker.index.store import PinnedShard
from worker.ranked_frame import QueryDescriptors

Search = Callable[[QueryDescriptors], list[tuple[int, float]]]

GATE = 50
"""Candidates of the first stage."""
TOP = 10


def batches(shards: Sequence[PinnedShard]) -> Iterator[tuple[IntArray, FloatArray, FloatArray]]:
    """Every frame: ids (n,), whole-frame descriptors (n, d), patches (n, c, d)."""
    for shard in shards:
        for start in range(0, shard.blocks, 32):
            at = np.arange(start, min(start + 32, shard.blocks))
            yield shard.f_map.frame_id[at], shard.read("global", at), shard.read("patch", at)


def qdrant(
    shards: Sequence[PinnedShard], spec: BackboneSpec, folder: str, quantised: bool
) -> Search:
    """The same vectors in Qdrant Edge; raises ImportError where it is not installed."""
    q: Any = importlib.import_module("qdrant_edge")

    config = q.EdgeConfig(
        vectors={
            "global": q.EdgeVectorParams(size=spec.global_dim, distance=q.Distance.Dot),
            "patch": q.EdgeVectorParams(
                size=spec.patch_dim,
                distance=q.Distance.Dot,
                multivector_config=q.MultiVectorConfig(q.MultiVectorComparator.MaxSim),
                hnsw_config=q.HnswIndexConfig(m=0, ef_construct=4, full_scan_threshold=10**9),
                quantization_config=q.ScalarQuantizationConfig(q.ScalarType.Int8, always_ram=True)
                if quantised
                else None,
            ),
        }
    )
    edge = q.EdgeShard.create(folder, config)
    for frame_ids, globals_nd, patches_ncd in batches(shards):
        points = [
            q.Point(int(frame_id), {"global": g.tolist(), "patch": p.tolist()})
            for frame_id, g, p in zip(frame_ids, globals_nd, patches_ncd, strict=True)
        ]
        edge.update(q.UpdateOperation.upsert_points(points))
    edge.optimize()

    def search(query: QueryDescriptors) -> list[tuple[int, float]]:
        first = q.Prefetch(
            GATE,
            query=q.Query.Nearest(query.global_d.tolist(), using="global"),
            params=q.SearchParams(exact=True),
        )
        found = edge.query(
            q.QueryRequest(
                TOP,
                query=q.Query.Nearest(query.patches_qd.tolist(), using="patch"),
                prefetches=[first],
            )
        )
        return [(int(point.id), float(point.score) / len(query.patches_qd)) for point in found]

    return search


def lancedb(shards: Sequence[PinnedShard], spec: BackboneSpec, folder: str, gated: bool) -> Search:
    """The same vectors in LanceDB, without an index over them, so exact as the others are.

    ``gated``: the best of the whole-frame column first, then the multivector search among those;
    else the multivector search over everything. It knows cosine only, which for unit vectors is the
    same. Raises ImportError where it is not installed.
    """
    lance: Any = importlib.import_module("lancedb")
    pa: Any = importlib.import_module("pyarrow")
    vector, patch = pa.list_(pa.float32(), spec.global_dim), pa.list_(pa.float32(), spec.patch_dim)
    schema = pa.schema([("frame_id", pa.int64()), ("global", vector), ("patch", pa.list_(patch))])

    def tables() -> Iterator[Any]:
        for frame_ids, globals_nd, patches_ncd in batches(shards):
            n, cells, d = patches_ncd.shape
            rows = pa.FixedSizeListArray.from_arrays(pa.array(patches_ncd.ravel()), d)
            columns = [
                pa.array(frame_ids),
                pa.FixedSizeListArray.from_arrays(pa.array(globals_nd.ravel()), spec.global_dim),
                pa.ListArray.from_arrays(np.arange(n + 1, dtype=np.int32) * cells, rows),
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    table = lance.connect(folder).create_table("frames", tables(), schema=schema)

    def search(query: QueryDescriptors) -> list[tuple[int, float]]:
        asked = table.search(query.patches_qd, vector_column_name="patch").metric("cosine")
        if gated:
            first = table.search(query.global_d, vector_column_name="global").metric("dot")
            passed = (
                first.limit(GATE)
                .select(["frame_id", "_distance"])
                .to_arrow()["frame_id"]
                .to_pylist()
            )
            asked = asked.where(f"frame_id in ({', '.join(map(str, passed))})", prefilter=True)
        found = asked.limit(TOP).select(["frame_id", "_distance"]).to_arrow()
        pairs = zip(found["frame_id"].to_pylist(), found["_distance"].to_pylist(), strict=True)
        return [(int(frame_id), -float(distance)) for frame_id, distance in pairs]

    return search


_PGVECTOR_SEARCH = """
    with gate as materialized (
        select frame_id from peer_frames order by whole <#> cast(:whole as vector) limit :gate
    ), best as (
        select p.frame_id, q.at, max(-(p.patch <#> q.patch)) as similarity
        from gate join peer_patches p using (frame_id),
            unnest(cast(:patches as vector[])) with ordinality as q (patch, at)
        group by p.frame_id, q.at
    )
    select frame_id, avg(similarity) from best group by frame_id
    order by avg(similarity) desc, frame_id limit :top
"""


_NO_PGVECTOR_TABLES = "drop table if exists peer_frames, peer_patches"


def forget_pgvector(database: Database) -> None:
    """Leave nothing behind in it."""
    with database.transaction() as session:
        session.execute(text(_NO_PGVECTOR_TABLES))


def pgvector(shards: Sequence[PinnedShard], spec: BackboneSpec, database: Database) -> Search:
    """The same vectors in pgvector, a row per patch, found by frame: the best of the whole-frame
    column, then MaxSim among those in one statement. Raises ImportError where it is not there."""
    with database.transaction() as session:
        there = text("select 1 from pg_available_extensions where name = 'vector'")
        if session.execute(there).one_or_none() is None:
            raise ImportError("this Postgres has no pgvector")
        for statement in (
            "create extension if not exists vector",
            _NO_PGVECTOR_TABLES,
            f"create unlogged table peer_frames (frame_id bigint, whole vector({spec.global_dim}))",
            f"create unlogged table peer_patches (frame_id bigint, patch vector({spec.patch_dim}))",
        ):
            session.execute(text(statement))
        for frame_ids, globals_nd, patches_ncd in batches(shards):
            _copy(session.connection().connection, "peer_frames", frame_ids, globals_nd)
            every_nd = patches_ncd.reshape(-1, spec.patch_dim)
            each = np.repeat(frame_ids, spec.grid.cells)
            _copy(session.connection().connection, "peer_patches", each, every_nd)
        session.execute(text("create index on peer_patches (frame_id)"))
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as outside:
        outside.execute(text("vacuum analyze peer_frames, peer_patches"))

    def search(query: QueryDescriptors) -> list[tuple[int, float]]:
        asked = {
            "whole": str(query.global_d.tolist()),
            "patches": [str(patch_d.tolist()) for patch_d in query.patches_qd],
            "gate": GATE,
            "top": TOP,
        }
        with database.transaction() as session:
            rows = session.execute(text(_PGVECTOR_SEARCH), asked).all()
        return [(int(frame_id), float(score)) for frame_id, score in rows]

    return search


def _copy(connection: Any, table: str, ids: IntArray, vectors_nd: FloatArray) -> None:
    """Binary COPY of (id, vector) rows; a vector is its width, a zero, and big-endian floats."""
    n, d = vectors_nd.shape
    row = np.dtype(
        [
            ("fields", ">i2"),
            ("id_bytes", ">i4"),
            ("id", ">i8"),
            ("vector_bytes", ">i4"),
            ("width", ">i2"),
            ("unused", ">i2"),
            ("vector", ">f4", (d,)),
        ]
    )
    rows = np.zeros(n, dtype=row)
    rows["fields"], rows["id_bytes"], rows["id"] = 2, 8, ids
    rows["vector_bytes"], rows["width"], rows["vector"] = 4 + 4 * d, d, vectors_nd
    with (
        connection.cursor() as cursor,
        cursor.copy(f"copy {table} from stdin (format binary)") as copy,
    ):
        copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8) + rows.tobytes() + b"\xff\xff")
