"""Canaries: stored frames find themselves, and it shows when they do not."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from models.repositories import canaries as canary_record
from models.repositories.canaries import LastCheck
from tests.conftest import Services
from tests.parts import fresh_context, ingested, sql, with_settings
from worker.canaries import check_canaries
from worker.context import Context

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
ROTATED = """
    update frames set picture_sha256 = other.picture_sha256 from (
        select id, coalesce(
            lead(picture_sha256) over (partition by camera_id order by t_utc),
            first_value(picture_sha256) over (partition by camera_id order by t_utc)
        ) as picture_sha256 from frames
    ) other where other.id = frames.id
"""
"""Every frame has the picture of the next one of its camera: that one is found instead."""


@pytest.fixture(scope="module")
def indexed(
    services: Services,
    template_database: str,
    footage: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Context]:
    """Two cameras with the small backbone."""
    folder = tmp_path_factory.mktemp("canaries")
    changes = {"backbone": "tiny-a", "codec": "fp32"}
    with fresh_context(services.database_url, template_database, folder, **changes) as context:
        ingested(context, footage["bikes"], "street", 2.0, start_utc=START)
        ingested(context, footage["car"], "car", 1.0, start_utc=START)
        yield context


@pytest.fixture
def context(indexed: Context) -> Context:
    sql(indexed, "delete from canary_checks")
    return indexed


def last(context: Context) -> LastCheck | None:
    with context.db.transaction() as session:
        return canary_record.last_check(session)


def test_stored_frames_find_themselves_when_it_is_due(context: Context) -> None:
    assert last(context) is None
    assert check_canaries(context) == (2, 2)
    found = last(context)
    assert found is not None and (found.asked, found.found) == (2, 2)
    assert check_canaries(context) is None
    sql(context, "update canary_checks set created_at = now() - interval '61 minutes'")
    assert check_canaries(context) == (2, 2)
    assert check_canaries(with_settings(context, canary_every_s=0.0)) == (2, 2)
    sql(context, "update canary_checks set created_at = now() - interval '31 days'")
    assert check_canaries(context) == (2, 2)
    assert sql(context, "select count(*) from canary_checks") == [(1,)]


def test_whoever_waits_comes_first(context: Context) -> None:
    sql(
        context,
        "insert into jobs (id, kind, queue, payload)"
        " values (gen_random_uuid(), 'query', 'query', '{}')",
    )
    assert check_canaries(context) is None
    sql(context, "delete from jobs where kind = 'query'")
    assert last(context) is None
    assert check_canaries(context) == (2, 2)


def test_pictures_that_are_not_those_of_the_vectors_show(context: Context) -> None:
    kept = sql(context, "select picture_sha256, id from frames")
    sql(context, ROTATED)
    often = with_settings(context, canary_every_s=0.0)
    asked = [check_canaries(often) for _ in range(8)]
    for row in kept:
        sql(context, "update frames set picture_sha256 = %s where id = %s", *row)
    assert asked == [(2, 0)] * 8


def test_a_frame_whose_picture_is_gone_is_not_counted(context: Context) -> None:
    kept = sql(context, "select picture_sha256, id from frames")
    sql(context, "update frames set picture_sha256 = repeat('0', 64)")
    asked = check_canaries(context)
    for row in kept:
        sql(context, "update frames set picture_sha256 = %s where id = %s", *row)
    assert asked is None
    assert last(context) is None


def test_without_an_index_nothing_is_asked(
    services: Services, template_database: str, tmp_path: Path
) -> None:
    with fresh_context(services.database_url, template_database, tmp_path) as empty:
        assert check_canaries(empty) is None
