"""Archives: every recording below a folder, once, resumable, behind what just happens."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.conftest import Services
from tests.parts import fresh_context, queued_jobs, run_jobs, sql
from worker import backfill
from worker.admin import video
from worker.admin.cli import app as ris
from worker.backfill import Backfill, ingest_folder
from worker.config import settings
from worker.context import Context
from worker.core.sampling import IntervalPolicy
from worker.errors import InputInvalid
from worker.ingest import recording_of
from worker.messages import INGEST_QUEUES
from worker.recorder_folders import NameRules, name_rules

SLOW = IntervalPolicy(60.0)


@pytest.fixture(scope="module")
def context(
    services: Services, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Context]:
    folder = tmp_path_factory.mktemp("backfill")
    given = {"backbone": "tiny-a"}
    with fresh_context(services.database_url, template_database, folder, **given) as made:
        yield made


@pytest.fixture
def archive(footage: dict[str, Path], tmp_path: Path) -> Path:
    """Five recordings of two cameras, one of them no video, and one with another name."""
    for number, name in enumerate(("a/20250501", "a/20250502", "b/20250501", "b/20250502", "b/x")):
        path = tmp_path / f"{name}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(footage["car"].read_bytes() + uuid.uuid4().bytes)
        if number == 3:
            path.write_bytes(b"no video")
    return tmp_path


RULES = name_rules(None, True, "%Y%m%d.mp4", "UTC")


class Working:
    """An ingest worker beside the test."""

    def __init__(self, context: Context) -> None:
        self._context, self._over = context, threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        while not self._over.wait(0.05):
            run_jobs(self._context)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)


def ingest(context: Context, folder: Path, rules: NameRules = RULES, **how: Any) -> Backfill:
    with Working(context):
        return ingest_folder(context, folder, rules, SLOW, **how)


def cameras(context: Context, folder: Path) -> list[tuple[Any, ...]]:
    statement = """select c.name, start_utc, start_source, outcome, kind from video_segments s
        join cameras c on c.id = camera_id join jobs j on j.id = s.job_id
        where source_path like %s order by 1, 2"""
    return sql(context, statement, f"{folder}/%")


def test_all_of_it_once_and_what_is_no_good_is_told(
    context: Context, archive: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(backfill, "MOST_OPEN", 2)
    told: list[tuple[int, int, int]] = []
    done = ingest(
        context, archive, tell=lambda now: told.append((now.done, now.files, now.done_bytes))
    )
    assert (done.files, done.done, done.known) == (5, 5, 0)
    assert done.frames >= 3
    assert (
        done.done_bytes == done.byte_count == sum(p.stat().st_size for p in archive.rglob("*.mp4"))
    )
    assert sorted((Path(path).name, code) for path, code, _ in done.failed) == [
        ("20250502.mp4", "video_invalid"),
        ("x.mp4", "input_invalid"),
    ]
    assert (told[0], told[-1]) == ((0, 5, 0), (5, 5, done.byte_count))
    assert told == sorted(told)
    first, second = (datetime(2025, 5, day, tzinfo=UTC) for day in (1, 2))
    assert cameras(context, archive) == [
        ("a", first, "file-name", "complete", "backfill"),
        ("a", second, "file-name", "complete", "backfill"),
        ("b", first, "file-name", "complete", "backfill"),
        ("b", second, "file-name", "failed", "backfill"),
    ]


def test_again_it_reads_only_what_it_does_not_know(
    context: Context, archive: Path, monkeypatch: pytest.MonkeyPatch
):
    (archive / "b" / "20250502.mp4").unlink()
    (archive / "b" / "x.mp4").unlink()
    ingest(context, archive)
    read: list[str] = []

    def reading(context: Context, path: Path, *given: Any) -> Any:
        read.append(path.name)
        return recording_of(context, path, *given)

    monkeypatch.setattr(backfill, "recording_of", reading)
    again = ingest(context, archive)
    assert (read, again.known, again.done, again.failed) == ([], 3, 3, [])
    assert queued_jobs(context) == []
    touched = archive / "a" / "20250501.mp4"
    touched.touch()
    assert ingest(context, archive).known == 3
    assert read == ["20250501.mp4"], "another time of writing: it is read, and is the same"
    # Another start is asked for by other rules.
    other = name_rules(None, True, "%Y%m%d.mp4", "Europe/Berlin")
    assert ingest(context, archive, other).known == 0
    assert len(cameras(context, archive)) == 6


def test_stopped_in_the_middle_it_goes_on(
    context: Context, archive: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(backfill, "MOST_OPEN", 1)

    def stop(now: Backfill) -> None:
        if now.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(context, archive, tell=stop)
    before = len(cameras(context, archive))
    assert before == 2
    again = ingest(context, archive)
    assert (again.known, again.done, len(again.failed)) == (2, 5, 2)


def test_without_waiting_and_folders_that_are_none(context: Context, archive: Path):
    done = ingest_folder(context, archive, RULES, SLOW, wait=False)
    assert (done.files, len(done.failed), len(queued_jobs(context))) == (5, 1, 4)
    run_jobs(context)
    with pytest.raises(InputInvalid, match="No such file"):
        ingest_folder(context, archive / "none", RULES, SLOW)


def test_the_command(context: Context, archive: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(video, "process_context", lambda: context)
    asked = [
        "ingest",
        str(archive),
        "--camera-from-folder",
        "--name",
        "%Y%m%d.mp4",
        "--every",
        "60",
    ]
    with Working(context):
        shown = CliRunner().invoke(ris, asked)
    assert shown.exit_code == 1, "two of them are no good"
    assert "5 files, 0 known before" in shown.stdout.replace("\n", " ")
    assert "failed (video_invalid)" in shown.stdout.replace("\n", " ")
    (archive / "b" / "20250502.mp4").unlink()
    (archive / "b" / "x.mp4").unlink()
    with Working(context):
        told = CliRunner().invoke(ris, [*asked, "--json"])
    assert told.exit_code == 0, told.output
    (folder,) = json.loads(told.stdout)["folders"]
    assert (folder["known"], folder["done"], folder["failed"]) == (3, 3, [])
    single = CliRunner().invoke(
        ris, ["ingest", str(archive / "a" / "20250501.mp4"), "--camera", "c", "--no-wait", "--json"]
    )
    assert single.exit_code == 0
    assert json.loads(single.stdout)["submitted"][0]["is_new"]
    run_jobs(context)
    none = CliRunner().invoke(ris, ["ingest", str(archive)])
    assert isinstance(none.exception, InputInvalid)


def test_an_ingest_worker_takes_what_just_happened_before_archives(
    services: Services, monkeypatch: pytest.MonkeyPatch
):
    """Bells on a real Redis, rung in the wrong order, as the worker's consumer hands them out."""
    monkeypatch.setenv("RIS_BROKER_URL", services.broker_url)
    settings.cache_clear()
    try:
        from worker.app import _archives_last, make_app

        app = make_app()
    finally:
        settings.cache_clear()
    app.amqp.queues.select(INGEST_QUEUES)
    _archives_last(instance=SimpleNamespace(app=app))
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        for queue in INGEST_QUEUES:
            channel.client.delete(queue)
        for queue in ("backfill", "backfill", "ingest", "backfill", "fetch", "ingest"):
            app.send_task("test", args=[queue], queue=queue)
        taken: list[str] = []
        with app.amqp.TaskConsumer(channel, accept=["json"], no_ack=False) as consumer:

            def take(body: Any, message: Any) -> None:
                taken.append(message.delivery_info["routing_key"])
                if len(taken) == 3:  # an event comes while an archive is worked on
                    app.send_task("test", args=["ingest"], queue="ingest")
                message.ack()

            consumer.callbacks, consumer.on_message = [take], None
            consumer.qos(prefetch_count=1)
            until_s = time.monotonic() + 30
            while len(taken) < 7 and time.monotonic() < until_s:
                connection.drain_events(timeout=10)
    assert taken == ["fetch", "ingest", "ingest", "ingest", "backfill", "backfill", "backfill"]
