"""Every operation of the API times every kind of key. A route without a rule fails."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from api.app import make_app
from api.desk import Pace, open_desk, open_tokens
from tests.api.access_rules import (
    OPEN,
    RULES,
    TIMELESS,
    URL,
    WINDOW,
    Ask,
    World,
    new_changes,
    new_standing,
    new_webhook,
)
from tests.api.conftest import Api, serving
from tests.issuer import Issuer, bearer, issuing, new_role, oidc_settings
from tests.parts import sql
from worker.accepting.keys import ACTIONS
from worker.config import Settings
from worker.core.sampling import IntervalPolicy
from worker.feeds import add_feed


def operations() -> set[tuple[str, str]]:
    app = make_app(open_desk(Settings(database_url="postgresql://nowhere/ris")))
    documented = {
        (method.upper(), path)
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    }
    served = {
        (method, route.path)
        for route in every_route(app.routes)
        for method in (getattr(route, "methods", None) or {"ANY"}) - {"HEAD"}
    }
    assert documented <= served
    return served


def every_route(routes: Any) -> list[Any]:
    found = []
    for route in routes:
        router = getattr(route, "original_router", route)  # FastAPI includes routers lazily
        inner = getattr(router, "routes", None)
        found += every_route(inner) if inner else [route]
    return found


def test_every_route_has_a_rule_and_every_rule_a_route():
    assert operations() == set(RULES) | OPEN
    assert len(RULES) > 25


def test_every_rule_says_what_a_key_for_some_time_must_not_learn():
    """Or that there is nothing."""
    for (method, path), rule in RULES.items():
        if rule.action not in ("ingest", "admin") and not path.startswith("/v1/webhooks"):
            assert bool(rule.outside) != ((method, path) in TIMELESS), (method, path)


@dataclass(frozen=True)
class TokenApi(Api):
    """An API whose callers have access tokens: each key is that of a role."""

    issuer: Issuer

    def key(self, *actions: str, **given: Any) -> dict[str, str]:
        role = new_role(self.context, *(actions or ("admin",)), **given)
        return bearer(self.issuer.token(groups=["others", role], exp=int(time.time()) + 3600))


@pytest.fixture(scope="module", params=["keys", "tokens"])
def callers(api: Api, request: pytest.FixtureRequest) -> Iterator[Api]:
    """The API, with keys or with tokens as what callers have."""
    if request.param == "keys":
        yield api
        return
    with issuing() as issuer:
        settings = oidc_settings(issuer, api.desk.settings)
        desk = replace(
            api.desk, settings=settings, pace=Pace(100_000.0), tokens=open_tokens(settings)
        )
        with serving(desk) as client:
            yield TokenApi(api.context, desk, client, api.footage, issuer)


@pytest.fixture(scope="module")
def feeds(api: Api) -> tuple[int, int]:
    """Of ``street`` and ``car``."""
    street, car = (
        add_feed(api.context, name, URL, IntervalPolicy(1.0)) for name in ("street", "car")
    )
    return street, car


@pytest.fixture(scope="module")
def world(callers: Api, feeds: tuple[int, int]) -> World:
    api = callers
    street, car = api.camera("street"), api.camera("car")
    others = api.answered(api.key("search"))
    car_segment = sql(api.context, "select id from video_segments where camera_id = %s", car)
    return World(
        api=api,
        street=street,
        car=car,
        street_frame=api.frame("street"),
        car_frame=api.frame("car"),
        own_query=uuid.UUID(int=0),
        others_query=uuid.UUID(others["query_id"]),
        car_segment=int(car_segment[0][0]),
        street_feed=feeds[0],
        car_feed=feeds[1],
        job=str(others["job_id"]),
    )


GONE = {False: (401, "unauthenticated"), True: (403, "forbidden")}
"""What becomes of an expired or revoked key, and of a token whose role had one."""


def ask(world: World, method: str, wanted: Ask, headers: dict[str, str]) -> Any:
    return world.api.client.request(method, wanted.path, json=wanted.json, headers=headers)


def assert_told(reply: Any, wanted: Ask) -> None:
    assert reply.status_code == wanted.expect, reply.text
    if wanted.holds:
        assert wanted.holds in reply.text
    if wanted.hides:
        assert wanted.hides not in reply.text


@pytest.mark.parametrize(("method", "path"), sorted(RULES), ids=" ".join)
def test_an_operation_with_every_kind_of_key(world: World, method: str, path: str):
    rule = RULES[method, path]
    api = world.api
    needed = [] if rule.action is None else [rule.action, *rule.also]
    right = api.key(*(needed or ["view"]))
    if "/queries" in path:
        world.own_query = uuid.UUID(api.answered(right)["query_id"])
    if "/changes" in path:
        world.others_changes = new_changes(world, world.car, api.key("search"))
        world.own_changes = new_changes(world, world.street, right)
    if "/webhooks" in path:
        world.others_webhook = new_webhook(world, api.key("notify", "search"))
        world.own_webhook = new_webhook(world, right)
    if "/standing" in path or "/alerts" in path:
        world.others_standing, world.others_alerts = new_standing(world, api.key("search"))
        world.own_standing, world.own_alerts = new_standing(world, right)
    wanted = rule.right(world)

    for headers in ({}, {"Authorization": "Bearer ris_x"}, {"Authorization": "Basic YTpi"}):
        assert ask(world, method, wanted, headers).status_code == 401
    for column in ("expires_at", "revoked_at"):
        gone = api.key("admin")
        assert api.client.get("/v1/me", headers=gone).status_code == 200
        latest = "(select max(id) from api_keys)"
        sql(api.context, f"update api_keys set {column} = now() where id = {latest}")
        refused = ask(world, method, wanted, gone)
        assert (refused.status_code, refused.json()["code"]) == GONE[isinstance(api, TokenApi)]
    if rule.action is not None:
        wrong = api.key(*[one for one in ACTIONS if one not in (rule.action, "admin")])
        refused = ask(world, method, wanted, wrong)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")

    assert_told(ask(world, method, wanted, right), wanted)

    if rule.action == "admin":
        assert not rule.others  # an admin key cannot be limited to cameras
        return
    limited = api.key(*(needed or ["view"]), camera_ids=[world.street])
    prepare(world, path, limited)
    assert_told(ask(world, method, rule.right(world), limited), rule.right(world))
    assert_not_told(world, method, rule.others, limited)

    if rule.action == "ingest":
        return  # such a key cannot be limited in time
    windowed = api.key(*(needed or ["view"]), **WINDOW)
    prepare(world, path, windowed)
    if not rule.of_now:
        assert_told(ask(world, method, rule.right(world), windowed), rule.right(world))
    assert_not_told(world, method, rule.outside, windowed)


def prepare(world: World, path: str, limited: dict[str, str]) -> None:
    """What a limited key has of its own."""
    world.asker = limited
    if "/queries" in path:
        asked = {"params": {"tau": -1.0, "group": "frame", "limit": 1000}}
        world.own_query = uuid.UUID(world.api.answered(limited, **asked)["query_id"])
    if "/changes" in path:
        world.own_changes = new_changes(world, world.street, limited)
    if "/webhooks" in path:
        world.others_webhook = world.own_webhook
        world.own_webhook = new_webhook(world, limited)
    if "/standing" in path or "/alerts" in path:
        world.own_standing, world.own_alerts = new_standing(world, limited)


def assert_not_told(
    world: World, method: str, unseen: list[Callable[[World], Ask]], limited: dict[str, str]
) -> None:
    for other in unseen:
        wanted = other(world)
        assert_told(ask(world, method, wanted, limited), wanted)


def test_a_limited_key_counts_only_its_own_cameras(api: Api):
    """The same search by a key for all cameras searches more and finds frames of both."""
    street, car = api.camera("street"), api.camera("car")
    asked = {"params": {"tau": -1.0, "group": "frame", "limit": 1000, "top_n": 1000}}
    cameras = {}
    frames = {}
    for name, given in (("all", {}), ("limited", {"camera_ids": [street]})):
        key = api.key("search", **given)
        told = api.answered(key, **asked)
        hits = api.client.get(f"/v1/queries/{told['query_id']}/hits?limit=1000", headers=key)
        cameras[name] = {hit["camera_id"] for hit in hits.json()["items"]}
        frames[name] = told["stats"]["frames_searched"]
    assert cameras == {"all": {street, car}, "limited": {street}}
    assert told["params"]["camera_ids"] == [street]
    per_camera = dict(sql(api.context, "select camera_id, count(*) from frames group by 1"))
    assert frames == {"all": per_camera[street] + per_camera[car], "limited": per_camera[street]}


@pytest.mark.parametrize(
    "path",
    ["bikes.mp4", "car/bikes.mp4", "street/../car/bikes.mp4", "street/gone.mp4", "street", "."],
)
def test_a_limited_key_takes_recordings_of_its_own_cameras_only(api: Api, path: str):
    """And is not told which files of others exist, nor where the folder lies."""
    street = api.camera("street")
    key = api.key("ingest", camera_ids=[street])
    given = {"path": path, "camera_id": street, "start_utc": "2026-02-01T08:00:00Z"}
    reply = api.client.post("/v1/segments", json=given, headers=key)
    assert (reply.status_code, reply.json()["code"]) == (422, "video_unreadable")
    told = reply.json()["detail"]
    assert told.startswith(f"path {path!r} is no file below street/ in the footage folder")
    assert str(api.footage) not in told


def test_a_limited_admin_key_cannot_be_made(api: Api):
    admin = api.key("admin")
    body = {"name": "a", "actions": ["admin"], "camera_ids": [api.camera("street")]}
    reply = api.client.post("/v1/keys", json=body, headers=admin)
    assert (reply.status_code, reply.json()["code"]) == (422, "input_invalid")
