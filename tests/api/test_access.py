"""Every operation against every kind of key; a new route without a rule fails here."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from api import access
from api.app import make_app
from api.desk import open_desk
from tests.api.conftest import BOX, Api
from tests.parts import sql
from worker.config import Settings

PUBLIC = {("GET", "/healthz"), ("GET", "/readyz")}
ANY_KEY = "any"
WRONG_OF = {
    "view": ("search", "ingest"),
    "search": ("view", "ingest"),
    "ingest": ("view", "search"),
    "admin": ("view", "search", "ingest"),
}
APP = make_app(open_desk(Settings(database_url="postgresql://nobody@127.0.0.1:1/none")))


def routes() -> list[APIRoute]:
    """Those of the application and of the routers that it includes."""
    every = [
        inner
        for outer in APP.routes
        for inner in getattr(getattr(outer, "original_router", None), "routes", [outer])
    ]
    return [route for route in every if isinstance(route, APIRoute)]


def needed_by(dependant: Dependant) -> str | None:
    """The action that a route depends on; None: it asks for no key."""
    named = {check: action for action, check in access.CHECKS.items()}
    calls = [each.call for each in dependant.dependencies]
    if actions := [named[call] for call in calls if call in named]:
        return actions[0]
    return ANY_KEY if access._identified in calls else None


OPERATIONS = [
    (method, route.path, needed_by(route.dependant))
    for route in routes()
    for method in sorted(route.methods or ())
]
GUARDED = [operation for operation in OPERATIONS if operation[2] is not None]
SCOPED = [
    operation
    for operation in GUARDED
    if operation[2] != "admin" and ("{camera_id}" in operation[1] or "/frames" in operation[1])
]


def test_every_operation_but_health_needs_a_key() -> None:
    assert {(method, path) for method, path, action in OPERATIONS if action is None} == PUBLIC
    documented = {
        (method.upper(), path) for path, each in APP.openapi()["paths"].items() for method in each
    }
    assert {(method, path) for method, path, _ in OPERATIONS} == documented


def sent(api: Api, headers: dict[str, str], method: str, path: str) -> Any:
    """A request that is sound but for its key: ids are of the camera ``car``."""
    filled = path.format(
        camera_id=api.camera("car"),
        frame_id=api.frame("car"),
        query_id=uuid.UUID(int=1),
        job_id=uuid.UUID(int=1),
        key_id=2**40,
        segment_id=2**40,
        rank=1,
    )
    params: dict[str, Any] = {}
    if path.endswith("/coverage"):
        params = {"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z"}
    if "/frames" in path and "{" not in path:
        params = {"camera_id": api.camera("car")}
    if path.endswith("/nearest"):
        params["t_utc"] = "2026-01-01T12:00:00Z"
    bodies: dict[tuple[str, str], Any] = {
        ("POST", "/v1/queries"): {"frame_id": api.frame("car"), "roi": BOX},
        ("POST", "/v1/keys"): {"name": "made", "actions": ["view"]},
        ("POST", "/v1/cameras"): {"name": f"made-{uuid.uuid4()}"},
        ("PATCH", "/v1/cameras/{camera_id}"): {"retention_days": 30},
        ("POST", "/v1/segments"): {
            "camera_id": api.camera("car"),
            "path": "no-such-file",
            "start_utc": "2026-01-01T12:00:00Z",
        },
    }
    body = bodies.get((method, path))
    given = {} if body is None else {"json": body}
    return api.client.request(method, filled, params=params, headers=headers, **given)


@pytest.mark.parametrize("kind", ["none", "unknown", "not-a-key", "revoked", "expired"])
@pytest.mark.parametrize(("method", "path", "action"), GUARDED)
def test_without_a_sound_key_nothing_is_told(
    api: Api, kind: str, method: str, path: str, action: str
) -> None:
    headers = {
        "none": {},
        "unknown": {"Authorization": "Bearer ris_" + "x" * 43},
        "not-a-key": {"Authorization": "Basic YTpi"},
    }.get(kind)
    if headers is None:
        headers = api.key("admin", name=kind)
        columns = "revoked_at = now()" if kind == "revoked" else "expires_at = now()"
        sql(api.context, f"update api_keys set {columns} where name = '{kind}'")
    answer = sent(api, headers, method, path)
    assert answer.status_code == 401, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "unauthenticated" and "WWW-Authenticate" in answer.headers


@pytest.mark.parametrize(("method", "path", "action"), GUARDED)
def test_the_wrong_action_is_refused_and_the_right_one_taken(
    api: Api, method: str, path: str, action: str
) -> None:
    for wrong in WRONG_OF.get(action, ()):
        refused = sent(api, api.key(wrong), method, path)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    for right in ("view", "admin") if action == ANY_KEY else (action, "admin"):
        taken = sent(api, api.key(right), method, path)
        assert taken.status_code in {200, 201, 202, 404, 422}, taken.text
        if taken.status_code == 422:  # a file that is not there
            assert taken.json()["code"] == "video_unreadable"


@pytest.mark.parametrize(("method", "path", "action"), SCOPED)
def test_other_cameras_do_not_exist(api: Api, method: str, path: str, action: str) -> None:
    hidden = sent(api, api.key(action, camera_ids=[api.camera("street")]), method, path)
    assert (hidden.status_code, hidden.json()["code"]) == (404, "not_found")
    assert sent(api, api.key(action, camera_ids=[api.camera("car")]), method, path).is_success


def test_lists_hold_what_the_key_may_see(api: Api) -> None:
    key = api.key("view", "ingest", camera_ids=[api.camera("car")])
    cameras = api.client.get("/v1/cameras", headers=key).json()["items"]
    assert [camera["name"] for camera in cameras] == ["car"]
    segments = api.client.get("/v1/segments", headers=key).json()["items"]
    assert {segment["camera_id"] for segment in segments} == {api.camera("car")}


def test_a_search_stays_inside_the_scope(api: Api) -> None:
    params = {"tau": -1.0, "group": "frame"}
    asked = {"frame_id": api.frame("car"), "params": params}
    every = api.key("search", "view")
    told = api.answered(every, **asked)
    where = f"/v1/queries/{told['query_id']}"
    hits = api.client.get(f"{where}/hits", headers=every).json()["items"]
    assert {hit["camera_id"] for hit in hits} == {api.camera("car"), api.camera("street")}
    for stranger in (api.key("search", "view"), api.key("search")):
        for path in ("", "/hits", "/hits/1/overlay", "/events", "/appearances"):
            assert api.client.get(where + path, headers=stranger).status_code in {403, 404}
    own = api.key("search", "view", camera_ids=[api.camera("car")])
    told = api.answered(own, **asked)
    where = f"/v1/queries/{told['query_id']}"
    hits = api.client.get(f"{where}/hits", headers=own).json()["items"]
    assert {hit["camera_id"] for hit in hits} == {api.camera("car")}
    frames = sql(
        api.context, "select count(*) from frames where camera_id = %s", api.camera("car")
    )[0][0]
    assert told["stats"]["frames_searched"] == frames, "counts do not tell of others"


@pytest.mark.parametrize(
    "change",
    [
        {"frame_id": "street"},
        {"params": {"camera_ids": ["street"]}},
        {"params": {"camera_ids": ["car", "street"]}},
        {"params": {"more": [{"frame_id": "street", "box": [0.1, 0.1, 0.5, 0.5]}]}},
        {"params": {"less": [{"frame_id": "street", "box": [0.1, 0.1, 0.5, 0.5]}]}},
    ],
)
def test_ids_of_other_cameras_are_unknown_in_every_field(api: Api, change: dict[str, Any]) -> None:
    def filled(value: Any, field: str = "") -> Any:
        if isinstance(value, dict):
            return {name: filled(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [filled(inner, field) for inner in value]
        if value in ("street", "car"):
            return api.camera(value) if field == "camera_ids" else api.frame(value)
        return value

    body = {"frame_id": api.frame("car"), "roi": BOX} | filled(change)
    key = api.key("search", camera_ids=[api.camera("car")])
    count = "select count(*) from search_queries"
    before = sql(api.context, count)
    answer = api.client.post("/v1/queries", json=body, headers=key)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert sql(api.context, count) == before
    assert api.client.post("/v1/queries", json=body, headers=api.key("search")).is_success


def test_a_secret_is_told_once_and_kept_nowhere(api: Api) -> None:
    admin = api.key("admin")
    made = api.client.post(
        "/v1/keys", json={"name": "new", "actions": ["view"]}, headers=admin
    ).json()
    headers = {"Authorization": f"Bearer {made['secret']}"}
    assert api.client.get("/v1/me", headers=headers).status_code == 200
    told = api.client.get("/v1/keys", headers=admin).text
    told += api.client.get("/v1/audit", headers=admin).text
    rows = sql(api.context, "select row_to_json(k)::text from api_keys k")
    assert made["secret"] not in told + json.dumps(rows)
    ended = api.client.delete(f"/v1/keys/{made['key_id']}", headers=admin)
    assert ended.status_code == 200
    assert api.client.get("/v1/me", headers=headers).status_code == 401


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"name": ""}, 422),
        ({"name": "a\x00b"}, 422),
        ({"actions": []}, 422),
        ({"actions": ["fly"]}, 422),
        ({"camera_ids": []}, 422),
        ({"camera_ids": [99_999]}, 404),
        ({"actions": ["admin"], "camera_ids": [1]}, 422),
        ({"expires_at": (datetime.now(UTC) - timedelta(days=1)).isoformat()}, 422),
        ({"expires_at": "2030-01-01T00:00:00"}, 422),
        ({"secret": "mine"}, 422),
    ],
)
def test_keys_that_make_no_sense_are_refused(api: Api, body: dict[str, Any], status: int) -> None:
    given = {"name": "x", "actions": ["view"]} | body
    answer = api.client.post("/v1/keys", json=given, headers=api.key("admin"))
    assert answer.status_code == status, answer.text
