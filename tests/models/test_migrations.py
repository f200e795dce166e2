"""Migrations on a real Postgres: what they make, undo, and how two of them get along."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine

from models.schema import metadata
from models.session import normalised_url
from tests.conftest import REPO, Services, psycopg_url
from tests.parts import fresh_database

MIGRATION_LOCK = 7_268_143_001


@pytest.fixture
def empty_database(services: Services) -> Iterator[str]:
    with fresh_database(services.database_url) as url:
        yield url


def alembic_config(url: str) -> Config:
    config = Config(str(REPO / "alembic.ini"), stdout=io.StringIO())
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(psycopg_url(url)) as connection:
        return connection.execute(query).fetchall()


def relations(url: str) -> set[object]:
    query = "select relname from pg_class where relnamespace = 'public'::regnamespace"
    return {name for (name,) in rows(url, query)}


def test_upgrade_downgrade_upgrade(empty_database: str) -> None:
    config = alembic_config(empty_database)
    command.upgrade(config, "head")
    made = relations(empty_database)
    assert set(metadata.tables) < made
    command.downgrade(config, "base")
    assert relations(empty_database) == {"alembic_version", "alembic_version_pkc"}
    command.upgrade(config, "head")
    assert relations(empty_database) == made
    command.check(config)


HIT_OF_0001 = """
    with camera as (insert into cameras (name) values ('gate') returning id),
    segment as (
        insert into video_segments (camera_id, source_path, content_sha256, start_utc, start_source,
            policy, policy_key)
        select id, '/a.mp4', repeat('a', 64), now(), 'given', '{}', 'k' from camera returning id),
    frame as (
        insert into frames (segment_id, camera_id, t_utc, pts, h_px, w_px, picture_sha256)
        select segment.id, camera.id, now(), 0, 4, 4, repeat('a', 64) from segment, camera
        returning id),
    job as (
        insert into jobs (id, kind, queue, state, payload)
        values (gen_random_uuid(), 'query', 'query', 'done', '{}') returning id),
    query as (
        insert into search_queries (id, job_id, frame_id, roi, params)
        select gen_random_uuid(), job.id, frame.id, '{}', '{}' from job, frame returning id)
    insert into search_hits (query_id, rank, frame_id, score, similarity, coverage, grid_h, grid_w,
        region_query_index, region_cell_index)
    select query.id, 1, frame.id, 0.5, 0.5, 1, 4, 4, '{0}', '{5}' from query, frame
    """


def test_hits_of_the_first_schema_live_on(empty_database: str) -> None:
    """One frame each, and nothing said that was not known; a downgrade leaves them as they were."""
    config = alembic_config(empty_database)
    command.upgrade(config, "0001")
    with psycopg.connect(psycopg_url(empty_database)) as connection:
        connection.execute(HIT_OF_0001)
    before = rows(empty_database, "select * from search_hits")
    command.upgrade(config, "head")
    added = """select box, on_trail, false_matches, appearance_from_utc, appearance_to_utc,
        appearance_frames from search_hits"""
    assert rows(empty_database, added) == [(None, False, None, None, None, 1)]
    command.downgrade(config, "0001")
    assert rows(empty_database, "select * from search_hits") == before


MOVED_SHARD = """
    with generation as (
        insert into index_generations (backbone, spec_hash, spec, codec, state)
        values ('b', 'h', '{}', 'int8', 'live') returning id),
    camera as (insert into cameras (name) values ('gate') returning id)
    insert into shards (generation_id, camera_id, bucket_utc, object_url, object_bytes,
        object_crc32s, object_only)
    select generation.id, camera.id, now(), 's3://b/x', 1, '', true from generation, camera
    """


def test_a_downgrade_leaves_no_shard_on_object_storage_behind(empty_database: str) -> None:
    config = alembic_config(empty_database)
    command.upgrade(config, "head")
    with psycopg.connect(psycopg_url(empty_database)) as connection:
        connection.execute(MOVED_SHARD)
    with pytest.raises(RuntimeError, match="ris offload --back"):
        command.downgrade(config, "0007")
    with psycopg.connect(psycopg_url(empty_database)) as connection:
        connection.execute(
            "update shards set object_url = null, object_bytes = null, object_crc32s = null,"
            " object_only = false"
        )
    command.downgrade(config, "0007")
    command.upgrade(config, "head")
    refused = ("object_only = true", "object_bytes = 5", "object_url = 's3://b/x'")
    for half in refused:
        with (
            pytest.raises(psycopg.errors.CheckViolation),
            psycopg.connect(psycopg_url(empty_database)) as connection,
        ):
            connection.execute(f"update shards set {half}")


def test_a_downgrade_leaves_no_encrypted_address_behind(empty_database: str) -> None:
    config = alembic_config(empty_database)
    command.upgrade(config, "head")
    with psycopg.connect(psycopg_url(empty_database)) as connection:
        connection.execute(
            "with camera as (insert into cameras (name) values ('gate') returning id)"
            " insert into feeds (camera_id, url, sealed_url, source_kind, policy)"
            " select id, 'rtsp://***@h/', 'x', 'rtsp', '{}' from camera"
        )
    with pytest.raises(RuntimeError, match="ris feed rm"):
        command.downgrade(config, "0015")
    with psycopg.connect(psycopg_url(empty_database)) as connection:
        connection.execute("update feeds set sealed_url = null")
    command.downgrade(config, "0015")
    command.upgrade(config, "head")


def test_a_downgrade_leaves_no_key_of_a_role_that_opens_anything(empty_database: str) -> None:
    config = alembic_config(empty_database)
    command.upgrade(config, "head")
    with psycopg.connect(psycopg_url(empty_database)) as connection:
        for role in ("a", "b"):
            made = "insert into api_keys (name, role, actions) values ('x', %s, array['admin'])"
            connection.execute(made, [role])
    command.downgrade(config, "0022")
    left = "select revoked_at is not null, secret_sha256 from api_keys order by id"
    assert rows(empty_database, left) == [(True, f"{number:064}") for number in (1, 2)]
    command.upgrade(config, "head")


def test_there_is_one_head() -> None:
    output = io.StringIO()
    config = Config(str(REPO / "alembic.ini"), stdout=output)
    command.heads(config)
    assert len(output.getvalue().splitlines()) == 1


CATALOGUE = {
    "columns": """select table_name, column_name, data_type, udt_name, is_nullable, column_default,
        is_identity from information_schema.columns
        where table_schema = 'public' and table_name <> 'alembic_version' order by 1, 2""",
    "constraints": """select conrelid::regclass::text, conname, contype,
        pg_get_constraintdef(oid) from pg_constraint where connamespace = 'public'::regnamespace
        and conrelid::regclass::text <> 'alembic_version' order by 1, 2""",
    "indices": """select tablename, indexname, indexdef from pg_indexes
        where schemaname = 'public' and tablename <> 'alembic_version' order by 1, 2""",
}


def test_migrations_make_what_the_models_say(empty_database: str, database_url: str) -> None:
    """Check and exclusion constraints included, which autogenerate does not compare."""
    engine = create_engine(normalised_url(empty_database))
    metadata.create_all(engine)
    engine.dispose()
    for query in CATALOGUE.values():
        expected = rows(empty_database, query)
        assert len(expected) > 15
        assert rows(database_url, query) == expected


def test_migrators_at_once_take_turns(empty_database: str) -> None:
    """Both are held at the advisory lock, then let go: the second finds nothing left to do."""
    held = psycopg.connect(psycopg_url(empty_database), autocommit=True)
    held.execute("select pg_advisory_lock(%s)", [MIGRATION_LOCK])
    environment = {**os.environ, "RIS_DATABASE_URL": empty_database}
    migrators = [
        subprocess.Popen(
            [sys.executable, "-m", "alembic", "upgrade", "head"],
            cwd=REPO,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
    deadline_s = time.monotonic() + 60
    while rows(empty_database, waiting) != [(2,)]:
        assert all(migrator.poll() is None for migrator in migrators), "did not wait for the lock"
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    held.close()
    for migrator in migrators:
        _, errors = migrator.communicate(timeout=60)
        assert migrator.returncode == 0, errors
    newest = max(path.name[:4] for path in (REPO / "migrations" / "versions").glob("*.py"))
    assert rows(empty_database, "select version_num from alembic_version") == [(newest,)]


def test_a_failing_migration_leaves_nothing(empty_database: str) -> None:
    """DDL is one transaction: a table that is in the way stops it without half a schema."""
    with psycopg.connect(psycopg_url(empty_database), autocommit=True) as connection:
        connection.execute("create table search_hits (x int)")
    with pytest.raises(Exception, match="search_hits"):
        command.upgrade(alembic_config(empty_database), "head")
    assert relations(empty_database) == {"search_hits"}


def test_without_a_url_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RIS_DATABASE_URL", raising=False)
    with pytest.raises(SystemExit, match="RIS_DATABASE_URL"):
        command.upgrade(Config(str(REPO / "alembic.ini")), "head")


def test_sql_can_be_written_to_a_file(tmp_path: Path, database_url: str) -> None:
    output = io.StringIO()
    config = Config(str(REPO / "alembic.ini"), output_buffer=output)
    config.set_main_option("sqlalchemy.url", "postgresql://nowhere/ris")
    command.upgrade(config, "head", sql=True)
    assert "CREATE TABLE f_map_runs" in output.getvalue()
