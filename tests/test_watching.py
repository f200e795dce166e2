"""Watched folders: each file once, when it has stopped growing, at the time its name says."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from models.repositories import watching as watch_record
from models.repositories.watching import WatchSummary
from tests.conftest import Services
from tests.parts import HANDLERS, fresh_context, queued_jobs, run_jobs, sql, with_settings
from worker.admin import watch as watch_commands
from worker.admin.cli import app as cli
from worker.context import Context
from worker.core.sampling import IntervalPolicy
from worker.erasure import camera_span, submit_erasure
from worker.errors import AlreadyThere, InputInvalid, NotFound
from worker.fetching import FetchHost
from worker.ingest import submit_file
from worker.jobs import Handler, run_job, sweep
from worker.messages import JobKind
from worker.recorder_folders import name_rules, recordings_below
from worker.watching import add_watch, fail_watch, reconcile, remove_watch, run_watch

SLOW = IntervalPolicy(60.0)


@dataclass
class Watch:
    """A watched folder, looked at when a test says so."""

    context: Context
    folder: Path
    id: int

    def look(self, context: Context | None = None) -> WatchSummary:
        """As its worker does each ten seconds."""
        (job_id,) = sql(
            self.context,
            "update jobs set run_after = now() from watched_folders w where w.job_id = jobs.id"
            f" and w.id = {self.id} returning jobs.id",
        )[0]
        run_job(context or self.context, job_id, HANDLERS)
        return self.state()

    def state(self) -> WatchSummary:
        with self.context.db.transaction() as session:
            (found,) = [w for w in watch_record.summarise(session) if w.id == self.id]
        return found

    def put(self, clip: Path, name: str) -> Path:
        """A recording of its own, as a recorder that renames it when it is finished."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(clip.read_bytes() + uuid.uuid4().bytes)
        return path


@pytest.fixture(scope="module")
def context(
    services: Services, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Context]:
    changes = {"backbone": "tiny-a", "watch_settle_s": 0.0, "job_max_attempts": 2}
    folder = tmp_path_factory.mktemp("watching")
    with fresh_context(services.database_url, template_database, folder, **changes) as made:
        yield made


@pytest.fixture
def clip(footage: dict[str, Path]) -> Path:
    return footage["car"]


def watch(context: Context, folder: Path, pattern: str | None = None, **how: Any) -> Watch:
    folder.mkdir(exist_ok=True)
    given = {"camera": None, "from_folder": False, "time_zone": "UTC"} | how
    rules = name_rules(pattern=pattern, **given)
    return Watch(context, folder, add_watch(context, folder, rules, SLOW)[0])


def segments(context: Context, camera: str) -> list[tuple[Any, ...]]:
    return sql(
        context,
        "select start_utc, start_source, outcome from video_segments s join cameras c"
        " on c.id = camera_id where c.name = %s order by start_utc",
        camera,
    )


def test_each_file_once_at_the_time_of_its_name(context: Context, clip: Path, tmp_path: Path):
    pattern = "%Y-%m-%d/%H/{camera}/%M.%S.mp4"
    watched = watch(context, tmp_path / "frigate", pattern, time_zone="Europe/Berlin")
    for name in ("2026-05-01/08/yard/00.00.mp4", "2026-05-01/08/yard/01.30.mp4"):
        watched.put(clip, name)
    watched.put(clip, "2026-05-01/08/gate/00.00.mp4")
    watched.put(clip, "2026-05-01/08/yard/clip.jpg")
    watched.put(clip, "2026-05-01/08/yard/.03.00.mp4")
    (watched.folder / "link.mp4").symlink_to(clip)
    for _ in range(3):
        state = watched.look()
    assert (state.taken, state.failed, state.waiting, state.error_code) == (3, 0, 0, None)
    run_jobs(context)
    start = datetime(2026, 5, 1, 6, tzinfo=UTC)
    assert segments(context, "yard") == [
        (start, "file-name", "complete"),
        (start + timedelta(seconds=90), "file-name", "complete"),
    ]
    assert segments(context, "gate") == [(start, "file-name", "complete")]
    shutil.rmtree(watched.folder / "2026-05-01")  # the recorder's own retention
    watched.put(clip, "2026-05-01/08/yard/00.00.mp4").write_bytes(clip.read_bytes())
    state = watched.look()
    assert (state.taken, queued_jobs(context)) == (3, [])


