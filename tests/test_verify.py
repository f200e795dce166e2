"""Verify names what does not agree: rows, vector files, kept pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.conftest import Services
from tests.parts import fresh_context, ingested, sql
from tests.searching import asked
from worker.context import Context
from worker.index.layout import HEADER_BYTES
from worker.verify import verify_index

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def indexed(
    services: Services,
    template_database: str,
    tmp_path_factory: pytest.TempPathFactory,
    footage: dict[str, Path],
) -> Iterator[Context]:
    """Ten frames of two cameras in three shards."""
    folder = tmp_path_factory.mktemp("verify")
    with fresh_context(
        services.database_url, template_database, folder, backbone="tiny-a", shard_span_s=60
    ) as made:
        early = START.replace(second=58)
        ingested(made, footage["car"], "call", 0.8, start_utc=early)
        ingested(made, footage["car"], "second", 0.8, start_utc=START)
        yield made


@pytest.fixture
def mended(indexed: Context) -> Iterator[Callable[[Path], bytes]]:
    """Files given to it are put back as they were; afterwards everything agrees again."""
    kept: dict[Path, bytes] = {}

    def keep(path: Path) -> bytes:
        kept[path] = path.read_bytes()
        return kept[path]

    yield keep
    for path, content in kept.items():
        path.write_bytes(content)
    assert verify_index(indexed).problems == ()


def vector_file(context: Context, camera: str, name: str) -> Path:
    """The file of a camera's first shard, by its row in Postgres."""
    query = (
        "select s.generation_id, s.id from shards s join cameras c on c.id = s.camera_id"
        " where c.name = %s order by s.bucket_utc limit 1"
    )
    generation_id, shard_id = sql(context, query, camera)[0]
    return context.index.generation_folder(generation_id) / f"s{shard_id}" / name


def test_agreement_is_clean(indexed: Context) -> None:
    report = verify_index(indexed)
    assert report.problems == ()
    assert (report.frames, report.shards, report.rows) == (10, 3, 160)
    assert report.pictures == len(sql(indexed, "select distinct picture_sha256 from frames"))


def test_an_empty_index_is_clean(context: Context) -> None:
    report = verify_index(context)
    assert (report.problems, report.frames, report.shards) == ((), 0, 0)


@pytest.mark.parametrize("name", ["global.vec", "patch.vec"])
def test_one_flipped_bit_is_found_with_file_and_frame(
    indexed: Context, mended: Callable[[Path], bytes], name: str
) -> None:
    path = vector_file(indexed, "second", name)
    content = bytearray(mended(path))
    block_bytes = (len(content) - HEADER_BYTES) // 5
    content[HEADER_BYTES + 2 * block_bytes + 7] ^= 64
    path.write_bytes(content)
    query = (
        "select frame_id from f_map_runs where shard_id = %s order by start_row offset 2 limit 1"
    )
    (frame_id,) = sql(indexed, query, int(path.parent.name[1:]))[0]
    (problem,) = verify_index(indexed).problems
    assert str(path.parent) in problem
    assert f"frame {frame_id}" in problem


@pytest.mark.parametrize("name", ["global.vec", "patch.vec"])
def test_a_truncated_file_is_found(
    indexed: Context, mended: Callable[[Path], bytes], name: str
) -> None:
    path = vector_file(indexed, "call", name)
    os.truncate(path, len(mended(path)) - 1)
    (problem,) = verify_index(indexed).problems
    assert str(path) in problem


@pytest.mark.parametrize("name", ["global.vec", "patch.vec"])
def test_a_deleted_file_is_found(
    indexed: Context, mended: Callable[[Path], bytes], name: str
) -> None:
    path = vector_file(indexed, "call", name)
    mended(path)
    path.unlink()
    (problem,) = verify_index(indexed).problems
    assert f"{path} is missing" in problem


def test_a_damaged_header_is_found(indexed: Context, mended: Callable[[Path], bytes]) -> None:
    path = vector_file(indexed, "call", "global.vec")
    path.write_bytes(b"X" + mended(path)[1:])
    (problem,) = verify_index(indexed).problems
    assert str(path) in problem
    assert "header" in problem


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_missing_or_changed_picture_is_found(
    indexed: Context, mended: Callable[[Path], bytes], damage: str
) -> None:
    (sha256,) = sql(indexed, "select picture_sha256 from frames order by id limit 1")[0]
    path = indexed.pictures.path(sha256)
    content = mended(path)
    path.unlink() if damage == "missing" else path.write_bytes(content[:-1])
    (problem,) = verify_index(indexed).problems
    assert str(path) in problem
    assert verify_index(indexed, pictures=False).problems == ()


def test_a_lost_f_map_run_is_found_without_blaming_the_files(indexed: Context) -> None:
    """The checksums of the runs behind the gap still belong to their own blocks."""
    path = vector_file(indexed, "second", "patch.vec")
    shard_id = int(path.parent.name[1:])
    lost = sql(
        indexed,
        "delete from f_map_runs where shard_id = %s and start_row = 16"
        " returning shard_id, start_row, row_count, frame_id, view, crc32",
        shard_id,
    )[0]
    counted, gap = verify_index(indexed).problems
    sql(indexed, "insert into f_map_runs values (%s, %s, %s, %s, %s, %s)", *lost)
    assert "10 frames recorded, 9 indexed" in counted
    assert f"shard {shard_id}" in gap
    assert "f_map" in gap
    assert verify_index(indexed).problems == ()


def test_wrong_counts_are_found(indexed: Context) -> None:
    path = vector_file(indexed, "second", "patch.vec")
    shard_id = int(path.parent.name[1:])
    for change in ("row_count = row_count - 16", "frame_count = frame_count + 1"):
        (before,) = sql(
            indexed, "select frame_count, row_count from shards where id = %s", shard_id
        )
        sql(indexed, f"update shards set {change} where id = %s", shard_id)
        problems = verify_index(indexed).problems
        sql(indexed, "update shards set frame_count = %s, row_count = %s where id = %s",
            *before, shard_id)  # fmt: skip
        assert problems
        assert all(f"shard {shard_id}" in problem for problem in problems)


def test_bytes_that_nothing_refers_to_are_no_problem(
    indexed: Context, mended: Callable[[Path], bytes]
) -> None:
    path = vector_file(indexed, "call", "patch.vec")
    path.write_bytes(mended(path) + b"left by a kill")
    assert verify_index(indexed).problems == ()


def test_a_retired_generation_is_not_checked(
    indexed: Context, mended: Callable[[Path], bytes]
) -> None:
    path = vector_file(indexed, "call", "patch.vec")
    mended(path)
    path.unlink()
    sql(indexed, "update index_generations set state = 'retired'")
    problems = verify_index(indexed).problems
    sql(indexed, "update index_generations set state = 'live'")
    assert problems == ()


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_missing_or_changed_upload_is_found(
    indexed: Context, mended: Callable[[Path], bytes], damage: str
) -> None:
    state = asked(indexed, uploaded=True)
    path = indexed.uploads.root / str(state.query.picture_sha256)
    assert verify_index(indexed).uploads == len(list(indexed.uploads.root.iterdir()))
    content = mended(path)
    path.unlink() if damage == "missing" else path.write_bytes(content[:-1])
    (problem,) = verify_index(indexed).problems
    assert str(path) in problem and "submit the query again" in problem
    assert verify_index(indexed, pictures=False).problems == ()
    asked(indexed, uploaded=True)
    assert verify_index(indexed).problems == (), "as it says"
