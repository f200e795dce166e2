"""The one place that commits: rollback, lost connections and bounded waits on a real Postgres."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg
import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError, InvalidRequestError

from models.repositories import search as search_record
from models.repositories import videos as video_record
from models.schema import Camera, Frame
from models.session import Database, DatabaseUnavailable, connect, normalised_url
from tests.conftest import psycopg_url


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    made = connect(database_url, application_name="ris tests", lock_timeout_ms=150)
    yield made
    made.close()


def camera_names(db: Database) -> list[str]:
    with db.transaction() as session:
        return list(session.scalars(select(Camera.name).order_by(Camera.name)))


def test_a_transaction_commits_once_at_the_end(db: Database, database_url: str) -> None:
    with db.transaction() as session:
        video_record.ensure_camera(session, "gate")
        with psycopg.connect(psycopg_url(database_url)) as other:
            assert other.execute("select count(*) from cameras").fetchone() == (0,)
    assert camera_names(db) == ["gate"]


def test_any_error_rolls_back(db: Database) -> None:
    with pytest.raises(KeyError), db.transaction() as session:
        video_record.ensure_camera(session, "gate")
        raise KeyError("ours")
    assert camera_names(db) == []


def test_a_refused_statement_rolls_back_and_keeps_its_type(db: Database) -> None:
    with pytest.raises(IntegrityError), db.transaction() as session:
        video_record.ensure_camera(session, "gate")
        session.add(Camera(name=""))
    assert camera_names(db) == []


def test_a_killed_connection_is_unavailable_and_the_next_works(
    db: Database, database_url: str
) -> None:
    with pytest.raises(DatabaseUnavailable), db.transaction() as session:
        video_record.ensure_camera(session, "gate")
        pid = session.execute(text("select pg_backend_pid()")).scalar_one()
        with psycopg.connect(psycopg_url(database_url), autocommit=True) as killer:
            killer.execute("select pg_terminate_backend(%s, 10000)", [pid])
        video_record.ensure_camera(session, "yard")
    assert camera_names(db) == []


def test_a_connection_killed_while_idle_is_replaced(db: Database, database_url: str) -> None:
    with db.transaction() as session:
        pid = session.execute(text("select pg_backend_pid()")).scalar_one()
    with psycopg.connect(psycopg_url(database_url), autocommit=True) as killer:
        killer.execute("select pg_terminate_backend(%s, 10000)", [pid])
    assert camera_names(db) == []


def test_a_refused_port_is_unavailable() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        nowhere = connect(f"postgresql://ris:x@127.0.0.1:{port}/ris", application_name="t")
        with pytest.raises(DatabaseUnavailable, match="refused"):
            nowhere.ping()


def test_a_database_that_is_not_there_is_unavailable(database_url: str) -> None:
    gone = connect(database_url + "_gone", application_name="t")
    with pytest.raises(DatabaseUnavailable, match="does not exist"):
        gone.ping()


def test_a_long_statement_is_cut_off(database_url: str) -> None:
    db = connect(database_url, application_name="t", statement_timeout_ms=100)
    with pytest.raises(DatabaseUnavailable, match="statement timeout"), db.transaction() as session:
        session.execute(text("select pg_sleep(30)"))
    db.close()


def test_a_long_wait_for_a_lock_is_cut_off(db: Database) -> None:
    with db.transaction() as holder:
        holder.execute(text("lock table cameras in access exclusive mode"))
        with pytest.raises(DatabaseUnavailable, match="lock timeout"):
            camera_names(db)


def test_defaults_have_both_timeouts_and_utc(database_url: str) -> None:
    db = connect(database_url, application_name="ris worker")
    with db.transaction() as session:
        shown = {
            name: session.execute(text(f"show {name}")).scalar_one()
            for name in ("statement_timeout", "lock_timeout", "timezone", "application_name")
        }
    db.close()
    assert shown == {
        "statement_timeout": "1min",
        "lock_timeout": "10s",
        "timezone": "UTC",
        "application_name": "ris worker",
    }


def test_an_exhausted_pool_is_unavailable(database_url: str) -> None:
    """More threads than connections is a matter of waiting, not a fault of the job."""
    db = connect(database_url, application_name="t", pool_size=1)
    db.engine.pool._timeout = 0.05  # type: ignore[attr-defined]
    held = [db.engine.connect() for _ in range(2)]
    with pytest.raises(DatabaseUnavailable, match="no free connection"):
        db.ping()
    for connection in held:
        connection.close()
    assert db.ping()
    db.close()


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_any_postgres_url_uses_psycopg_3(scheme: str) -> None:
    assert normalised_url(f"{scheme}://u:p@h/d") == "postgresql+psycopg://u:p@h/d"


def test_related_rows_are_only_read_when_asked_for(db: Database) -> None:
    with db.transaction() as session:
        camera = video_record.ensure_camera(session, "gate")
        segment, _ = video_record.ensure_segment(
            session,
            {
                "camera_id": camera.id,
                "source_path": "/a",
                "content_sha256": "0" * 64,
                "start_utc": datetime(2026, 1, 1, tzinfo=UTC),
                "start_source": "given",
                "policy": {},
                "policy_key": "k",
            },
        )
        frame = video_record.NewFrame(datetime(2026, 1, 1, tzinfo=UTC), 1, 2, 3, "b" * 64)
        made = video_record.insert_frames(session, segment, [frame])
        again = video_record.insert_frames(session, segment, [frame])
        assert (made.known, again.known) == (frozenset(), frozenset(made.id_of.values()))
        assert again.id_of == made.id_of
    with db.transaction() as session:
        plain = session.get(Frame, made.id_of[1])
        assert plain is not None
        with pytest.raises(InvalidRequestError, match="lazy='raise'"):
            _ = plain.camera
    with db.transaction() as session:
        found = video_record.find_frame(session, made.id_of[1])
    assert found is not None
    assert found.camera.name == "gate"
    assert found.t_utc == datetime(2026, 1, 1, tzinfo=UTC)


def test_unknown_ids_are_none(db: Database) -> None:
    with db.transaction() as session:
        assert video_record.find_frame(session, 1) is None
        assert video_record.find_segment(session, 1) is None
        assert video_record.camera_named(session, "gate") is None
        assert video_record.nearest_frame(session, "gate", datetime.now(UTC)) is None
        assert search_record.find_query(session, uuid.uuid4()) is None


def test_a_peer_that_vanishes_is_given_up_by_either_side(database_url: str) -> None:
    """Else the server keeps its locks, or a thread here waits for it, for hours."""
    made = connect(database_url, application_name="ris tests", idle_in_transaction_timeout_ms=250)
    names = ("idle", "interval", "count")
    with made.transaction() as session:
        driver = session.connection().connection.driver_connection
        assert driver is not None
        given = driver.info.get_parameters()
        shown = [
            str(session.execute(text(f"show tcp_keepalives_{name}")).scalar_one()) for name in names
        ]
        shown.append(str(session.execute(text("show tcp_user_timeout")).scalar_one()))
    assert [given[f"keepalives_{name}"] for name in names] == ["10", "5", "3"]
    assert given["tcp_user_timeout"] == "15000"
    assert shown == ["10", "5", "3", "15000"]
    with pytest.raises(DatabaseUnavailable), made.transaction() as session:
        session.execute(text("select 1"))
        time.sleep(1)
        session.execute(text("select 1"))
    made.close()
