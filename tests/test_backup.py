"""Backup and restore: what was committed at one moment comes back, and nothing else."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

import worker.backup
from models.session import Session
from tests.conftest import Services
from tests.index.test_shard import small_disk
from tests.parts import (
    HANDLERS,
    acts,
    fresh_database,
    ingested,
    loaded,
    run_jobs,
    sql,
    with_settings,
)
from tests.processes.harness import CLI, REPO, clean_env
from tests.searching import asked, flip, scores
from tests.test_erasure import START, blocks, erased, everything, markers
from worker import VERSION, sealing
from worker.backup import BackupReport, back_up
from worker.backup_folder import CheckReport, check_folder, read_manifest
from worker.config import Settings
from worker.context import Context
from worker.core.sampling import IntervalPolicy
from worker.core.search_params import Strategy
from worker.embedded.postgres import start_postgres, stop_postgres
from worker.embedded.state import refuse_unfinished_restore, restoring_path
from worker.erasure import camera_span, receipts, submit_erasure
from worker.errors import BackupInvalid, FormatNewer, InputInvalid, StorageFull
from worker.index.layout import HEADER_BYTES
from worker.index.shard import check_headers
from worker.ingest import submit_file
from worker.jobs import run_job
from worker.pinning import layout_of
from worker.repair import repair_index
from worker.restore import RestoreReport, restore
from worker.runtime import make_context
from worker.verify import verify_index


@pytest.fixture
def indexed(context: Context, footage: dict[str, Path]) -> Context:
    """Ten frames of one camera in shard 1, two of another in shard 2."""
    made = loaded(with_settings(context, backbone="tiny-a"))
    ingested(made, footage["car"], "call", 0.4, start_utc=START)
    ingested(made, footage["bikes"], "street", 5.0, start_utc=START)
    return made


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "backup"


def checked(folder: Path) -> CheckReport:
    return check_folder(folder, read_manifest(folder))


def made(context: Context, folder: Path) -> BackupReport:
    """A backup that is what its manifest says."""
    report = back_up(context, folder)
    assert (report.problems, checked(folder).wrong, checked(folder).extra) == ((), (), ())
    return report


@contextmanager
def place(context: Context, folder: Path, url: str) -> Iterator[Context]:
    """A context on an empty database and data folder."""
    with fresh_database(url) as database:
        configured = context.settings.model_copy(
            update={"database_url": database, "data_dir": folder}
        )
        found = make_context(configured, database, application_name="ris tests")
        yield loaded(replace(found, ring=lambda _job_id, _kind: None))
        found.db.close()


def restored(
    context: Context, folder: Path, orders: list[dict[str, object]] | None = None
) -> RestoreReport:
    return restore(context, folder, str(context.settings.database_url), orders or [])


def pictures(folder: Path) -> list[Path]:
    return sorted((folder / "pictures").rglob("*.jpg"))


def shard(context: Context, camera: str) -> Path:
    """The folder of a camera's first shard, below the index."""
    found = "select s.id, revision from shards s join cameras c on c.id = camera_id"
    number, revision = sql(context, f"{found} where name = %s order by 1 limit 1", camera)[0]
    return Path("g1") / (f"s{number}.{revision}" if revision else f"s{number}")


def rows(context: Context) -> list[tuple[object, ...]]:
    return sql(context, "select id, camera_id, pts, t_utc, picture_sha256 from frames order by id")


