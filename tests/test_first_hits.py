"""Hits of a query that still runs: of the nearest footage, then of all of it, then final."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import worker.search as search_module
from models.repositories import search as search_record
from tests.conftest import Services
from tests.parts import fresh_context, ingested, run_jobs, sql, with_settings
from worker.accepting.desk import COMMAND_LINE
from worker.accepting.queries import cancel_query, query_state, submit_query
from worker.closer_look import look_closer
from worker.context import Context
from worker.core.geometry import roi_from_xyxy
from worker.core.search_params import SearchParams
from worker.errors import InputInvalid
from worker.generations import require_live_generation
from worker.near_footage import near_footage

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = START + timedelta(hours=8)
ROI = roi_from_xyxy([0.2, 0.2, 0.8, 0.8])


@dataclass(frozen=True)
class Seen:
    """What the record said of a running query."""

    step: str
    cameras: tuple[str, ...]


@pytest.fixture(scope="module")
def indexed(
    services: Services,
    template_database: str,
    tmp_path_factory: pytest.TempPathFactory,
    footage: dict[str, Path],
) -> Iterator[Context]:
    """Cameras ``street`` and, eight hours later, ``car``; more than early hits are for."""
    folder = tmp_path_factory.mktemp("first-hits")
    changes: dict[str, Any] = {"backbone": "tiny-a", "codec": "fp32", "early_over_frames": 8}
    with fresh_context(services.database_url, template_database, folder, **changes) as made:
        ingested(made, footage["bikes"], "street", 2.0, start_utc=START)
        ingested(made, footage["car"], "car", 0.8, start_utc=LATER)
        yield made


@pytest.fixture
def seen(indexed: Context, monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    """What is recorded at the beginning of each search and of the closer look."""
    found: list[Seen] = []

    def note() -> None:
        rows = sql(
            indexed,
            """select q.answer_step, array_remove(array_agg(distinct c.name), null)
               from search_queries q left join search_hits h on h.query_id = q.id
               left join frames f on f.id = h.frame_id left join cameras c on c.id = f.camera_id
               where q.id = (select id from search_queries order by created_at desc limit 1)
               group by q.answer_step""",
        )
        found.append(Seen(rows[0][0], tuple(sorted(rows[0][1]))))

    for name in ("search_generation", "look_closer"):
        monkeypatch.setattr(search_module, name, _after(note, getattr(search_module, name)))
    return found


def _after(note: Any, real: Any) -> Any:
    def noted(*given: Any, **named: Any) -> Any:
        note()
        return real(*given, **named)

    return noted


def frame_of(context: Context, camera: str, place: int = 1) -> int:
    statement = """select f.id from frames f join cameras c on c.id = f.camera_id
        where c.name = %s order by f.t_utc offset %s limit 1"""
    return int(sql(context, statement, camera, place)[0][0])


def asked(context: Context, **params: Any) -> uuid.UUID:
    given = SearchParams(**{"tau": -1.0, "group": "frame", **params})
    return submit_query(context, ROI, given, frame_id=frame_of(context, "street"))


def test_hits_come_before_all_is_searched_and_become_final(indexed, seen) -> None:
    query_id = asked(indexed)
    run_jobs(indexed)
    assert seen == [
        Seen("none", ()),
        Seen("early", ("street",)),
        Seen("ranked", ("car", "street")),
    ]
    state = query_state(indexed, query_id)
    assert state.query.answer_step == "final"
    assert state.query.stats is not None
    assert state.query.stats["early_ms"] > 0
    assert len(state.hits) == 9
    assert [hit.rank for hit in state.hits] == list(range(1, 10))


def test_little_footage_is_searched_at_once(indexed, seen) -> None:
    few = with_settings(indexed, early_over_frames=10)
    query_id = asked(few, close_looks=0)
    run_jobs(few)
    assert seen == [Seen("none", ())]
    assert "early_ms" not in (query_state(few, query_id).query.stats or {})


def test_a_query_that_fails_behind_its_first_hits_has_none(indexed, monkeypatch) -> None:
    query_id = asked(indexed)

    def fail(*_: Any, **__: Any) -> Any:
        assert sql(indexed, "select count(*) from search_hits where query_id = %s", query_id) == [
            (9,)
        ]
        raise InputInvalid("no closer look today")

    monkeypatch.setattr(search_module, "look_closer", fail)
    run_jobs(indexed)
    state = query_state(indexed, query_id)
    assert (state.state, state.query.answer_step) == ("failed", "none")
    assert sql(indexed, "select count(*) from search_hits where query_id = %s", query_id) == [(0,)]


def test_a_query_taken_back_behind_its_first_hits_has_none(indexed, monkeypatch) -> None:
    query_id = asked(indexed)
    real = look_closer

    def cancel(*given: Any, **named: Any) -> Any:
        with indexed.db.transaction() as session:
            query = search_record.find_query(session, query_id)
            assert query is not None
            assert cancel_query(session, COMMAND_LINE, query)
        return real(*given, **named)

    monkeypatch.setattr(search_module, "look_closer", cancel)
    run_jobs(indexed)
    state = query_state(indexed, query_id)
    assert (state.state, state.error_code) == ("failed", "cancelled")
    assert sql(indexed, "select count(*) from search_hits where query_id = %s", query_id) == [(0,)]


def test_first_hits_do_not_make_a_query_try_for_ever(indexed, monkeypatch) -> None:
    """They are no progress: a query that kills its worker each time is given up."""

    def crash(*_: Any, **__: Any) -> Any:
        raise RuntimeError("as a crash is recorded")

    monkeypatch.setattr(search_module, "look_closer", crash)
    query_id = asked(indexed)
    run_jobs(with_settings(indexed, job_max_attempts=2))
    assert query_state(indexed, query_id).error_code == "internal"


@pytest.mark.parametrize(
    ("over_frames", "params", "near"),
    [
        (8, {}, {"camera_ids": ("street",), "from": -3, "to": 3}),
        (10, {}, None),  # as many as there are
        (8, {"camera_ids": ("street", "car")}, {"camera_ids": ("street",), "from": -3, "to": 3}),
        (4, {"camera_ids": ("car",)}, None),  # the frame's own camera is not asked for
        (0, {"t_from_utc": LATER}, None),  # nor its time
        (8, {"t_from_utc": START}, {"camera_ids": ("street",), "from": 0, "to": 3}),
        (4, {}, None),  # there are as many on that camera alone, however near
    ],
)
def test_what_lies_nearest_to_a_frame(indexed, over_frames, params, near) -> None:
    ids = dict(sql(indexed, "select name, id from cameras"))
    named = params.get("camera_ids")
    given = SearchParams(**params | ({"camera_ids": tuple(ids[n] for n in named)} if named else {}))
    frame_id = frame_of(indexed, "street", 0)
    query_id = submit_query(indexed, ROI, given, frame_id=frame_id)
    run_jobs(indexed)
    generation = require_live_generation(indexed)
    with indexed.db.transaction() as session:
        query = search_record.find_query(session, query_id)
        assert query is not None
        found = near_footage(session, generation, query, given, over_frames)
    if near is None:
        assert found is None
        return
    assert found is not None
    assert found.camera_ids == tuple(ids[name] for name in near["camera_ids"])
    (t_utc,) = sql(indexed, "select t_utc from frames where id = %s", frame_id)[0]
    assert found.t_from_utc == t_utc + timedelta(hours=near["from"])
    assert found.t_to_utc == t_utc + timedelta(hours=near["to"])


def test_the_newest_footage_comes_first_for_an_upload(indexed) -> None:
    path = sql(indexed, "select picture_sha256 from frames limit 1")[0][0]
    picture = indexed.pictures.path(path).read_bytes()
    query_id = submit_query(indexed, ROI, SearchParams(), picture=picture)
    run_jobs(indexed)
    generation = require_live_generation(indexed)
    with indexed.db.transaction() as session:
        query = search_record.find_query(session, query_id)
        assert query is not None
        near = near_footage(session, generation, query, SearchParams(), 8)
        assert near_footage(session, generation, query, SearchParams(), 2) is None
    assert near is not None
    (last_utc,) = sql(indexed, "select max(t_utc) from frames")[0]
    assert near.camera_ids is None
    assert (near.t_from_utc, near.t_to_utc) == (last_utc - timedelta(hours=6), None)
