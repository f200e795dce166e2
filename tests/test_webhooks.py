"""Events out: written with what they tell of, delivered at least once, where it is allowed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from models.repositories import events as event_record
from tests.conftest import REPO, Services
from tests.feeding import feed_context, feed_worker, until
from tests.parts import HANDLERS, fresh_context, ingested, run_jobs, sql, with_settings
from tests.receiver import Got, Receiver, dripping, receiving
from worker.accepting import webhooks as accepting
from worker.accepting.desk import COMMAND_LINE, Actor
from worker.accepting.events import EVENT_KINDS, tell_feed
from worker.accepting.keys import caller_of, create_key, revoke_key
from worker.accepting.queries import cancel_query, query_state, submit_query
from worker.accepting.webhooks import AT_COMMAND_LINE, WebhookMaker
from worker.context import Context
from worker.core.sampling import IntervalPolicy
from worker.core.search_params import SearchParams
from worker.core.types import Box
from worker.delivering import clean_up, deliver_due, message_of
from worker.erasure import camera_span, submit_erasure
from worker.errors import AddressRefused, Forbidden, InputInvalid, NotFound
from worker.event_transport import HttpTransport, Message, Receipt, signature_headers
from worker.feeds import add_feed, note_trouble, pause_feed
from worker.ingest import submit_file
from worker.jobs import run_job

BOX = Box(0.2, 0.2, 0.8, 0.8)
START = datetime(2026, 1, 1, tzinfo=UTC)
QUICK = {
    "webhook_hosts": "127.0.0.0/8",
    "webhook_retry_base_s": 0.01,
    "webhook_timeout_s": 0.5,
    "webhook_attempts": 3,
}


@pytest.fixture(scope="module")
def shared(
    services: Services, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Context]:
    folder = tmp_path_factory.mktemp("events")
    given = {"backbone": "tiny-a", **QUICK}
    with fresh_context(services.database_url, template_database, folder, **given) as made:
        yield made


@pytest.fixture
def context(shared: Context) -> Context:
    sql(shared, "truncate webhooks, events cascade")
    return shared


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@pytest.fixture
def clip(shared: Context, footage: dict[str, Path]) -> Context:
    """The context with some frames."""
    if not sql(shared, "select 1 from frames limit 1"):
        ingested(shared, footage["bikes"], "street", 2.0, start_utc=START)
    return shared


def webhook(
    context: Context, url: str, *kinds: str, maker: WebhookMaker = AT_COMMAND_LINE
) -> tuple[int, str]:
    """Id and secret of a new one."""
    with context.db.transaction() as session:
        made, secret = accepting.create_webhook(session, maker, name="a", url=url, kinds=kinds)
    return made.id, secret


def happen(context: Context, *cameras: int) -> None:
    """A feed of each of these cameras goes live."""
    for camera_id in cameras:
        with context.db.transaction() as session:
            tell_feed(session, "feed.live", camera_id, f"c{camera_id}", since_utc=START)


def deliveries(context: Context) -> list[tuple[Any, ...]]:
    statement = (
        "select state, attempts, status, detail from deliveries order by created_at, event_id"
    )
    return sql(context, statement)


def deliver_once(context: Context, **settings: Any) -> None:
    """What is due now; nothing is tried twice."""
    deliver_due(with_settings(context, webhook_retry_base_s=30.0, **settings))


def deliver_all(context: Context) -> None:
    """Until nothing is on its way any more."""

    def over() -> bool:
        deliver_due(context)
        return not sql(context, "select 1 from deliveries where state = 'pending' limit 1")

    until(over, what="the end of all deliveries")


def key_maker(context: Context, *actions: str, **given: Any) -> tuple[WebhookMaker, Actor]:
    with context.db.transaction() as session:
        _, secret = create_key(session, COMMAND_LINE, name="k", actions=actions, **given)
        assert secret is not None
        caller = caller_of(session, secret)
    return WebhookMaker(caller.actor, caller), caller.actor


def test_the_signature_is_that_of_the_standard():
    """The vector of the specification's own tests."""
    message = Message("msg_p5jXN8AQM9LWM0D4loKWxJek", "x", b'{"test": 2432232314}')
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    at = datetime.fromtimestamp(1614265330, UTC)
    headers = signature_headers([secret], message, at)
    assert headers == {
        "webhook-id": message.event_id,
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_an_event_comes_signed_with_what_happened(context: Context, receiver: Receiver):
    _, secret = webhook(context, receiver.url)
    happen(context, 7)
    assert deliver_due(context) == 1
    (got,) = receiver.got
    got.verify(secret)
    assert got.told["type"] == "feed.live"
    assert got.told["data"] == {"camera_id": 7, "camera": "c7", "since_utc": START.isoformat()}
    assert datetime.fromisoformat(got.told["timestamp"]).tzinfo is not None
    assert got.headers["content-type"] == "application/json"
    assert deliveries(context) == [("delivered", 1, 204, None)]
    assert deliver_due(context) == 0


def test_nothing_is_written_when_nobody_is_told(context: Context, receiver: Receiver):
    happen(context, 1)
    webhook(context, receiver.url, "query.done")
    happen(context, 1)
    assert sql(context, "select count(*) from events") == [(0,)]


def test_what_did_not_happen_is_not_told(context: Context, receiver: Receiver):
    webhook(context, receiver.url)
    with pytest.raises(RuntimeError), context.db.transaction() as session:
        tell_feed(session, "feed.live", 1, "a", since_utc=START)
        raise RuntimeError
    assert deliver_due(context) == 0


def answering(*statuses: int) -> Callable[[Got], int]:
    left = list(statuses)
    return lambda _got: left.pop(0) if len(left) > 1 else left[0]


def test_a_failing_receiver_gets_the_same_event_again(context: Context, receiver: Receiver):
    _, secret = webhook(context, receiver.url)
    receiver.answer = answering(500, 503, 200)
    happen(context, 1)
    deliver_all(context)
    assert len(receiver.got) == 3
    assert len(set(receiver.ids())) == 1
    assert len({got.body for got in receiver.got}) == 1
    for got in receiver.got:
        got.verify(secret)
    assert deliveries(context) == [("delivered", 3, 200, None)]
    assert sql(context, "select failures from webhooks") == [(0,)]


def slow(_got: Got) -> int:
    time.sleep(1.0)
    return 200


@pytest.mark.parametrize(
    ("answer", "status", "detail"),
    [
        (answering(500), 500, "HTTP 500"),
        (answering(404), 404, "HTTP 404"),
        (answering(302), 302, "HTTP 302: redirects are not followed, name its target"),
        (slow, None, "no answer within 0.5 s"),
    ],
    ids=["500", "404", "redirect", "slow"],
)
def test_a_receiver_that_never_takes_it_is_given_up(
    context: Context, receiver: Receiver, answer: Any, status: int | None, detail: str
):
    with receiving() as elsewhere:
        receiver.answer, receiver.redirect_to = answer, elsewhere.url
        webhook_id, _ = webhook(context, receiver.url)
        happen(context, 1)
        deliver_all(context)
        assert elsewhere.got == []
    assert deliveries(context) == [("dead", 3, status, detail)]
    receiver.answer = answering(200)
    with context.db.transaction() as session:
        (dead,) = event_record.list_deliveries(session, webhook_id, "dead", None, 10)
        assert event_record.try_again(session, webhook_id, dead.event_id)
        accepting.change_webhook(session, AT_COMMAND_LINE, webhook_id, {"state": "active"})
    deliver_all(context)
    assert deliveries(context) == [("delivered", 1, 200, None)]


def test_a_receiver_that_answers_for_ever_is_cut_off(context: Context):
    with dripping() as url:
        webhook(context, url)
        happen(context, 1)
        began_s = time.monotonic()
        deliver_once(context)
        assert time.monotonic() - began_s < 5
    assert deliveries(context) == [("pending", 1, None, "no answer within 0.5 s")]


def test_one_that_is_away_gets_all_once_it_is_back(context: Context):
    with receiving() as away:
        port, url = away.port, away.url
    webhook(context, url)
    happen(context, *range(20))
    deliver_once(context)
    ((failed,),) = sql(context, "select count(*) from deliveries where attempts > 0")
    assert failed == 1, "one try tells that it is away"
    sql(context, "update webhooks set rest_until = now()")  # a while later
    sql(context, "update deliveries set next_try_at = now()")
    with receiving(port) as back:
        deliver_all(context)
        assert sorted(got.told["data"]["camera_id"] for got in back.got) == list(range(20))
        assert len(set(back.ids())) == 20


def test_a_slow_receiver_does_not_hold_up_another(context: Context, receiver: Receiver):
    with receiving() as stuck:
        stuck.answer = slow
        webhook(context, stuck.url)
        webhook(context, receiver.url)
        happen(context, *range(3))
        deliver_once(context)
        assert len(receiver.got) == 3
        assert len(stuck.got) == 1, "it rests after a failure"


def test_a_receiver_that_is_gone_is_told_nothing_more(context: Context, receiver: Receiver):
    receiver.answer = answering(410)
    webhook(context, receiver.url)
    happen(context, 1, 2)
    deliver_due(context)
    happen(context, 3)
    assert len(receiver.got) == 1
    assert sql(context, "select state from webhooks") == [("gone",)]
    assert [row[0] for row in deliveries(context)] == ["dead", "pending"]


def test_a_paused_webhook_keeps_what_happens(context: Context, receiver: Receiver):
    webhook_id, _ = webhook(context, receiver.url)
    for state, came in (("paused", 0), ("active", 1)):
        with context.db.transaction() as session:
            accepting.change_webhook(session, AT_COMMAND_LINE, webhook_id, {"state": state})
        if state == "paused":
            happen(context, 1)
        deliver_due(context)
        assert len(receiver.got) == came


def test_a_rotated_secret_signs_beside_the_former_one(context: Context, receiver: Receiver):
    webhook_id, former = webhook(context, receiver.url)
    with context.db.transaction() as session:
        _, present = accepting.rotate_secret(session, AT_COMMAND_LINE, webhook_id)
    happen(context, 1)
    deliver_due(context)
    sql(context, "update webhooks set former_until = now() - interval '1 second'")
    happen(context, 2)
    deliver_due(context)
    first, second = receiver.got
    assert former != present
    first.verify(former)
    first.verify(present)
    second.verify(present)
    with pytest.raises(Exception, match="No matching signature"):
        second.verify(former)


REFUSED = [
    "http://127.0.0.1:1/",
    "http://localhost:1/",
    "https://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://0.0.0.0/",
    "http://169.254.169.254/latest/meta-data",
    "http://10.0.0.7/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://2130706433/",
    "file:///etc/passwd",
    "rtsp://8.8.8.8/",
    "gopher://8.8.8.8/",
    "http:///x",
    "//8.8.8.8/",
    "https://8.8.8.8/#x",
    "https://8.8.8.8/ x",
    "nonsense",
]


@pytest.mark.parametrize("url", REFUSED)
def test_hostile_addresses_are_refused_with_a_reason(context: Context, url: str):
    guarded = with_settings(context, webhook_hosts=None)
    with pytest.raises(AddressRefused, match=r"allowed|address"):
        accepting.checked_url(guarded.settings, url)
    webhook(context, url)  # as if its name had led elsewhere when it was made
    happen(context, 1)
    deliver_once(guarded)
    ((state, attempts, status, detail),) = deliveries(context)
    assert (state, attempts, status) == ("pending", 1, None)
    assert "allowed" in detail or "address" in detail or "served" in detail


def test_a_password_in_the_address_is_refused(context: Context):
    guarded = with_settings(context, webhook_hosts=None)
    with pytest.raises(InputInvalid, match="signature"):
        accepting.checked_url(guarded.settings, "https://user:hunter2@8.8.8.8/")


def test_the_address_that_was_checked_is_the_one_connected_to(
    context: Context, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
):
    """A name that leads elsewhere at its second look-up is not asked a second time."""
    import socket

    asked: list[str] = []
    real = socket.getaddrinfo

    def rebinding(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host == "rebind.test":
            asked.append(host)
            return real("127.0.0.1" if len(asked) == 1 else "127.0.0.9", *args, **kwargs)
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    way = HttpTransport(accepting.webhook_rules(context.settings), 2.0)
    message = Message(str(uuid.uuid4()), "x", b"{}")
    secret = accepting._new_secret()
    url = f"http://rebind.test:{receiver.port}/hook?a=b"
    assert way.send(url, message, [secret]) == Receipt(204)
    assert asked == ["rebind.test"]
    assert receiver.got[0].headers["host"] == f"rebind.test:{receiver.port}"


def test_who_is_told_of_what(context: Context, receiver: Receiver):
    """Only what the key may read: its cameras, its own queries, its actions; an admin all."""
    cameras = [row[0] for row in sql(
        context, "insert into cameras (name) values (gen_random_uuid()), (gen_random_uuid())"
        " returning id")]  # fmt: skip
    limited, _ = key_maker(context, "notify", "view", camera_ids=cameras[:1])
    admin, _ = key_maker(context, "admin")
    searcher, _ = key_maker(context, "notify", "search")
    with pytest.raises(Forbidden, match=r"feed\.live"):
        webhook(context, receiver.url, "feed.live", maker=searcher)
    with pytest.raises(Forbidden, match="nothing"):
        webhook(context, receiver.url, maker=key_maker(context, "notify")[0])
    with pytest.raises(InputInvalid, match="kinds"):
        webhook(context, receiver.url, "x")
    ids = {
        name: webhook(context, receiver.url, maker=maker)[0]
        for name, maker in (
            ("limited", limited), ("admin", admin), ("searcher", searcher), ("all", AT_COMMAND_LINE)
        )
    }  # fmt: skip
    assert sql(context, "select kinds from webhooks where id = %s", ids["all"])[0][0] == list(
        EVENT_KINDS
    )

    def told() -> set[str]:
        rows = sql(context, "select webhook_id from deliveries")
        sql(context, "delete from events")
        return {name for name, webhook_id in ids.items() if (webhook_id,) in rows}

    happen(context, cameras[0])
    assert told() == {"limited", "admin", "all"}
    happen(context, cameras[1])
    assert told() == {"admin", "all"}
    assert limited.caller is not None
    with context.db.transaction() as session:
        assert accepting.known_webhook(session, limited, ids["limited"])
        for name in ("admin", "searcher", "all"):
            with pytest.raises(NotFound):
                accepting.known_webhook(session, limited, ids[name])
        revoke_key(session, COMMAND_LINE, limited.caller.key_id)
    happen(context, cameras[0])
    assert told() == {"admin", "all"}


def test_a_revoked_key_ends_what_is_on_its_way(context: Context, receiver: Receiver):
    maker, _ = key_maker(context, "notify", "view")
    webhook(context, receiver.url, maker=maker)
    happen(context, 1)
    assert maker.caller is not None
    with context.db.transaction() as session:
        revoke_key(session, COMMAND_LINE, maker.caller.key_id)
    assert deliver_due(context) == 0
    clean_up(context)
    ((state, _, _, detail),) = deliveries(context)
    assert (state, receiver.got) == ("dead", [])
    assert "revoked" in detail


def test_queries_tell_how_they_end(clip: Context, context: Context, receiver: Receiver):
    webhook(context, receiver.url, "query.done", "query.failed", "query.cancelled")
    ((frame_id,),) = sql(context, "select min(id) from frames")
    asked = [submit_query(context, BOX, SearchParams(tau=-1.0), frame_id=frame_id) for _ in "abc"]
    state = query_state(context, asked[0])
    run_job(context, state.query.job_id, HANDLERS)
    with context.db.transaction() as session:
        assert cancel_query(session, COMMAND_LINE, query_state(context, asked[1]).query)
    sql(context, "update search_queries set roi = '{}' where id = %s", asked[2])
    run_jobs(context)
    deliver_all(context)
    told = [(got.told["type"], got.told["data"]) for got in receiver.got]
    ended = {data["query_id"]: (kind, data) for kind, data in told}
    assert ended[str(asked[0])][0] == "query.done"
    assert ended[str(asked[0])][1]["hits"] == len(query_state(context, asked[0]).hits) > 0
    assert ended[str(asked[1])][0] == "query.cancelled"
    assert ended[str(asked[2])][0] == "query.failed"
    assert ended[str(asked[2])][1]["code"]
    assert len(told) == 3


def test_recordings_tell_how_they_end(
    context: Context, receiver: Receiver, footage: dict[str, Path], tmp_path: Path
):
    webhook(context, receiver.url, "segment.ingested", "segment.failed")
    ingested(context, footage["car"], "seat", 4.0, start_utc=START)
    (tmp_path / "no.mp4").write_bytes(b"no video" * 100)
    submit_file(context, tmp_path / "no.mp4", "seat", IntervalPolicy(1.0), START)
    run_jobs(context)
    deliver_all(context)
    kinds = {got.told["type"]: got.told["data"] for got in receiver.got}
    assert kinds["segment.ingested"]["outcome"] == "complete"
    assert kinds["segment.ingested"]["frames"] > 0
    assert kinds["segment.failed"]["code"] == "video_invalid"
    assert len(receiver.got) == 2


def test_erased_queries_take_their_events_along(
    services: Services, template_database: str, tmp_path: Path, footage: dict[str, Path]
):
    given = {"backbone": "tiny-a", **QUICK}
    with fresh_context(services.database_url, template_database, tmp_path, **given) as context:
        ingested(context, footage["bikes"], "street", 4.0, start_utc=START)
        webhook(context, "http://127.0.0.1:1/", "query.done")
        ((frame_id,),) = sql(context, "select min(id) from frames")
        submit_query(context, BOX, SearchParams(tau=-1.0), frame_id=frame_id)
        run_jobs(context)
        assert len(deliveries(context)) == 1
        submit_erasure(context, camera_span(context, "street", None, None)[0])
        run_jobs(context)
        assert sql(context, "select count(*) from events") == [(0,)]
        assert deliveries(context) == []


def test_old_events_are_given_up_and_forgotten(context: Context, receiver: Receiver):
    webhook(context, receiver.url)
    happen(context, 1, 2)
    sql(context, "update deliveries set created_at = now() - interval '4 days'")
    clean_up(context)
    assert {row[0] for row in deliveries(context)} == {"dead"}
    assert "not delivered within" in deliveries(context)[0][3]
    assert deliver_due(context) == 0
    sql(context, "update deliveries set finished_at = now() - interval '8 days'")
    clean_up(context)
    assert sql(context, "select count(*) from events") == [(0,)]


def test_a_removed_webhook_holds_up_nothing_that_happens(context: Context, receiver: Receiver):
    webhook_id, _ = webhook(context, receiver.url)
    happen(context, 1)
    with context.db.transaction() as session:
        accepting.remove_webhook(session, AT_COMMAND_LINE, webhook_id)
    happen(context, 1)
    assert deliver_due(context) == 0
    assert deliveries(context) == []


DELIVER = """
from worker.delivering import deliver_due
from worker.runtime import process_context
import time
context = process_context()
print("ready", flush=True)
while True:
    deliver_due(context)
    time.sleep(0.05)
"""


def test_killed_workers_lose_nothing(context: Context, receiver: Receiver):
    """kill -9 in the middle of deliveries, again and again: every event comes, under one id."""
    events = 40
    webhook(context, receiver.url)
    receiver.answer = lambda _got: time.sleep(0.02) or 200  # type: ignore[func-returns-value]
    happen(context, *range(events))
    env = os.environ | {
        "PYTHONPATH": str(REPO),
        "RIS_DATABASE_URL": str(context.settings.database_url),
        "RIS_DATA_DIR": str(context.settings.data_dir),
        **{f"RIS_{name.upper()}": str(value) for name, value in QUICK.items()},
        "RIS_WEBHOOK_ATTEMPTS": "50",
    }
    killed = 0
    while killed < 2:
        came = len(receiver.got)
        with subprocess.Popen(
            [sys.executable, "-c", DELIVER],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as worker:
            until(lambda: len(receiver.got) >= came + 8, what="some deliveries")  # noqa: B023
            worker.send_signal(signal.SIGKILL)
        killed += 1
        # What it held is free once its hold is over.
        sql(context, "update webhooks set held_until = now() where held_until is not null")
    deliver_all(context)
    by_id = {got.event_id: got.told["data"]["camera_id"] for got in receiver.got}
    assert sorted(by_id.values()) == list(range(events)), "each event under one id of its own"
    assert len(receiver.got) <= events + killed, "only what was under way comes twice"
    assert {row[0] for row in deliveries(context)} == {"delivered"}


def test_another_way_out_is_another_transport(context: Context):
    sent: list[tuple[str, str]] = []

    class Noted:
        def send(self, url: str, message: Message, secrets: Any) -> Receipt:
            sent.append((url, message.kind))
            return Receipt(None)

    webhook(context, "mqtt://broker/ris")
    happen(context, 1)
    deliver_due(context, {"mqtt": Noted()})
    assert sent == [("mqtt://broker/ris", "feed.live")]


def test_a_camera_that_goes_live_and_down_is_told_of(
    services: Services, template_database: str, tmp_path: Path, footage: dict[str, Path]
):
    given = {"feed_files_dir": footage["bikes"].parent, **QUICK}
    with (
        receiving() as receiver,
        feed_context(services, template_database, tmp_path, **given) as context,
    ):
        webhook(context, receiver.url, "feed.live", "feed.down")
        with feed_worker(context) as worker:
            feed_id = add_feed(
                worker.context, "loop", f"file:{footage['bikes']}", IntervalPolicy(0.5)
            )

            def kinds() -> list[str]:
                deliver_due(context)
                return [got.told["type"] for got in receiver.got]

            until(lambda: kinds() == ["feed.live"], what="feed.live")
            pause_feed(worker.context, "loop")
            until(lambda: kinds() == ["feed.live", "feed.down"], what="feed.down")
        down = receiver.got[1].told["data"]
        assert (down["camera"], down["reason"]) == ("loop", "paused")
        with context.db.transaction() as session:
            note_trouble(session, feed_id, ("x", "y"), "internal")  # a gap is open already
        assert kinds() == ["feed.live", "feed.down"]


def test_a_message_is_the_same_bytes_each_time(context: Context):
    webhook_id, _ = webhook(context, "http://127.0.0.1:1/")
    happen(context, 1)
    bodies = set()
    for _ in range(2):
        with context.db.transaction() as session:
            (delivery,) = event_record.list_deliveries(session, webhook_id, None, None, 10)
        bodies.add(message_of(delivery).body)
    assert len(bodies) == 1
