"""The API in this process on a real Postgres; two real clips indexed once, jobs run on demand."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import make_app
from api.desk import ApiDesk, Pace, open_desk
from tests.conftest import Services
from tests.parts import acts, fresh_context, ingested, run_jobs, sql
from worker.accepting.desk import COMMAND_LINE
from worker.accepting.keys import create_key
from worker.context import Context

STREET_START = datetime(2026, 1, 1, 12, tzinfo=UTC)
CAR_START = datetime(2026, 1, 1, 13, tzinfo=UTC)
BOX = {"box": [0.2, 0.2, 0.8, 0.8]}


@dataclass(frozen=True)
class Api:
    """An API in this process and the worker's context beside it on the same record."""

    context: Context
    desk: ApiDesk
    client: TestClient
    footage: Path

    def key(self, *actions: str, **given: Any) -> dict[str, str]:
        """Headers of a new key."""
        with self.context.db.transaction() as session:
            made = {"name": "test", "actions": actions or ("admin",), **given}
            _, secret = create_key(session, COMMAND_LINE, **made)
        return {"Authorization": f"Bearer {secret}"}

    def camera(self, name: str) -> int:
        return int(sql(self.context, "select id from cameras where name = %s", name)[0][0])

    def frame(self, camera: str, place: int = 0) -> int:
        statement = """select f.id from frames f join cameras c on c.id = f.camera_id
            where c.name = %s order by f.t_utc offset %s limit 1"""
        return int(sql(self.context, statement, camera, place)[0][0])

    def answered(self, headers: Mapping[str, str], **body: Any) -> dict[str, Any]:
        """A query asked and run to its end by this process."""
        asked = {"frame_id": self.frame("street"), "roi": BOX, "params": {"tau": -1.0}} | body
        reply = self.client.post("/v1/queries", json=asked, headers=headers)
        assert reply.status_code == 202, reply.text
        run_jobs(self.context)
        told: dict[str, Any] = self.client.get(reply.headers["Location"], headers=headers).json()
        assert told["state"] == "done", told
        return told

    def acts(self, act: str) -> list[dict[str, Any]]:
        """Details of the audit's entries of one act."""
        return acts(self.context, act)

    def with_settings(self, **changes: Any) -> AbstractContextManager[TestClient]:
        """Another application on the same record with other settings."""
        changed = self.desk.settings.model_copy(update=changes)
        pace = Pace(changed.api_requests_per_s)
        return serving(replace(self.desk, settings=changed, pace=pace))


@contextmanager
def serving(desk: ApiDesk) -> Iterator[TestClient]:
    """A client of an application on a desk; the desk stays open."""
    yield TestClient(make_app(desk), raise_server_exceptions=False)


def run_async(work: Coroutine[Any, Any, Any]) -> Any:
    """Its result. By a thread: the browser's driver has a loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


@pytest.fixture(scope="module")
def api(
    services: Services,
    template_database: str,
    tmp_path_factory: pytest.TempPathFactory,
    footage: dict[str, Path],
) -> Iterator[Api]:
    """Two cameras, ``street`` and ``car``, an hour apart."""
    folder = tmp_path_factory.mktemp("api")
    recordings = tmp_path_factory.mktemp("recordings")
    for camera in ("", "street", "car"):
        (recordings / camera).mkdir(exist_ok=True)
        shutil.copy(footage["bikes"], recordings / camera / "bikes.mp4")
    changes = {"backbone": "tiny-a", "codec": "fp32", "footage_dir": recordings}
    with fresh_context(services.database_url, template_database, folder, **changes) as context:
        ingested(context, footage["bikes"], "street", 2.0, start_utc=STREET_START)
        ingested(context, footage["car"], "car", 1.0, start_utc=CAR_START)
        desk = open_desk(context.settings, lambda _job_id, _kind: None)
        with serving(replace(desk, pace=Pace(100_000.0))) as client:
            yield Api(context, desk, client, recordings)
        desk.close()