def test_a_file_is_taken_when_it_has_stopped_growing(context: Context, clip: Path, tmp_path: Path):
    watched = watch(context, tmp_path / "growing", camera="growing")
    slow = with_settings(context, watch_settle_s=0.5)
    whole = clip.read_bytes()
    path = watched.folder / "a.mp4"
    for end in (1000, 5000, len(whole)):
        path.write_bytes(whole[:end])
        time.sleep(0.6)
        assert watched.look(slow).waiting == 1, "it has just changed"
    time.sleep(0.6)
    path.write_bytes(whole + b"x")  # between the look and the reading of one that was settled
    assert watched.look(slow).waiting == 1
    time.sleep(0.6)
    assert watched.look(slow).taken == 1
    run_jobs(context)
    ((start, source, outcome),) = segments(context, "growing")
    assert (source, outcome) == ("file-mtime", "complete")
    ended = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    assert timedelta(0) < ended - start < timedelta(seconds=20), "its length is taken off"


def test_files_that_are_no_good_are_recorded_failures(context: Context, clip: Path, tmp_path: Path):
    watched = watch(context, tmp_path / "bad", "%Y%m%d.mp4", from_folder=True)
    watched.put(clip, "cam/20260501.mp4")
    watched.put(clip, "cam/other.mp4")
    watched.put(clip, "20260502.mp4")
    secret = watched.put(clip, "cam/20260503.mp4")
    torn = watched.put(clip, "cam/20260504.mp4")
    torn.write_bytes(b"half")
    secret.chmod(0)
    state = watched.look()
    run_jobs(context)
    assert (state.failed, state.waiting) == (2 if os.geteuid() == 0 else 3, 0)
    with context.db.transaction() as session:
        failed = {f.path: (f.code, f.detail) for f in watch_record.failed_files(session, 100)}
    assert failed["cam/other.mp4"][0] == failed["20260502.mp4"][0] == "input_invalid"
    assert "is not named as '%Y%m%d.mp4' says" in str(failed["cam/other.mp4"][1])
    assert "lies in no folder of a camera" in str(failed["20260502.mp4"][1])
    assert failed["cam/20260504.mp4"][0] == "video_invalid"
    assert watched.state().ingest_failed == 1
    # The recorder had paused in the middle of it: what failed is looked at again once it changes.
    torn.write_bytes(clip.read_bytes() + uuid.uuid4().bytes)
    watched.look()
    run_jobs(context)
    assert watched.state().ingest_failed == 0
    outcomes = [outcome for *_, outcome in segments(context, "cam")]
    assert sorted(outcomes[-2:]) == ["complete", "failed"], "of the whole file, and of its half"


def test_it_survives_a_crash_between_the_segment_and_its_note(
    context: Context, clip: Path, tmp_path: Path
):
    """Both are one transaction; a file that was submitted otherwise is the same segment."""
    watched = watch(context, tmp_path / "crash", "%Y%m%d.mp4", camera="crash")
    path = watched.put(clip, "20260501.mp4")
    made = submit_file(context, path, "crash", SLOW, datetime(2026, 5, 1, tzinfo=UTC))
    watched.look()
    assert watched.state().taken == 1
    assert len(segments(context, "crash")) == 1
    run_jobs(context)
    sql(
        context,
        f"update watched_files set state = 'seen', segment_id = null where watch_id = {watched.id}",
    )
    watched.look()
    assert queued_jobs(context) == []
    found = sql(context, f"select segment_id from watched_files where watch_id = {watched.id}")
    assert found == [(made.segment_id,)]


def test_what_was_erased_does_not_come_back(context: Context, clip: Path, tmp_path: Path):
    watched = watch(context, tmp_path / "erased", "%Y%m%d.mp4", camera="erased")
    watched.put(clip, "20260501.mp4")
    watched.look()
    run_jobs(context)
    submit_erasure(context, camera_span(context, "erased", None, None)[0])
    run_jobs(context)
    assert segments(context, "erased") == []
    watched.look()
    assert (queued_jobs(context), segments(context, "erased")) == ([], [])


