"""House rules of the schema, read from the database and the mappers, and what it refuses."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg
import pytest
from sqlalchemy.orm import configure_mappers

from models.base import Base
from models.schema import metadata
from tests.conftest import Services, psycopg_url
from tests.parts import fresh_database

SHA = "a" * 64
PREFIX = {"p": "pk_", "u": "uq_", "f": "fk_", "c": "ck_", "x": "ex_"}


@pytest.fixture(scope="module")
def schema_url(services: Services, template_database: str):
    with fresh_database(services.database_url, template_database) as url:
        yield url


@pytest.fixture
def db(schema_url: str):
    """A connection whose changes are undone at the end."""
    with psycopg.connect(psycopg_url(schema_url)) as connection:
        yield connection
        connection.rollback()


def add(db: psycopg.Connection[Any], table: str, **values: Any) -> Any:
    names = ", ".join(values)
    marks = ", ".join(["%s"] * len(values))
    cursor = db.execute(
        f"insert into {table} ({names}) values ({marks}) returning *",
        list(values.values()),
    )
    return cursor.fetchone()[0]  # type: ignore[index]


@pytest.fixture
def seeded(db: psycopg.Connection[Any]) -> dict[str, Any]:
    """One camera, segment and generation, two shards, three frames."""
    camera = add(db, "cameras", name="gate")
    segment = add(
        db,
        "video_segments",
        camera_id=camera,
        source_path="/a.mp4",
        content_sha256=SHA,
        start_utc="2026-01-01T00:00Z",
        start_source="given",
        policy="{}",
        policy_key="k",
    )
    generation = add(
        db,
        "index_generations",
        backbone="b",
        spec_hash="h",
        spec="{}",
        codec="fp16",
        state="live",
    )
    shards = [
        add(
            db,
            "shards",
            generation_id=generation,
            camera_id=camera,
            bucket_utc=f"2026-01-01T0{hour}:00Z",
        )
        for hour in range(2)
    ]
    frames = [
        add(
            db,
            "frames",
            segment_id=segment,
            camera_id=camera,
            t_utc="2026-01-01T00:00Z",
            pts=pts,
            h_px=4,
            w_px=4,
            picture_sha256=SHA,
        )
        for pts in range(3)
    ]
    return {"camera": camera, "segment": segment, "shards": shards, "frames": frames}


def run(db: psycopg.Connection[Any], shard: int, frame: int, start: int, count: int = 16) -> None:
    add(
        db,
        "f_map_runs",
        shard_id=shard,
        frame_id=frame,
        start_row=start,
        row_count=count,
        crc32=0,
    )


def test_names_follow_the_convention(db: psycopg.Connection[Any]) -> None:
    constraints = db.execute(
        """select conrelid::regclass::text, conname, contype::text from pg_constraint
        where connamespace = 'public'::regnamespace and contype <> 'n'
        and conrelid::regclass::text <> 'alembic_version'"""
    ).fetchall()
    assert len(constraints) > 30
    wrong = [c for c in constraints if not c[1].startswith(f"{PREFIX[c[2]]}{c[0]}")]
    indices = db.execute(
        "select tablename, indexname from pg_indexes where schemaname = 'public'"
    ).fetchall()
    wrong += [
        index
        for index in indices
        if not index[1].startswith(tuple(f"{p}_{index[0]}" for p in ("pk", "uq", "ex", "ix")))
        and index[0] != "alembic_version"
        and index[1] != "ix_jobs_open"
    ]
    assert not wrong


def test_every_relationship_is_loaded_on_purpose() -> None:
    configure_mappers()
    relationships = [r for mapper in Base.registry.mappers for r in mapper.relationships]
    assert relationships
    assert [str(r) for r in relationships if r.lazy != "raise"] == []


def test_every_time_has_a_zone(db: psycopg.Connection[Any]) -> None:
    times = db.execute(
        """select table_name, column_name, data_type from information_schema.columns
        where table_schema = 'public' and (data_type like 'timestamp%' or data_type = 'date'
        or column_name ~ '(_utc|_at|_until|_after)$')"""
    ).fetchall()
    assert len(times) > 15
    assert [t for t in times if t[2] != "timestamp with time zone"] == []


def test_every_table_is_mapped(db: psycopg.Connection[Any]) -> None:
    found = db.execute("select tablename from pg_tables where schemaname = 'public'").fetchall()
    assert {name for (name,) in found} == {*metadata.tables, "alembic_version"}


def test_at_most_one_generation_is_live(db: psycopg.Connection[Any], seeded: Any) -> None:
    fields = {"backbone": "b", "spec_hash": "h", "spec": "{}", "codec": "fp16"}
    for state in ("building", "building", "retired", "failed"):
        add(db, "index_generations", state=state, **fields)
    with pytest.raises(psycopg.errors.UniqueViolation, match="uq_index_generations_live"):
        add(db, "index_generations", state="live", **fields)


@pytest.mark.parametrize(("start", "count"), [(0, 16), (8, 16), (15, 1), (0, 64), (4, 2)])
def test_f_map_runs_of_a_shard_cannot_overlap(
    db: psycopg.Connection[Any], seeded: Any, start: int, count: int
) -> None:
    first, second = seeded["frames"][:2]
    run(db, seeded["shards"][0], first, 0)
    with pytest.raises((psycopg.errors.ExclusionViolation, psycopg.errors.UniqueViolation)):
        run(db, seeded["shards"][0], second, start, count)


def test_f_map_runs_may_touch_and_repeat_in_another_shard(
    db: psycopg.Connection[Any], seeded: Any
) -> None:
    first, second, third = seeded["frames"]
    run(db, seeded["shards"][0], first, 0)
    run(db, seeded["shards"][0], second, 16)
    run(db, seeded["shards"][1], third, 8)
    run(db, seeded["shards"][1], first, 24)
    assert db.execute("select count(*) from f_map_runs").fetchone() == (4,)


def test_a_view_of_a_frame_has_one_run_per_shard(db: psycopg.Connection[Any], seeded: Any) -> None:
    run(db, seeded["shards"][0], seeded["frames"][0], 0)
    with pytest.raises(psycopg.errors.UniqueViolation, match="shard_id_frame_id_view"):
        run(db, seeded["shards"][0], seeded["frames"][0], 16)


JOB = {"kind": "ingest", "queue": "ingest", "payload": "{}"}


@pytest.mark.parametrize(
    ("constraint", "values"),
    [
        ("kind_known", {"kind": "other"}),
        ("state_known", {"state": "paused"}),
        ("lease_running", {"state": "running"}),
        ("lease_running", {"state": "queued", "lease_token": uuid.uuid4()}),
        ("lease_running", {"state": "done", "lease_token": uuid.uuid4()}),
        ("error_failed", {"state": "failed"}),
        ("error_failed", {"state": "done", "error_code": "internal"}),
    ],
)
def test_impossible_jobs_are_refused(
    db: psycopg.Connection[Any], constraint: str, values: dict[str, Any]
) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match=f"ck_jobs_{constraint}"):
        add(db, "jobs", id=uuid.uuid4(), **{**JOB, **values})


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"state": "running", "lease_token": uuid.uuid4()},
        {"state": "failed", "error_code": "internal"},
        {"state": "done"},
    ],
)
def test_possible_jobs_are_accepted(db: psycopg.Connection[Any], values: dict[str, Any]) -> None:
    add(db, "jobs", id=uuid.uuid4(), **{**JOB, **values})


@pytest.mark.parametrize(
    ("constraint", "statement"),
    [
        ("ck_cameras_name_length", "insert into cameras (name) values ('')"),
        ("ck_cameras_name_length", "insert into cameras (name) values (repeat('x', 201))"),
        ("uq_cameras_name", "insert into cameras (name) values ('gate')"),
        ("ck_frames_size_positive", "update frames set h_px = 0"),
        ("ck_frames_picture_sha256_hex", "update frames set picture_sha256 = 'abc'"),
        ("ck_video_segments_outcome_known", "update video_segments set outcome = 'fine'"),
        ("ck_video_segments_content_sha256_hex", "update video_segments set content_sha256 = ''"),
        ("ck_shards_counts_not_negative", "update shards set row_count = -1"),
        ("ck_shards_sealed_count_valid", "update shards set sealed_count = 1"),
        ("uq_frames_segment_id_pts", "update frames set pts = 0"),
        ("ck_index_generations_state_known", "update index_generations set state = 'old'"),
        ("fk_frames_camera_id_cameras", "delete from frames; delete from video_segments; "
         "delete from shards; delete from cameras; insert into frames (segment_id, camera_id, "
         "t_utc, pts, h_px, w_px, picture_sha256) values (1, 1, now(), 1, 1, 1, repeat('a', 64)); "
         "set constraints all immediate"),
    ],
)  # fmt: skip
def test_impossible_rows_are_refused(
    db: psycopg.Connection[Any], seeded: Any, constraint: str, statement: str
) -> None:
    with pytest.raises(psycopg.errors.IntegrityError, match=constraint):
        db.execute(statement)


def test_a_query_has_one_source(db: psycopg.Connection[Any], seeded: Any) -> None:
    job_id = uuid.uuid4()
    add(db, "jobs", id=job_id, **{**JOB, "kind": "query"})
    fields = {"id": uuid.uuid4(), "job_id": job_id, "roi": "{}", "params": "{}"}
    both = {"frame_id": seeded["frames"][0], "picture_sha256": SHA}
    for source in ({}, both):
        with pytest.raises(psycopg.errors.CheckViolation, match="one_source"), db.transaction():
            add(db, "search_queries", **fields, **source)
    add(db, "search_queries", **fields, picture_sha256=SHA)
