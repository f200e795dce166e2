"""The same code on a Postgres and a Redis that somebody else runs on this machine."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest
import redis

from tests.processes.harness import Ris

pytestmark = pytest.mark.slow

POSTGRES = "postgresql://postgres@127.0.0.1:5432"
REDIS = "redis://127.0.0.1:6379"


@dataclass(frozen=True)
class Given:
    database_url: str
    broker_url: str
    versions: str


@pytest.fixture
def given() -> Iterator[Given]:
    """A throw-away database and an empty Redis database of standing services."""
    try:
        admin = psycopg.connect(f"{POSTGRES}/postgres", connect_timeout=3, autocommit=True)
    except psycopg.OperationalError as error:
        pytest.skip(f"no Postgres answers on 127.0.0.1:5432 as user postgres: {error}")
    broker = redis.Redis.from_url(f"{REDIS}/9", socket_connect_timeout=3)
    try:
        redis_version = broker.info("server")["redis_version"]
        if broker.dbsize():
            pytest.skip("database 9 of the Redis on 127.0.0.1:6379 is in use")
    except redis.RedisError as error:
        pytest.skip(f"no Redis answers on 127.0.0.1:6379: {error}")
    name = f"ris_test_{uuid.uuid4().hex[:12]}"
    postgres_version = admin.info.parameter_status("server_version")
    admin.execute(f"create database {name}")
    try:
        yield Given(
            f"{POSTGRES}/{name}",
            f"{REDIS}/9",
            f"PostgreSQL {postgres_version}, Redis {redis_version}",
        )
    finally:
        broker.flushdb()
        broker.close()
        admin.execute(f"drop database {name} with (force)")
        admin.close()


def test_main_job_on_given_services(given, tmp_path, quick_settings, footage, record_property):
    record_property("services", given.versions)
    warnings.warn(f"ran on {given.versions}", stacklevel=1)  # seen in the summary
    settings = {
        **quick_settings,
        "RIS_DATABASE_URL": given.database_url,
        "RIS_BROKER_URL": given.broker_url,
    }
    ris = Ris(tmp_path / "var", settings, cwd=tmp_path)
    try:
        assert set(ris.json("up")["pids"]) == {
            "worker-ingest",
            "worker-query",
            "worker-feed",
            "worker-watch",
            "beat",
            "api",
        }
        assert not (ris.data_dir / "postgres").exists()
        assert not (ris.data_dir / "redis").exists()
        said = ris.json("ingest", str(footage["car"]), "--camera", "car", "--every", "0.5")
        assert [job["state"] for job in said["jobs"]] == ["done"]
        ris.assert_every_frame_once(footage["car"], "car", 0.5)
        frame_id = ris.rows("select min(id) from frames")[0][0]
        answer = ris.json("query", "--frame", str(frame_id), "--roi", "0.2,0.2,0.8,0.8")
        assert answer["hits"]
        assert ris.json("verify")["problems"] == []
    finally:
        ris.run("down")
