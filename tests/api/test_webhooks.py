"""Webhooks over the API: made, told about, changed, tried out, removed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.conftest import Api
from tests.api.test_reading import pages
from tests.parts import sql, with_settings
from tests.receiver import Receiver, receiving
from worker.accepting.events import EVENT_KINDS
from worker.delivering import deliver_due

TOKEN = "hunter2"
URL = f"https://vms.example/hooks/a?token={TOKEN}"
SHOWN = "https://vms.example/hooks/a?..."


@pytest.fixture(autouse=True)
def none_left(api: Api) -> Iterator[None]:
    yield
    sql(api.context, "truncate webhooks, events cascade")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@pytest.fixture
def admin(api: Api) -> dict[str, str]:
    return api.key("admin")


def add(api: Api, headers: dict[str, str], **given: Any) -> Any:
    body = {"name": "vms", "url": URL} | given
    return api.client.post("/v1/webhooks", json=body, headers=headers)


def test_a_webhook_is_made_and_its_secret_told_once(api: Api, admin: dict[str, str]):
    made = add(api, admin, kinds=["query.done"])
    assert made.status_code == 201
    told = made.json()
    secret = told.pop("secret")
    assert secret.startswith("whsec_") and len(secret) > 40
    assert (told["url"], told["kinds"], told["state"]) == (SHOWN, ["query.done"], "active")
    assert api.client.get(made.headers["Location"], headers=admin).json() == told
    listed = api.client.get("/v1/webhooks", headers=admin)
    assert listed.json()["items"] == [told]
    rotated = api.client.post(made.headers["Location"] + "/rotate", headers=admin).json()
    assert rotated["secret"] not in (secret, None)
    audit = api.client.get("/v1/audit?limit=20", headers=admin)
    for reply in (listed, audit):
        assert TOKEN not in reply.text
        assert secret not in reply.text
    assert api.acts("webhook.create")[-1]["url"] == SHOWN
    assert api.acts("webhook.rotate")[-1] == {"webhook_id": told["webhook_id"]}


def test_a_request_sent_twice_makes_one_webhook_and_tells_its_secret_again(api: Api):
    key, other = api.key("notify", "search"), api.key("notify", "search")
    named = {"Idempotency-Key": "vms-hook"}
    first, again = (add(api, key | named, kinds=["query.done"]) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert first.headers["Location"] == again.headers["Location"]
    assert len(api.client.get("/v1/webhooks", headers=key).json()["items"]) == 1
    for changed in ({"url": URL + "x"}, {"name": "other"}, {"kinds": ["query.failed"]}):
        refused = add(api, key | named, **{"kinds": ["query.done"], **changed})
        assert (refused.status_code, refused.json()["code"]) == (409, "idempotency_key_reused")
    theirs = add(api, other | named, kinds=["query.done"]).json()
    assert theirs["webhook_id"] != first.json()["webhook_id"]
    assert theirs["secret"] != first.json()["secret"]
    rotated = api.client.post(first.headers["Location"] + "/rotate", headers=key).json()
    told = add(api, key | named, kinds=["query.done"]).json()
    assert told["secret"] == rotated["secret"]
    assert api.client.delete(first.headers["Location"], headers=key).status_code == 204
    gone = add(api, key | named, kinds=["query.done"])
    assert (gone.status_code, gone.json()["code"]) == (404, "not_found")


def test_without_kinds_a_key_is_told_of_all_that_it_may_read(api: Api, admin: dict[str, str]):
    assert add(api, admin).json()["kinds"] == list(EVENT_KINDS)
    told = add(api, api.key("notify", "search")).json()["kinds"]
    assert set(told) == {kind for kind in EVENT_KINDS if kind.split(".")[0] not in (
        "feed", "segment")}  # fmt: skip
    refused = add(api, api.key("notify", "search"), kinds=["feed.down"])
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert "feed.down" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"url": "http://127.0.0.1:1/"}, "address_refused"),
        ({"url": "http://localhost/"}, "address_refused"),
        ({"url": "https://10.0.0.7/"}, "address_refused"),
        ({"url": "ftp://8.8.8.8/"}, "address_refused"),
        ({"url": f"https://me:{TOKEN}@8.8.8.8/"}, "input_invalid"),
        ({"url": "x"}, "address_refused"),
        ({"kinds": ["no.kind"]}, "input_invalid"),
        ({"name": " "}, "input_invalid"),
        ({"secret": "whsec_x"}, "input_invalid"),
    ],
    ids=str,
)
def test_what_is_refused(api: Api, admin: dict[str, str], given: dict[str, Any], code: str):
    reply = add(api, admin, **given)
    assert (reply.status_code, reply.json()["code"]) == (422, code)
    assert TOKEN not in reply.text
    assert sql(api.context, "select count(*) from webhooks") == [(0,)]
    path = add(api, admin).headers["Location"]
    changed = api.client.patch(path, json=given, headers=admin)
    assert (changed.status_code, changed.json()["code"]) == (422, code)


def test_a_change_is_one_and_what_is_left_out_stays(api: Api, admin: dict[str, str]):
    path = add(api, admin, kinds=["query.done"]).headers["Location"]
    changed = api.client.patch(path, json={"name": "other", "state": "paused"}, headers=admin)
    assert changed.status_code == 200
    told = changed.json()
    assert (told["name"], told["state"], told["kinds"]) == ("other", "paused", ["query.done"])
    assert api.client.patch(path, json={}, headers=admin).json() == told
    assert api.acts("webhook.change")[-1]["state"] == "paused"
    assert api.client.delete(path, headers=admin).status_code == 204
    assert api.client.get(path, headers=admin).status_code == 404


def test_a_test_event_and_how_it_went(api: Api, admin: dict[str, str], receiver: Receiver):
    context = with_settings(
        api.context, webhook_hosts="127.0.0.0/8", webhook_attempts=1, webhook_timeout_s=5.0
    )
    with api.with_settings(webhook_hosts="127.0.0.0/8") as client:
        body = {"name": "vms", "url": receiver.url}
        made = client.post("/v1/webhooks", json=body, headers=admin).json()
    path = f"/v1/webhooks/{made['webhook_id']}"
    asked = api.client.post(path + "/test", headers=admin)
    assert (asked.status_code, asked.json()["state"]) == (202, "pending")
    deliver_due(context)
    (got,) = receiver.got
    got.verify(made["secret"])
    assert got.told["type"] == "webhook.test"
    assert got.event_id == asked.json()["event_id"]
    receiver.answer = lambda _got: 500
    api.client.post(path + "/test", headers=admin)
    deliver_due(context)
    told = api.client.get(path, headers=admin).json()
    assert {name: told[name] for name in ("pending", "delivered", "dead", "failures")} == {
        "pending": 0,
        "delivered": 1,
        "dead": 1,
        "failures": 1,
    }
    for limit in (1, 2, 10):
        found = pages(api, path + "/deliveries", admin, limit=limit)
        assert [(one["state"], one["status"]) for one in found] == [
            ("dead", 500), ("delivered", 204)]  # fmt: skip
    dead = pages(api, path + "/deliveries", admin, state="dead", limit=5)
    assert [one["detail"] for one in dead] == ["HTTP 500"]
    retry = path + f"/deliveries/{dead[0]['event_id']}/retry"
    assert api.client.post(retry, headers=admin).json()["state"] == "pending"
    receiver.answer = lambda _got: 200
    sql(api.context, "update webhooks set rest_until = null")
    deliver_due(context)
    assert receiver.ids()[-1] == receiver.ids()[-2] == dead[0]["event_id"]
    other = api.client.post(path + f"/deliveries/{made['webhook_id']}/retry", headers=admin)
    assert other.status_code == 422


def test_a_query_that_is_done_is_told_to_whom_it_is_of(api: Api, receiver: Receiver):
    context = with_settings(api.context, webhook_hosts="127.0.0.0/8")
    mine, others = api.key("notify", "search"), api.key("notify", "search")
    with api.with_settings(webhook_hosts="127.0.0.0/8") as client:
        body = {"name": "me", "url": receiver.url}
        assert client.post("/v1/webhooks", json=body, headers=mine).status_code == 201
    api.answered(others)
    told = api.answered(mine)
    deliver_due(context)
    (got,) = receiver.got
    assert got.told["type"] == "query.done"
    assert got.told["data"]["query_id"] == told["query_id"]
    assert got.told["data"]["hits"] == told["hits"]
    assert api.client.get(got.told["data"]["path"], headers=mine).json() == told
    assert json.loads(got.body) == got.told
