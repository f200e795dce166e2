"""Every act is in the audit, in the act's own transaction; harm to it shows."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tests.api.conftest import Api
from tests.parts import sql
from worker.accepting.audit import Chain, check_chain, record_act
from worker.accepting.desk import COMMAND_LINE, Actor
from worker.context import Context
from worker.verify import verify_index


def chain(context: Context) -> Chain:
    with context.db.snapshot() as session:
        return check_chain(session)


def act(context: Context, name: str, **details: object) -> None:
    with context.db.transaction() as session:
        record_act(session, COMMAND_LINE, name, **details)


def harmed(context: Context, statement: str) -> list[str]:
    """Problems after somebody who owns the database changed it."""
    sql(context, "alter table audit_entries disable trigger append_only; " + statement)
    sql(context, "alter table audit_entries enable trigger append_only")
    return list(chain(context).problems)


def test_acts_of_the_api_are_recorded_by_key(api: Api):
    key = api.key("search", "view")
    told = api.answered(key)
    hits = api.client.get(f"/v1/queries/{told['query_id']}/hits", headers=key).json()["items"]
    api.client.get(hits[0]["overlay"], headers=key)
    api.client.get(hits[0]["picture"], headers=key)
    listed = api.client.get("/v1/audit?limit=3", headers=api.key("admin")).json()["items"]
    mine = api.client.get("/v1/me", headers=key).json()["key_id"]
    assert [entry["act"] for entry in listed] == ["key.create", "picture.view", "picture.view"]
    assert [entry["actor"] for entry in listed] == ["command line", f"key {mine}", f"key {mine}"]
    assert listed[2]["details"]["what"] == "overlay"
    submitted = api.acts("query.submit")[-1]
    assert submitted["query_id"] == told["query_id"]
    assert submitted["params"] == told["params"]
    assert chain(api.context).problems == ()
    secrets = [part for part in (key["Authorization"].split()[1],) if part in str(listed)]
    assert secrets == []


def test_an_act_that_fails_is_not_recorded_and_one_recorded_was_done(context: Context):
    act(context, "a")
    with pytest.raises(RuntimeError), context.db.transaction() as session:
        record_act(session, COMMAND_LINE, "never")
        raise RuntimeError
    act(context, "b")
    assert sql(context, "select seq, act from audit_entries order by seq") == [(1, "a"), (2, "b")]


def test_acts_at_once_make_one_chain(context: Context):
    start = threading.Barrier(5)

    def several(number: int) -> None:
        start.wait()
        for _ in range(10):
            with context.db.transaction() as session:
                record_act(session, Actor(f"key {number}", None), "x", number=number)

    with ThreadPoolExecutor(5) as threads:
        list(threads.map(several, range(5)))
    found = chain(context)
    assert (found.entries, found.problems) == (50, ())


@pytest.mark.parametrize(
    "value", [0.1, 1e22, 1e-7, 2**60, "\u00e9\U0001f600", None, True, {"b": [1.5], "a": {}}]
)
def test_details_of_every_kind_keep_their_hash(context: Context, value: object):
    act(context, "x", value=value)
    assert chain(context).problems == ()


@pytest.mark.parametrize(
    "statement",
    [
        "update audit_entries set actor = 'nobody' where seq = 2",
        "update audit_entries set t_utc = t_utc + interval '1 microsecond' where seq = 2",
        "update audit_entries set details = '{\"n\": 7}' where seq = 2",
        "delete from audit_entries where seq = 2",
        "delete from audit_entries where seq = 1",
        "update audit_entries set seq = seq + 1 where seq = 3",
        "insert into audit_entries select 4, t_utc, actor, act, details, sha256, repeat('0', 64)"
        " from audit_entries where seq = 3",
    ],
)
def test_harm_to_the_chain_shows(context: Context, statement: str):
    for number in range(3):
        act(context, "x", n=number)
    assert chain(context).entries == 3
    assert harmed(context, statement)
    assert verify_index(context).problems


def test_a_tail_cut_off_shows_in_number_and_hash_only(context: Context):
    for number in range(3):
        act(context, "x", n=number)
    before = chain(context)
    assert harmed(context, "delete from audit_entries where seq = 3") == []
    after = chain(context)
    assert (after.entries, after.last_sha256) != (before.entries, before.last_sha256)


@pytest.mark.parametrize(
    "statement",
    ["update audit_entries set actor = 'x'", "delete from audit_entries", "truncate audit_entries"],
)
def test_the_record_refuses_changes(context: Context, statement: str):
    act(context, "x")
    with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
        sql(context, statement)
