"""Postgres and Redis from their wheels: start, stop, crash, leftovers, root."""

from __future__ import annotations

import os
import stat

import psutil
import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.embedded import postgres, redis_server
from worker.embedded.child_process import ServiceHandle, free_port, is_alive
from worker.errors import SetupFailed


def connect(handle: ServiceHandle) -> psycopg.Connection:
    return psycopg.connect(handle.url.replace("+psycopg", ""), autocommit=True, connect_timeout=5)


@pytest.fixture
def pg_folder(tmp_path):
    # A blank in the path, under a folder that only its owner may enter.
    closed = tmp_path / "closed to others"
    closed.mkdir(mode=0o700)
    folder = closed / "postgres"
    yield folder
    postgres.stop_postgres(folder)


@pytest.fixture
def redis_folder(tmp_path):
    folder = tmp_path / "a blank" / "redis"
    yield folder
    redis_server.stop_redis(folder)


def test_postgres_keeps_rows_port_and_password_over_stop_kill_and_leftover(pg_folder):
    parent_mode = pg_folder.parent.stat().st_mode
    first = postgres.start_postgres(pg_folder)
    with connect(first) as db:
        db.execute("create table seen (n int)")
        db.execute("insert into seen values (1)")
        assert db.execute("show data_checksums").fetchone() == ("on",)
        assert db.execute("show fsync").fetchone() == ("on",)
        assert db.execute("show unix_socket_directories").fetchone() == ("",)
        assert db.execute("show server_encoding").fetchone() == ("UTF8",)
    assert postgres.stop_postgres(pg_folder)
    assert not is_alive(first.pid)
    assert not postgres.stop_postgres(pg_folder)

    second = postgres.start_postgres(pg_folder)
    assert second.url == first.url
    second.process.kill()
    second.process.wait()
    third = postgres.start_postgres(pg_folder)  # the pid file is stale now
    assert third.url == first.url

    fourth = postgres.start_postgres(pg_folder)  # the third is a live leftover
    assert not is_alive(third.pid)
    with connect(fourth) as db:
        assert db.execute("select n from seen").fetchall() == [(1,)]

    assert pg_folder.parent.stat().st_mode == parent_mode
    assert psutil.Process(fourth.pid).uids().real != 0
    assert stat.S_IMODE((pg_folder / "password").stat().st_mode) == 0o600
    listening = {c.laddr.ip for c in psutil.Process(fourth.pid).net_connections() if not c.raddr}
    assert listening == {"127.0.0.1"}


def test_postgres_wants_the_password(pg_folder):
    handle = postgres.start_postgres(pg_folder)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(
            host="127.0.0.1", port=handle.port, user="ris", password="guess", dbname="ris"
        )
    assert "ris:" not in repr(handle)


def test_postgres_takes_another_port_when_its_own_is_taken(pg_folder):
    pg_folder.mkdir()
    taken_by_redis = redis_server.start_redis(pg_folder.parent / "redis")
    (pg_folder / "port").write_text(f"{taken_by_redis.port}\n")
    try:
        handle = postgres.start_postgres(pg_folder)
        assert handle.port != taken_by_redis.port
        with connect(handle) as db:
            assert db.execute("select 1").fetchone() == (1,)
    finally:
        redis_server.stop_redis(pg_folder.parent / "redis")


def test_postgres_ignores_the_pid_of_a_stranger_and_does_not_end_it(pg_folder):
    postgres.start_postgres(pg_folder)
    postgres.stop_postgres(pg_folder)
    (pg_folder / "data" / "postmaster.pid").write_text(f"{os.getpid()}\n{pg_folder}/data\n")
    assert is_alive(postgres.start_postgres(pg_folder).pid)


def test_postgres_that_cannot_start_says_why(pg_folder):
    postgres.start_postgres(pg_folder)
    postgres.stop_postgres(pg_folder)
    (pg_folder / "data" / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(SetupFailed, match="not compatible with this version"):
        postgres.start_postgres(pg_folder)


def test_an_initdb_that_was_cut_short_is_done_again(pg_folder):
    (pg_folder / "data.new" / "base").mkdir(parents=True)
    with connect(postgres.start_postgres(pg_folder)) as db:
        assert db.execute("select current_database()").fetchone() == ("ris",)


def test_redis_keeps_messages_over_stop_kill_and_leftover(redis_folder):
    first = redis_server.start_redis(redis_folder)
    with redis.Redis.from_url(first.url) as client:
        client.rpush("bell", "1")
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    assert redis_server.stop_redis(redis_folder)
    assert not is_alive(first.pid)

    second = redis_server.start_redis(redis_folder)
    second.process.kill()
    second.process.wait()
    third = redis_server.start_redis(redis_folder)
    fourth = redis_server.start_redis(redis_folder)  # the third is a live leftover
    assert not is_alive(third.pid)
    assert fourth.url == first.url
    with redis.Redis.from_url(fourth.url) as client:
        assert client.lrange("bell", 0, -1) == [b"1"]

    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=fourth.port, retry=Retry(NoBackoff(), 0)).ping()
    for name in ("redis.conf", "password"):
        assert stat.S_IMODE((redis_folder / name).stat().st_mode) == 0o600
    listening = {c.laddr.ip for c in psutil.Process(fourth.pid).net_connections() if not c.raddr}
    assert listening == {"127.0.0.1"}


def test_redis_that_cannot_start_says_why(redis_folder):
    redis_folder.mkdir(parents=True)
    (redis_folder / "appendonly.aof").write_text("not an append-only file")
    with pytest.raises(SetupFailed, match="Bad file format"):
        redis_server.start_redis(redis_folder)


def test_free_port_prefers_the_given_one():
    port = free_port()
    assert free_port(port) == port