def ris(data_dir: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, *words],
        env=clean_env({"RIS_DATA_DIR": str(data_dir)}),
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_backup_in_the_middle_of_an_ingest_is_that_moment(
    context: Context, footage: dict[str, Path], target: Path, tmp_path: Path
) -> None:
    """By the command line, into a data folder with its own Postgres."""
    live = loaded(with_settings(context, backbone="tiny-a"))
    ingested(live, footage["car"], "call", 0.4, start_utc=START)
    asked(live, uploaded=True)
    half = submit_file(live, footage["bikes"], "street", IntervalPolicy(0.2), start_utc=START)
    run_job(with_settings(live, job_slice_s=0.0), uuid.UUID(half.job_id), HANDLERS)
    then, stored = rows(live), blocks(live)
    hits = scores(asked(live, strategy=Strategy.MAX_SIM, top_n=100))
    assert 0 < len(then) - 10 < 40

    report = made(live, target)
    run_jobs(live)
    assert report.frames == len(then) < len(rows(live))

    # As if an older RIS had made it: then the restore migrates.
    path = target / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_revision": "0004"}))
    folder = tmp_path / "restored"
    done = ris(folder, "restore", str(target), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["problems"] == []
    assert (folder / "logs" / "migrate.log").exists()
    assert not restoring_path(folder).exists()
    postgres = start_postgres(folder / "postgres")
    try:
        configured = live.settings.model_copy(
            update={"database_url": postgres.url, "data_dir": folder}
        )
        back = loaded(make_context(configured, postgres.url, application_name="ris tests"))
        back = replace(back, ring=lambda _job_id, _kind: None)
        assert (rows(back), blocks(back)) == (then, stored)
        assert verify_index(back).problems == ()
        assert scores(asked(back, strategy=Strategy.MAX_SIM, top_n=100)) == hits
        run_jobs(back)  # the ingest goes on where it stood
        assert len(rows(back)) == len(rows(live))
        assert verify_index(back).problems == ()
        back.db.close()
    finally:
        stop_postgres(folder / "postgres")


def test_backups_while_everything_goes_on(
    indexed: Context, footage: dict[str, Path], target: Path, tmp_path: Path, services: Services
) -> None:
    street = str(shard(indexed, "street"))
    ended = threading.Event()

    def busy() -> None:
        try:
            for hour in range(1, 4):
                start = START + timedelta(hours=hour)
                ingested(indexed, footage["bikes"], "street", 0.25, start_utc=start)
                flip(indexed.index.root / shard(indexed, "street") / "patch.vec", HEADER_BYTES + 5)
                assert repair_index(indexed).problems == ()
                erased(indexed, "call", hour - 1.0, hour - 0.5)
                erased(indexed, "street", hour * 3600 + 2, hour * 3600 + 3)
        finally:
            ended.set()

    work = threading.Thread(target=busy)
    work.start()
    number = 0
    try:
        while not ended.is_set() or number < 2:
            report = back_up(indexed, target)
            assert checked(target).wrong == ()
            # A block that was damaged when it was copied is said to be.
            assert all(street in problem for problem in report.problems), report.problems
            number += 1
    finally:
        work.join()
    made(indexed, target)
    with place(indexed, tmp_path / "restored", services.database_url) as back:
        restored(back, target)
        assert len(acts(back, "backup.restore")) == 1
        assert verify_index(back).problems == ()
        assert (rows(back), blocks(back)) == (rows(indexed), blocks(indexed))


def test_files_that_go_under_the_snapshot_make_it_look_again(
    indexed: Context,
    footage: dict[str, Path],
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    services: Services,
) -> None:
    """Footage comes after the first look; it, and a shard written anew, go behind the second."""
    looks = []
    real = worker.backup._wanted

    def wanted(session: Session) -> object:
        looks.append(real(session).moment.frames)  # from here on it sees nothing newer
        if len(looks) == 2:
            flip(indexed.index.root / "g1" / "s1" / "patch.vec", HEADER_BYTES + 5)
            assert repair_index(indexed).repaired == 1
            erased(indexed, "late")
        found = real(session)
        if len(looks) == 1:
            ingested(indexed, footage["bikes"], "late", 2.0, start_utc=START)
        return found

    monkeypatch.setattr(worker.backup, "_wanted", wanted)
    report = made(indexed, target)
    assert looks[0] == looks[2] == report.frames == 12 < looks[1]
    with place(indexed, tmp_path / "restored", services.database_url) as back:
        restored(back, target)
        assert verify_index(back).problems == ()
        assert blocks(back) == blocks(indexed)


def test_what_the_index_has_lost_is_named_and_the_rest_is_backed_up(
    indexed: Context, target: Path
) -> None:
    street = shard(indexed, "street")
    shutil.rmtree(indexed.index.root / street)
    lost = pictures(indexed.settings.data_dir)[3]
    lost.unlink()
    report = back_up(indexed, target)
    assert len(report.problems) == 2
    assert str(street) in report.problems[0] and lost.name in report.problems[1]
    assert checked(target).wrong == ()
    flip(indexed.index.root / "g1" / "s1" / "patch.vec", HEADER_BYTES + 5)
    assert len(back_up(indexed, target).problems) == 2, "the good copy is kept"


def test_a_flipped_byte_is_named_and_nothing_is_restored(
    indexed: Context, target: Path, tmp_path: Path, services: Services
) -> None:
    made(indexed, target)
    manifest = read_manifest(target)
    flipped = [str(pictures(target)[2].relative_to(target)), manifest.database]
    flipped += [path for path in manifest.files if path.endswith("s1/patch.vec")]
    for path in flipped:
        flip(target / path, 300)
    gone = str(pictures(target)[5].relative_to(target))
    (target / gone).unlink()
    wrong = checked(target).wrong
    assert [line.split(":")[0] for line in wrong] == sorted([*flipped, gone])
    folder = tmp_path / "restored"
    done = ris(tmp_path / "nothing", "backup", str(target), "--check", "--json")
    assert (done.returncode, json.loads(done.stdout)["wrong"]) == (1, list(wrong))
    with place(indexed, folder, services.database_url) as back:
        with pytest.raises(BackupInvalid) as refused:
            restored(back, target)
        assert all(path in str(refused.value) for path in [*flipped, gone])
        assert sql(back, "select * from pg_tables where schemaname = 'public'") == []
        assert not folder.exists() or list(folder.iterdir()) == []
    for path in flipped:
        (target / path).unlink()
    made(indexed, target)


def test_a_second_backup_copies_what_is_new(
    indexed: Context, footage: dict[str, Path], target: Path
) -> None:
    first = made(indexed, target)
    assert first.new_bytes == first.byte_count
    times = {path: path.stat().st_mtime_ns for path in pictures(target)}
    street = target / "index" / shard(indexed, "street") / "patch.vec"
    vectors = street.read_bytes()
    dump = read_manifest(target).database
    ingested(indexed, footage["bikes"], "street", 2.0, start_utc=START)
    second = made(indexed, target)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert second.frames > first.frames
    grown = street.read_bytes()
    assert len(grown) > len(vectors) and grown.startswith(vectors)
    new = [path for path in pictures(target) if path not in times]
    dumped = (target / read_manifest(target).database).stat().st_size
    tail = second.new_bytes - sum(path.stat().st_size for path in new) - dumped
    assert tail == (second.frames - first.frames) * (24 + 16 * 24)
    assert not (target / dump).exists() and second.removed == 1


def test_a_backup_brought_up_to_date_holds_nothing_erased(
    indexed: Context, target: Path, tmp_path: Path, services: Services
) -> None:
    made(indexed, target)
    planted = markers(indexed, "call", 1.0, 2.6)
    erased(indexed, "call", 1.0, 2.6)
    made(indexed, target)
    assert read_manifest(target).last_erasure == 1
    held = b"\0".join(p.read_bytes() for p in target.rglob("*") if p.is_file())
    held += "\0".join(str(p) for p in target.rglob("*")).encode()
    assert [marker[:20] for marker in planted if marker in held] == []
    with place(indexed, tmp_path / "restored", services.database_url) as back:
        restored(back, target)
        assert [marker[:20] for marker in planted if marker in everything(back)] == []


def test_erasures_since_the_backup_are_carried_out_by_the_restore(
    indexed: Context, target: Path, tmp_path: Path, services: Services
) -> None:
    erased(indexed, "call", 0.0, 0.5)
    made(indexed, target)
    planted = markers(indexed, "call", 1.0, 2.6)
    erased(indexed, "call", 1.0, 2.6)
    orders = json.loads(json.dumps(receipts(indexed)))
    with place(indexed, tmp_path / "restored", services.database_url) as back:
        assert restored(back, target, orders).erasures == 1
        assert [marker[:20] for marker in planted if marker in everything(back)] == []
        assert verify_index(back).problems == ()
        assert rows(back) == rows(indexed)


def test_newer_formats_are_refused_in_one_line(
    indexed: Context, target: Path, tmp_path: Path, services: Services
) -> None:
    made(indexed, target)
    path = target / "manifest.json"
    fields = json.loads(path.read_text())
    with place(indexed, tmp_path / "restored", services.database_url) as back:
        for changes in ({"format": 2, "files": "?"}, {"schema_revision": "9999"}):
            path.write_text(json.dumps(fields | changes))
            with pytest.raises(FormatNewer, match="update RIS") as refused:
                restored(back, target)
            assert "\n" not in str(refused.value)
    with pytest.raises(FormatNewer, match="of schema revision 9999"):
        restored(indexed, target)


def test_a_database_of_a_newer_ris_is_left_alone(indexed: Context, tmp_path: Path) -> None:
    sql(indexed, "update alembic_version set version_num = '9999'")
    env = {"RIS_DATABASE_URL": str(indexed.settings.database_url), "RIS_DATA_DIR": str(tmp_path)}
    done = subprocess.run(
        [*CLI, "up"], env=clean_env(env), cwd=REPO, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "error (format_newer)" in done.stderr and "9999" in done.stderr
    assert "Traceback" not in done.stderr


def test_vectors_of_a_newer_format_are_no_damage(
    indexed: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    import worker.index.layout

    with indexed.db.transaction() as session:
        from models.repositories import index as index_record

        generation = index_record.live_generation(session)
        shard = index_record.find_shard(session, 1)
    assert generation is not None and shard is not None
    layout = layout_of(indexed.index, generation, shard)
    monkeypatch.setattr(worker.index.layout, "FORMAT_VERSION", 2)
    header = layout.header("patch")
    monkeypatch.undo()
    with layout.path("patch").open("r+b") as stream:
        stream.write(header)
    with pytest.raises(FormatNewer, match=r"patch.vec is of format version 2.*newer RIS"):
        check_headers(layout)
    assert "format version 2" in repair_index(indexed).problems[0]
    assert layout.path("patch").read_bytes()[:HEADER_BYTES] == header, "left as it is"


def test_sealed_shards_are_backed_up_as_they_are(
    indexed: Context,
    footage: dict[str, Path],
    target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sealing, "MIN_FRAMES", 4)
    made(indexed, target)
    assert sealing.submit_due(indexed, after_s=0.0) is not None
    run_jobs(indexed)
    ingested(indexed, footage["car"], "call", 0.4, start_utc=START + timedelta(minutes=5))
    report = made(indexed, target)
    folder = target / "index" / shard(indexed, "call")
    assert (folder / "patch.runs").is_file() and report.removed > 0, "the former revision goes"
    again = made(indexed, target)
    assert again.new_bytes < report.new_bytes and again.files == report.files
    for at in (20, HEADER_BYTES + 3):
        flip(folder / "patch.runs", at)
        assert [wrong for wrong in checked(target).wrong if "patch.runs" in wrong]
        flip(folder / "patch.runs", at)
    stored = blocks(indexed)
    with place(indexed, tmp_path / "restored", str(indexed.settings.database_url)) as back:
        restored(back, target)
        assert verify_index(back).problems == ()
        assert blocks(back) == stored


KILLED = """
import os, signal, sys
from pathlib import Path
from worker.backup import back_up
from worker.runtime import process_context
def told(step):
    if step.startswith(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
back_up(process_context(), Path(sys.argv[1]), told)
"""


def test_a_killed_backup_is_no_backup_and_the_next_one_completes_it(
    indexed: Context, footage: dict[str, Path], target: Path
) -> None:
    def killed(step: str) -> None:
        env = {
            "RIS_DATABASE_URL": str(indexed.settings.database_url),
            "RIS_DATA_DIR": str(indexed.settings.data_dir),
        }
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(target), step],
            env=clean_env(env),
            cwd=REPO,
            check=False,
        )
        assert done.returncode == -signal.SIGKILL

    killed("dumping")
    assert len(pictures(target)) == 12
    with pytest.raises(BackupInvalid, match="not finished"):
        checked(target)
    report = made(indexed, target)
    dump = (target / read_manifest(target).database).stat().st_size
    assert report.new_bytes == dump, "what was copied is not copied again"
    ingested(indexed, footage["bikes"], "street", 2.0, start_utc=START)
    erased(indexed, "call", 1.0, 2.6)
    before = read_manifest(target)
    killed("dumping")
    assert read_manifest(target) == before
    found = checked(target)
    assert found.wrong == () and found.extra, "the former backup is still whole"
    made(indexed, target)


def test_a_full_disk_keeps_the_former_backup(
    indexed: Context, footage: dict[str, Path], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    live = with_settings(indexed, min_free_bytes=0)
    with small_disk(disk, "4m"):
        made(live, disk / "backup")
        with pytest.raises(OSError, match="No space"), (disk / "filler").open("wb", 0) as file:
            while True:
                file.write(b"x" * 1024)
        ingested(live, footage["bikes"], "street", 1.0, start_utc=START)
        with pytest.raises(StorageFull):
            back_up(live, disk / "backup")
        assert checked(disk / "backup").wrong == ()
        with pytest.raises(StorageFull, match="RIS_MIN_FREE_BYTES"):
            back_up(with_settings(live, min_free_bytes=2**20), disk / "backup")
        (disk / "filler").unlink()
        made(live, disk / "backup")


def test_folders_of_something_else_are_refused(
    indexed: Context, target: Path, tmp_path: Path, services: Services, template_database: str
) -> None:
    made(indexed, target)
    kept = sorted(target.rglob("*"))
    with pytest.raises(InputInvalid, match="inside the data folder"):
        back_up(indexed, indexed.settings.data_dir / "backup")
    with pytest.raises(InputInvalid, match="holds no backup"):
        back_up(indexed, indexed.settings.data_dir.parent)
    with fresh_database(services.database_url, template_database) as empty:
        configured = Settings(database_url=empty, data_dir=tmp_path / "empty")
        other = make_context(configured, empty, application_name="ris tests")
        with pytest.raises(BackupInvalid, match="another index"):
            back_up(other, target)
        other.db.close()
    sql(indexed, "update f_map_runs set crc32 = crc32 + 1 where shard_id = 1 and start_row = 0")
    with pytest.raises(BackupInvalid, match="another index"):
        back_up(indexed, target)
    assert sorted(target.rglob("*")) == kept


def test_a_restore_asks_for_an_empty_place_and_can_be_run_again(
    indexed: Context, target: Path, tmp_path: Path, services: Services
) -> None:
    asked(indexed, uploaded=True)
    sql(indexed, "update shards set coded_count = frame_count")
    made(indexed, target)
    with pytest.raises(InputInvalid, match="not empty"):
        restored(indexed, target)
    with pytest.raises(InputInvalid, match="database is not empty"):
        restored(with_settings(indexed, data_dir=tmp_path / "fresh"), target)
    folder = tmp_path / "restored"
    with place(indexed, folder, services.database_url) as back:

        def cut(step: str) -> None:
            if step == "restoring the database":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            restore(back, target, str(back.settings.database_url), on_progress=cut)
        with pytest.raises(BackupInvalid, match="has not ended"):
            refuse_unfinished_restore(folder)
        assert "has not ended" in " ".join(ris(folder, "up").stderr.split())
        restored(back, target)
        assert not restoring_path(folder).exists()
        assert rows(back) == rows(indexed)
        kept = {path.name for path in (folder / "uploads").iterdir()}
        named = "select picture_sha256, terms_sha256 from search_queries"
        assert kept == {name for row in sql(back, named) for name in row if name}
        assert len(kept) == 2  # what was asked on, and what the search knew
        assert sql(back, "select sum(coded_count) from shards") == [(0,)]
        assert verify_index(back).problems == ()


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION


def test_receipts_are_read_before_anything_is_restored(
    indexed: Context, target: Path, tmp_path: Path, services: Services
) -> None:
    made(indexed, target)
    span, _ = camera_span(indexed, "call", None, None)
    submit_erasure(indexed, span)
    with (
        place(indexed, tmp_path / "restored", services.database_url) as back,
        pytest.raises(InputInvalid, match="not a list of receipts"),
    ):
        restored(back, target, [{"camera": "call"}])
    assert not restoring_path(tmp_path / "restored").exists()