def test_a_file_waits_while_its_footage_is_erased(context: Context, clip: Path, tmp_path: Path):
    watched = watch(context, tmp_path / "waits", "%Y%m%d.mp4", camera="waits")
    watched.put(clip, "20260501.mp4")
    watched.look()
    run_jobs(context)
    submit_erasure(context, camera_span(context, "waits", None, None)[0])
    watched.put(clip, "20260502.mp4")
    state = watched.look()
    assert (state.waiting, state.taken, state.failed) == (1, 1, 0)
    run_jobs(context)
    assert watched.look().taken == 2
    run_jobs(context)
    assert [outcome for *_, outcome in segments(context, "waits")] == ["complete"]


def test_a_folder_that_is_away_is_told_and_forgets_nothing(
    context: Context, clip: Path, tmp_path: Path
):
    watched = watch(context, tmp_path / "mounted", "%Y%m%d.mp4", camera="mounted")
    watched.put(clip, "20260501.mp4")
    watched.look()
    watched.folder.rename(tmp_path / "away")
    state = watched.look()
    assert state.error_code == "video_unreadable"
    assert "No such file" in str(state.error_detail)
    (tmp_path / "away").rename(watched.folder)
    state = watched.look()
    assert (state.error_code, state.taken) == (None, 1)
    run_jobs(context)
    assert len(segments(context, "mounted")) == 1


def test_adding_and_removing(context: Context, clip: Path, tmp_path: Path):
    folder = tmp_path / "twice"
    first, again = watch(context, folder, camera="a"), watch(context, folder, camera="a")
    assert first.id == again.id
    with pytest.raises(AlreadyThere):
        watch(context, folder, camera="b")
    with pytest.raises(InputInvalid, match="no folder"):
        add_watch(context, tmp_path / "none", name_rules("a", False, None, "UTC"), SLOW)
    with pytest.raises(InputInvalid, match="data folder"):
        add_watch(context, context.settings.data_dir, name_rules("a", False, None, "UTC"), SLOW)
    twice: list[tuple[str | None, bool, str | None]] = [
        (None, False, None),
        ("a", True, None),
        ("a", False, "{camera}%Y%m%d.mp4"),
    ]
    for camera, from_folder, pattern in twice:
        with pytest.raises(InputInvalid, match="whose recordings"):
            name_rules(camera, from_folder, pattern, "UTC")
    with pytest.raises(InputInvalid, match="time zone"):
        name_rules("a", False, None, "Mars/Olympus")
    (job_id,) = sql(context, f"select job_id from watched_folders where id = {first.id}")[0]
    remove_watch(context, folder)
    run_job(context, job_id, HANDLERS)
    assert sql(context, "select state from jobs where id = %s", job_id) == [("done",)]
    with pytest.raises(NotFound):
        remove_watch(context, folder)
    assert reconcile(context) == 0


def test_a_job_that_failed_is_followed_by_another(context: Context, tmp_path: Path):
    watched = watch(context, tmp_path / "crashed", camera="crashed")

    def crash(*_: Any) -> Any:
        raise RuntimeError("boom")

    handlers = {**HANDLERS, "watch": Handler(crash, fail_watch)}
    (job_id,) = sql(context, f"select job_id from watched_folders where id = {watched.id}")[0]
    for _ in range(3):
        sql(context, "update jobs set run_after = now() where id = %s", job_id)
        run_job(context, job_id, handlers)
    assert watched.state().error_code == "internal"
    assert reconcile(context) == 0, "it rests first"
    sql(context, "update jobs set finished_at = now() - interval '1 hour' where id = %s", job_id)
    assert reconcile(context) == 1
    assert watched.look().error_code is None


def test_what_was_there_before_comes_last(context: Context, clip: Path, tmp_path: Path):
    folder = tmp_path / "archive"
    folder.mkdir()
    old = Watch(context, folder, 0).put(clip, "20250501.mp4")
    os.utime(old, (time.time() - 86_400,) * 2)
    watched = watch(context, folder, "%Y%m%d.mp4", camera="archive")
    watched.put(clip, "20260501.mp4")
    rung: list[JobKind] = []
    watched.look(replace(context, ring=lambda _id, kind: rung.append(kind)))
    assert [kind for kind in rung if kind != "watch"] == ["ingest", "backfill"]
    run_jobs(context)
    assert [outcome for *_, outcome in segments(context, "archive")] == ["complete"] * 2


