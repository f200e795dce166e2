"""`ris changes` on real footage with an object planted in it, through ingest and index."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import worker.changes
from models.search import ChangeQuery
from tests.conftest import Services
from tests.parts import HANDLERS, fresh_context, ingested, run_jobs, sql
from worker import compacting
from worker.accepting.changes import AcceptedChanges, ChangeOrder, record_changes
from worker.accepting.desk import COMMAND_LINE
from worker.changes import BoxChanges, find_changes
from worker.context import Context
from worker.core.types import Box
from worker.erasure import Span, submit_erasure
from worker.errors import InputInvalid, NotFound, RoiInvalid
from worker.jobs import run_job

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
EVERY_S = 0.25
FROM_S, TO_S = 1.25, 2.5
PLACE = Box(0.78, 0.12, 0.92, 0.32)
ELSEWHERE = Box(0.78, 0.42, 0.98, 0.6)


@pytest.fixture(scope="module")
def planted(footage: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fixed camera's clip; from 1.25 s to 2.5 s a piece of another picture is in its corner."""
    path = tmp_path_factory.mktemp("planted") / "planted.mp4"
    with av.open(str(footage["bikes"])) as other:
        piece = next(other.decode(video=0)).to_ndarray(format="rgb24")[60:260, 250:330]
    with av.open(str(footage["car"])) as source, av.open(str(path), "w") as made:
        pictures = source.streams.video[0]
        rate = pictures.average_rate or Fraction(30)
        stream: Any = made.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = pictures.height, pictures.width, "yuv420p"
        for number, frame in enumerate(source.decode(video=0)):
            img_hwc = frame.to_ndarray(format="rgb24").copy()
            h_px, w_px = img_hwc.shape[:2]
            if FROM_S <= number / float(rate) < TO_S:
                y0, y1 = int(PLACE.y0 * h_px), int(PLACE.y1 * h_px)
                x0, x1 = int(PLACE.x0 * w_px), int(PLACE.x1 * w_px)
                rows = np.linspace(0, len(piece) - 1, y1 - y0).astype(int)
                cols = np.linspace(0, piece.shape[1] - 1, x1 - x0).astype(int)
                img_hwc[y0:y1, x0:x1] = piece[rows][:, cols]
            made.mux(stream.encode(av.VideoFrame.from_ndarray(img_hwc, format="rgb24")))
        made.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def indexed(
    services: Services,
    template_database: str,
    planted: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Context]:
    """The clip with the default backbone."""
    folder = tmp_path_factory.mktemp("changes")
    with fresh_context(services.database_url, template_database, folder) as context:
        ingested(context, planted, "hall", EVERY_S, start_utc=START)
        yield context


def seconds(t_utc: datetime | None) -> float:
    assert t_utc is not None
    return (t_utc - START).total_seconds()


def assert_found(changes: BoxChanges) -> None:
    before, there, after = changes.states
    assert FROM_S - EVERY_S <= seconds(there.before_utc) < FROM_S <= seconds(there.from_utc)
    assert seconds(there.from_utc) <= FROM_S + EVERY_S
    assert TO_S - EVERY_S <= seconds(after.before_utc) < TO_S <= seconds(after.from_utc)
    assert (before.like, there.like, after.like) == (1, 2, 1)
    assert there.difference > 0.2


def test_a_planted_thing_is_found_within_one_sampling_interval(indexed: Context) -> None:
    assert_found(find_changes(indexed, "hall", PLACE))
    # Traffic passes there: it stays by its level, or near it, never as far as the thing was.
    assert all(state.difference < 0.2 for state in find_changes(indexed, "hall", ELSEWHERE).states)


def test_codes_on_disk_say_the_same(indexed: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compacting, "MIN_FRAMES", 1)
    monkeypatch.setattr(compacting, "MIN_LAG", 1)
    assert compacting.submit_due(indexed)
    run_jobs(indexed)
    changes = find_changes(indexed, "hall", PLACE)
    assert indexed.compact._mapped
    assert_found(changes)


def test_a_span_of_time_is_looked_at_alone(indexed: Context) -> None:
    begin, end = START + timedelta(seconds=1.4), START + timedelta(seconds=2.4)
    changes = find_changes(indexed, "hall", PLACE, begin, end)
    assert len(changes.states) == 1
    assert (changes.frames, seconds(changes.states[0].from_utc)) == (4, 1.5015)


