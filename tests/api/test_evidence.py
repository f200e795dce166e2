"""Evidence over the API: ordered, made by a worker, fetched; each an act of the audit."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path
from typing import Any

import pytest

from ris_client import RisApiError, RisClient
from tests.api.conftest import Api
from tests.api.test_client import client as client_fixture
from tests.parts import queued_jobs, run_jobs, sql, with_settings
from worker.bundle.checking import check_bundle
from worker.bundle.signing import fingerprint, own_key

client = client_fixture
PARAMS = {"tau": -1.0, "group": "frame", "limit": 8}


def test_hits_are_exported_by_a_key_that_may(api: Api):
    key = api.key("search", "export", name="desk 3")
    query = api.answered(key, params=PARAMS)["query_id"]
    path = f"/v1/queries/{query}/evidence"
    reply = api.client.post(path, json={"ranks": [3, 1, 3]}, headers=key)
    assert reply.status_code == 202, reply.text
    told = reply.json()
    assert (told["state"], told["ranks"], told["bundle"]) == ("queued", [1, 3], None)
    where = reply.headers["Location"]
    early = api.client.get(f"{where}/bundle", headers=key)
    assert (early.status_code, early.json()["code"]) == (422, "input_invalid")
    assert "queued" in early.json()["detail"]
    run_jobs(api.context)
    told = api.client.get(where, headers=key).json()
    assert (told["state"], told["bundle"]) == ("done", f"{where}/bundle")
    reply = api.client.get(told["bundle"], headers=key)
    assert reply.headers["Content-Type"] == "application/zip"
    assert reply.headers["Content-Disposition"].endswith(f'-{told["evidence_id"]}.zip"')
    assert reply.headers["Cache-Control"] == "no-store"
    assert len(reply.content) == told["bytes"]
    mark = fingerprint(own_key(api.context.settings, make=False).public_pem)
    found = check_bundle(reply.content, mark)
    assert (found.problems, found.signer, told["signed_by"]) == ((), "trusted", mark)
    asked_by = found.manifest["export"]["asked_by"]
    assert asked_by["label"] == found.manifest["query"]["asked_by"]["label"] == "desk 3"
    order, made, fetch = (api.acts(f"evidence.{act}")[-1] for act in ("order", "made", "fetch"))
    assert (order["query_id"], order["ranks"]) == (query, [1, 3])
    assert made["sha256"] == fetch["sha256"] == told["sha256"]
    assert [entry["act"] for entry in found.manifest["audit"]] == ["query.submit", "evidence.order"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"ranks": []}, 422, "input_invalid"),
        ({"ranks": list(range(1, 52))}, 422, "input_invalid"),
        ({"ranks": [0]}, 422, "input_invalid"),
        ({"ranks": ["1"]}, 422, "input_invalid"),
        ({"ranks": [1], "more": 1}, 422, "input_invalid"),
        ({}, 422, "input_invalid"),
        ({"ranks": [1, 900]}, 404, "not_found"),
    ],
    ids=str,
)
def test_orders_that_cannot_be_carried_out(api: Api, body: Any, status: int, code: str):
    key = api.key("search", "export")
    query = api.answered(key, params=PARAMS)["query_id"]
    before = len(api.acts("evidence.order"))
    reply = api.client.post(f"/v1/queries/{query}/evidence", json=body, headers=key)
    assert (reply.status_code, reply.json()["code"]) == (status, code), reply.text
    assert len(api.acts("evidence.order")) == before
    assert not queued_jobs(api.context)


def test_a_query_that_is_not_answered_has_nothing_to_export(api: Api):
    key = api.key("search", "export")
    asked = {"frame_id": api.frame("street"), "roi": {"box": [0.2, 0.2, 0.8, 0.8]}}
    query = api.client.post("/v1/queries", json=asked, headers=key).json()["query_id"]
    reply = api.client.post(f"/v1/queries/{query}/evidence", json={"ranks": [1]}, headers=key)
    assert (reply.status_code, reply.json()["code"]) == (422, "input_invalid")
    assert "once it is done" in reply.json()["detail"]
    run_jobs(api.context)


def test_the_same_order_again_makes_nothing_new(api: Api):
    key = api.key("search", "export")
    path = f"/v1/queries/{api.answered(key, params=PARAMS)['query_id']}/evidence"
    named = key | {"Idempotency-Key": uuid.uuid4().hex}
    first, again = (
        api.client.post(path, json={"ranks": [1]}, headers=named).json() for _ in range(2)
    )
    assert first["evidence_id"] == again["evidence_id"]
    other = api.client.post(path, json={"ranks": [2]}, headers=named)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")
    run_jobs(api.context)


def test_a_key_has_only_so_many_open_orders(api: Api):
    key = api.key("search", "export")
    path = f"/v1/queries/{api.answered(key, params=PARAMS)['query_id']}/evidence"
    with api.with_settings(api_open_queries=1) as limited:
        first = limited.post(path, json={"ranks": [1]}, headers=key)
        second = limited.post(path, json={"ranks": [1]}, headers=key)
    assert (first.status_code, second.status_code) == (202, 429)
    run_jobs(api.context)


def test_the_client_waits_for_a_bundle(api: Api, client: RisClient):
    query = api.answered(api.key("admin"), params=PARAMS)["query_id"]
    done = threading.Event()

    def work() -> None:
        while not done.wait(0.1):
            run_jobs(api.context)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        content = client.evidence(query, [1, 2])
    finally:
        done.set()
        worker.join()
    found = check_bundle(content, None)
    assert [hit["rank"] for hit in found.manifest["hits"]] == [1, 2]
    with pytest.raises(RisApiError) as refused:
        client.evidence(query, [999])
    assert refused.value.code == "not_found"


def test_without_its_key_nothing_is_signed_and_no_path_is_told(api: Api, tmp_path: Path):
    key = api.key("search", "export")
    query = api.answered(key, params=PARAMS)["query_id"]
    reply = api.client.post(f"/v1/queries/{query}/evidence", json={"ranks": [1]}, headers=key)
    run_jobs(with_settings(api.context, evidence_key_file=tmp_path / "gone.key"))
    told = api.client.get(reply.headers["Location"], headers=key).json()
    assert (told["state"], told["error"]["code"]) == ("failed", "setup_failed")
    assert "gone.key" not in told["error"]["detail"]


def test_a_bundle_whose_picture_is_lost_fails_and_says_so(api: Api):
    key = api.key("search", "export")
    query = api.answered(key, params=PARAMS)["query_id"]
    (sha256,) = sql(
        api.context,
        "select picture_sha256 from frames f join search_hits h on h.frame_id = f.id"
        " where query_id = %s and rank = 1",
        query,
    )[0]
    path = api.context.pictures.path(sha256)
    kept = path.read_bytes()
    path.unlink()
    try:
        reply = api.client.post(f"/v1/queries/{query}/evidence", json={"ranks": [1]}, headers=key)
        run_jobs(api.context)
    finally:
        path.write_bytes(kept)
    told = api.client.get(reply.headers["Location"], headers=key).json()
    assert (told["state"], told["error"]["code"]) == ("failed", "not_found")
    assert str(api.context.settings.data_dir) not in told["error"]["detail"]