def test_an_archive_gives_way_in_the_middle_of_a_file(context: Context, clip: Path, tmp_path: Path):
    folder = tmp_path / "long"
    folder.mkdir()
    fine = IntervalPolicy(0.1)
    rules = name_rules("long", False, "%Y%m%d.mp4", "UTC")
    path = Watch(context, folder, 0).put(clip, "20250501.mp4")
    os.utime(path, (time.time() - 86_400,) * 2)
    watched = Watch(context, folder, add_watch(context, folder, rules, fine)[0])
    watched.look()
    (job_id,) = queued_jobs(context)
    fresh = submit_file(context, clip, "fresh", SLOW, datetime(2026, 6, 1, tzinfo=UTC))
    run_job(context, job_id, HANDLERS)
    ((state, progress),) = sql(context, "select state, progress from jobs where id = %s", job_id)
    assert (state, progress["frames"]) == ("queued", context.settings.commit_batch)
    run_job(context, uuid.UUID(fresh.job_id), HANDLERS)
    run_job(context, job_id, HANDLERS)
    assert sql(context, "select state from jobs where id = %s", job_id) == [("done",)]


def test_looking_runs_beside_what_is_ingested(context: Context, clip: Path, tmp_path: Path):
    """On a thread of the host of fetches, rung by the sweeper until it is removed."""
    watched = watch(context, tmp_path / "beside", "%Y%m%d.mp4", camera="beside")
    watched.put(clip, "20260501.mp4")
    host = FetchHost()
    handlers = {**HANDLERS, "watch": Handler(run_watch, fail_watch)}
    quick = with_settings(context, watch_every_s=0.05, sweep_every_s=0.05)

    def ring(job_id: uuid.UUID, kind: JobKind) -> bool:
        if kind == "watch":
            host.take(quick, job_id, handlers)
        return True

    quick = replace(quick, ring=ring)
    deadline_s = time.monotonic() + 60
    while watched.state().taken == 0 and time.monotonic() < deadline_s:
        sweep(quick, lambda _queue: 0)
        time.sleep(0.1)
    assert watched.state().taken == 1
    host.stop()
    remove_watch(context, watched.folder)
    run_jobs(context)


def test_only_recordings_are_looked_at(tmp_path: Path):
    for name in ("a.mp4", "b.MKV", "c.txt", ".d.mp4", "e.mp4.part", "f/g.ts", ".h/i.mp4"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "dir.mp4").mkdir()
    assert [path for path, _ in recordings_below(tmp_path)] == ["a.mp4", "b.MKV", "f/g.ts"]
    assert json.dumps(dict(recordings_below(tmp_path)))


def test_the_commands(
    context: Context, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(watch_commands, "process_context", lambda: context)
    folder = tmp_path / "commands"
    folder.mkdir()

    def ris(*arguments: str) -> Any:
        done = CliRunner().invoke(cli, ["watch", *arguments])
        assert done.exit_code == 0, (done.output, done.exception)
        return json.loads(done.stdout) if "--json" in arguments else done.stdout

    add = ("add", str(folder), "--camera", "commands", "--name", "%Y%m%d.mp4", "--every", "60")
    first, again = ris(*add, "--json"), ris(*add, "--json")
    assert (first["is_new"], again) == (True, first | {"is_new": False})
    watched = Watch(context, folder, first["watch_id"])
    watched.put(clip, "x.mp4")
    watched.put(clip, "20260501.mp4")
    watched.look()
    told = ris("ls", "--failed", "--json")
    (shown,) = [one for one in told["folders"] if one["id"] == watched.id]
    assert (shown["taken"], shown["failed"], shown["camera"]) == (1, 1, "commands")
    assert [one["code"] for one in told["failed"] if one["path"] == "x.mp4"] == ["input_invalid"]
    assert "Failed files" in ris("ls", "--failed")
    assert "not watched any more" in ris("rm", str(folder))
    assert watched.id not in [one["id"] for one in ris("ls", "--json")]
    run_jobs(context)