def test_what_cannot_be_asked_is_told(indexed: Context) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        find_changes(indexed, "nowhere", PLACE)
    with pytest.raises(NotFound, match="no frames"):
        find_changes(indexed, "hall", PLACE, START + timedelta(days=1))
    with pytest.raises(RoiInvalid):
        find_changes(indexed, "hall", Box(0.5, 0.5, 0.5, 0.6))
    with pytest.raises(InputInvalid, match="at least 1"):
        find_changes(indexed, "hall", PLACE, hold=0)
    with pytest.raises(InputInvalid, match="UTC offset"):
        find_changes(indexed, "hall", PLACE, START.replace(tzinfo=None))


def ask(
    context: Context, from_s: float | None = None, to_s: float | None = None
) -> AcceptedChanges:
    """A recorded change query, not answered yet."""
    begin, end = (None if at is None else START + timedelta(seconds=at) for at in (from_s, to_s))
    order = ChangeOrder(camera_id(context), PLACE, begin, end, 3)
    with context.db.transaction() as session:
        return record_changes(session, order, COMMAND_LINE)


def camera_id(context: Context) -> int:
    return int(sql(context, "select id from cameras where name = 'hall'")[0][0])


def answer(context: Context, asked: AcceptedChanges) -> ChangeQuery | None:
    with context.db.transaction() as session:
        return session.get(ChangeQuery, asked.change_query_id)


def assert_same(found: ChangeQuery | None, wanted: BoxChanges) -> None:
    assert found is not None and found.states is not None
    assert (found.frames, found.level) == (wanted.frames, wanted.level)
    for told, state in zip(found.states, wanted.states, strict=True):
        for name, value in told.items():
            expected = getattr(state, name)
            assert value == (expected.isoformat() if isinstance(expected, datetime) else expected)


def erase(context: Context, from_s: float) -> None:
    span = Span(camera_id(context), START + timedelta(seconds=from_s), None)
    run_job(context, submit_erasure(context, span), HANDLERS)


def test_a_recorded_question_is_answered_the_same(indexed: Context) -> None:
    whole, none = ask(indexed), ask(indexed, 1000)
    run_jobs(indexed)
    assert_same(answer(indexed, whole), find_changes(indexed, "hall", PLACE))
    found = answer(indexed, none)
    assert found is not None
    assert (found.frames, found.states, found.level, found.first_utc) == (0, [], None, None)


def test_an_answer_goes_with_the_footage_it_is_from(indexed: Context) -> None:
    first, whole, waiting = ask(indexed, to_s=1.0), ask(indexed), ask(indexed)
    for asked in (first, whole):
        run_job(indexed, asked.job_id, HANDLERS)
    erase(indexed, 3.0)
    assert answer(indexed, first) is not None
    assert answer(indexed, whole) is None
    run_job(indexed, waiting.job_id, HANDLERS)
    found = answer(indexed, waiting)
    assert found is not None and found.last_utc is not None
    assert seconds(found.last_utc) < 3.0


def test_what_is_erased_while_it_is_looked_at_is_not_told(
    indexed: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ask(indexed)
    look = worker.changes._look

    def then_erased(*given: Any) -> Any:
        looked = look(*given)
        if looked.changes.frames > 11:
            erase(indexed, 2.75)
        return looked

    monkeypatch.setattr(worker.changes, "_look", then_erased)
    run_job(indexed, asked.job_id, HANDLERS)
    retried = sql(indexed, "select state, retry_code from jobs where id = %s", asked.job_id)
    assert retried == [("queued", "erased_meanwhile")]
    run_jobs(indexed)
    found = answer(indexed, asked)
    assert found is not None and found.last_utc is not None
    assert seconds(found.last_utc) < 2.75


def test_two_questions_at_once_are_answered_in_turn(
    indexed: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, other = ask(indexed), ask(indexed)
    look = worker.changes._look

    def beside(*given: Any) -> Any:
        run_job(indexed, other.job_id, HANDLERS)
        return look(*given)

    monkeypatch.setattr(worker.changes, "_look", beside)
    run_job(indexed, asked.job_id, HANDLERS)
    states = "select state, retry_code from jobs where id = %s"
    assert sql(indexed, states, asked.job_id) == [("done", None)]
    assert sql(indexed, states, other.job_id) == [("queued", "service_unavailable")]
    monkeypatch.undo()
    run_jobs(indexed)
    assert sql(indexed, states, other.job_id) == [("done", None)]


def test_old_answers_are_forgotten(indexed: Context) -> None:
    old, new = ask(indexed), ask(indexed)
    run_jobs(indexed)
    sql(
        indexed,
        "update change_queries set created_at = now() - interval '25 hours' where id = %s",
        old.change_query_id,
    )
    assert worker.changes.drop_old(indexed) == 1
    assert answer(indexed, old) is None and answer(indexed, new) is not None
