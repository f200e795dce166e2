"""Every operation of the API times every kind of key. A route without a rule here fails."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from api.app import make_app
from api.desk import open_desk
from models.repositories import search as search_record
from tests.api.conftest import BOX, Api
from tests.api.test_standing import ALERT
from tests.parts import run_jobs, sql
from worker.accepting.desk import COMMAND_LINE
from worker.accepting.evidence import order_export
from worker.accepting.keys import ACTIONS
from worker.config import Settings
from worker.core.sampling import IntervalPolicy
from worker.feeds import add_feed

OPEN = {
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/openapi.json"),
    ("GET", "/"),
    ("GET", "/page/{name}"),
}
"""What needs no key: it tells nothing of footage."""

URL = "rtsp://camera.example/a"
WEBHOOK = {"name": "a", "url": "https://vms.example/"}
EVENT = uuid.UUID(int=7)


@dataclass
class World:
    """What requests of the table below are about: the key sees ``street`` and not ``car``."""

    api: Api
    street: int
    car: int
    street_frame: int
    car_frame: int
    own_query: uuid.UUID
    others_query: uuid.UUID
    car_segment: int
    street_feed: int
    car_feed: int
    job: str
    own_webhook: int = 0
    others_webhook: int = 0
    own_standing: int = 0
    others_standing: int = 0
    own_alerts: tuple[int, int] = (0, 0)
    others_alerts: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Ask:
    """A request; ``holds`` is what must, and ``hides`` what must not be in the answer's text."""

    path: str
    json: Any = None
    expect: int = 200
    holds: str = ""
    hides: str = ""


@dataclass(frozen=True)
class Rule:
    """``action`` None: any key. ``right``: what a key of that action may ask. ``others``: what one
    that is limited to ``street`` must not learn of: refused as unknown, or left out. ``also``: what
    else the right key allows."""

    action: str | None
    right: Callable[[World], Ask]
    others: list[Callable[[World], Ask]] = field(default_factory=list)
    also: tuple[str, ...] = ()


def not_found(path: Callable[[World], str], json: Callable[[World], Any] = lambda _w: None) -> Any:
    return lambda w: Ask(path(w), json(w), expect=404)


def query_body(frame_id: int, **params: Any) -> dict[str, Any]:
    return {"frame_id": frame_id, "roi": BOX, "params": {"tau": -1.0, **params}}


def example_body(w: World, name: str) -> dict[str, Any]:
    return query_body(w.street_frame, **{name: [{"frame_id": w.car_frame, **BOX}]})


def own_query(below: str, w: World) -> Ask:
    return Ask(f"/v1/queries/{w.own_query}{below}")


def others_query(below: str, w: World) -> Ask:
    return Ask(f"/v1/queries/{w.others_query}{below}", expect=404)


def own_export(below: str, w: World) -> Ask:
    return Ask(f"/v1/queries/{w.own_query}/evidence/{new_export(w, w.own_query)}{below}")


def others_export(below: str, w: World) -> Ask:
    made = new_export(w, w.others_query)
    return Ask(f"/v1/queries/{w.others_query}/evidence/{made}{below}", expect=404)


def new_export(w: World, query_id: uuid.UUID) -> uuid.UUID:
    with w.api.context.db.transaction() as session:
        query = search_record.find_query(session, query_id)
        assert query is not None
        accepted = order_export(session, COMMAND_LINE, query, [1])
    run_jobs(w.api.context)
    return accepted.evidence_id


def new_feed(w: World) -> int:
    return add_feed(w.api.context, uuid.uuid4().hex, URL, IntervalPolicy(1.0))


def own_webhook(below: str, expect: int, body: Any, w: World) -> Ask:
    return Ask(f"/v1/webhooks/{w.own_webhook}{below}", body, expect=expect)


def others_webhook(below: str, body: Any, w: World) -> Ask:
    return Ask(f"/v1/webhooks/{w.others_webhook}{below}", body, expect=404)


def standing_body(frame_id: int, **params: Any) -> dict[str, Any]:
    return {"name": "a", "frame_id": frame_id, "roi": BOX, "params": params}


def own_standing(below: str, expect: int, w: World) -> Ask:
    return Ask(f"/v1/standing-queries/{w.own_standing}{below}", expect=expect)


def others_standing(below: str, w: World) -> Ask:
    return Ask(f"/v1/standing-queries/{w.others_standing}{below}", expect=404)


def own_alert(below: str, w: World) -> Ask:
    return Ask(f"/v1/alerts/{w.own_alerts[0]}{below}")


def car_alert(below: str, w: World) -> Ask:
    """Of the own standing query, on a camera that the key does not see."""
    return Ask(f"/v1/alerts/{w.own_alerts[1]}{below}", expect=404)


def others_alert(below: str, w: World) -> Ask:
    return Ask(f"/v1/alerts/{w.others_alerts[0]}{below}", expect=404)


def new_standing(w: World, headers: dict[str, str]) -> tuple[int, tuple[int, int]]:
    """A standing query of a key, and alerts of it on both cameras."""
    body = standing_body(w.street_frame)
    made = w.api.client.post("/v1/standing-queries", json=body, headers=headers)
    assert made.status_code == 201, made.text
    standing_id = int(made.json()["standing_query_id"])
    on_street, on_car = (
        int(sql(w.api.context, ALERT, standing_id, frame_id)[0][0])
        for frame_id in (w.street_frame, w.car_frame)
    )
    return standing_id, (on_street, on_car)


def new_webhook(w: World, headers: dict[str, str]) -> int:
    """A webhook of a key, with an event on its way."""
    made = w.api.client.post("/v1/webhooks", json=WEBHOOK, headers=headers)
    assert made.status_code == 201, made.text
    sql(w.api.context, "delete from events where id = %s", EVENT)
    sql(w.api.context, "insert into events (id, kind, data) values (%s, 'x', '{}')", EVENT)
    webhook_id = int(made.json()["webhook_id"])
    sql(
        w.api.context,
        "insert into deliveries (event_id, webhook_id) values (%s, %s)",
        EVENT,
        webhook_id,
    )
    return webhook_id


def new_key(w: World) -> int:
    w.api.key("view")
    return int(sql(w.api.context, "select max(id) from api_keys")[0][0])


RULES: dict[tuple[str, str], Rule] = {
    ("GET", "/v1/me"): Rule(None, lambda w: Ask("/v1/me", holds="actions")),
    ("GET", "/v1/cameras"): Rule(
        "view",
        lambda w: Ask("/v1/cameras", holds='"street"'),
        [lambda w: Ask("/v1/cameras", holds='"street"', hides='"car"')],
    ),
    ("POST", "/v1/cameras"): Rule(
        "admin", lambda w: Ask("/v1/cameras", {"name": uuid.uuid4().hex}, expect=201)
    ),
    ("GET", "/v1/cameras/{camera_id}"): Rule(
        "view",
        lambda w: Ask(f"/v1/cameras/{w.street}"),
        [not_found(lambda w: f"/v1/cameras/{w.car}")],
    ),
    ("PATCH", "/v1/cameras/{camera_id}"): Rule(
        "admin", lambda w: Ask(f"/v1/cameras/{w.street}", {"retention_days": 0})
    ),
    ("GET", "/v1/cameras/{camera_id}/coverage"): Rule(
        "view",
        lambda w: Ask(f"/v1/cameras/{w.street}/coverage"),
        [not_found(lambda w: f"/v1/cameras/{w.car}/coverage")],
    ),
    ("GET", "/v1/cameras/{camera_id}/mask"): Rule(
        "view",
        lambda w: Ask(f"/v1/cameras/{w.street}/mask", holds='"areas":[]'),
        [not_found(lambda w: f"/v1/cameras/{w.car}/mask")],
    ),
    ("PUT", "/v1/cameras/{camera_id}/mask"): Rule(
        "admin", lambda w: Ask(f"/v1/cameras/{w.street}/mask", {"areas": []})
    ),
    ("GET", "/v1/frames"): Rule(
        "view",
        lambda w: Ask(f"/v1/frames?camera_id={w.street}", holds="frame_id"),
        [not_found(lambda w: f"/v1/frames?camera_id={w.car}")],
    ),
    ("GET", "/v1/frames/nearest"): Rule(
        "view",
        lambda w: Ask(f"/v1/frames/nearest?camera_id={w.street}&t_utc=2026-01-01T12:00:00Z"),
        [not_found(lambda w: f"/v1/frames/nearest?camera_id={w.car}&t_utc=2026-01-01T13:00:00Z")],
    ),
    ("GET", "/v1/frames/{frame_id}"): Rule(
        "view",
        lambda w: Ask(f"/v1/frames/{w.street_frame}"),
        [not_found(lambda w: f"/v1/frames/{w.car_frame}")],
    ),
    ("GET", "/v1/frames/{frame_id}/picture"): Rule(
        "view",
        lambda w: Ask(f"/v1/frames/{w.street_frame}/picture"),
        [not_found(lambda w: f"/v1/frames/{w.car_frame}/picture")],
    ),
    ("GET", "/v1/frames/{frame_id}/thumbnail"): Rule(
        "view",
        lambda w: Ask(f"/v1/frames/{w.street_frame}/thumbnail"),
        [not_found(lambda w: f"/v1/frames/{w.car_frame}/thumbnail")],
    ),
    ("POST", "/v1/queries"): Rule(
        "search",
        lambda w: Ask("/v1/queries", query_body(w.street_frame), expect=202),
        [
            not_found(lambda w: "/v1/queries", lambda w: query_body(w.car_frame)),
            not_found(
                lambda w: "/v1/queries", lambda w: query_body(w.street_frame, camera_ids=[w.car])
            ),
            not_found(
                lambda w: "/v1/queries",
                lambda w: query_body(w.street_frame, camera_ids=[w.street, w.car]),
            ),
            not_found(lambda w: "/v1/queries", lambda w: example_body(w, "more")),
            not_found(lambda w: "/v1/queries", lambda w: example_body(w, "less")),
        ],
    ),
    ("GET", "/v1/queries"): Rule(
        "search",
        lambda w: Ask("/v1/queries", holds=str(w.own_query)),
        [lambda w: Ask("/v1/queries", holds=str(w.own_query), hides=str(w.others_query))],
    ),
    **{
        (method, "/v1/queries/{query_id}" + below): Rule(
            "search",
            partial(own_query, asked),
            [partial(others_query, asked)],
            also=("view",) if asked == "/picture" else (),
        )
        for method, below, asked in (
            ("GET", "", ""),
            ("GET", "/picture", "/picture"),
            ("GET", "/events", "/events"),
            ("GET", "/hits", "/hits"),
            ("GET", "/hits/{rank}/overlay", "/hits/1/overlay"),
            ("GET", "/appearances", "/appearances"),
            ("DELETE", "", ""),
        )
    },
    ("POST", "/v1/queries/{query_id}/evidence"): Rule(
        "export",
        lambda w: Ask(f"/v1/queries/{w.own_query}/evidence", {"ranks": [1]}, expect=202),
        [not_found(lambda w: f"/v1/queries/{w.others_query}/evidence", lambda _w: {"ranks": [1]})],
        also=("search",),
    ),
    **{
        ("GET", "/v1/queries/{query_id}/evidence/{evidence_id}" + below): Rule(
            "export",
            partial(own_export, below),
            [partial(others_export, below)],
            also=("search",),
        )
        for below in ("", "/bundle")
    },
    ("POST", "/v1/segments"): Rule(
        "ingest",
        lambda w: Ask("/v1/segments", segment_body(w.street), expect=202),
        [not_found(lambda w: "/v1/segments", lambda w: segment_body(w.car))],
    ),
    ("GET", "/v1/segments"): Rule(
        "ingest",
        lambda w: Ask("/v1/segments", holds="segment_id"),
        [lambda w: Ask("/v1/segments", hides=f'"camera_id":{w.car},')],
    ),
    ("GET", "/v1/segments/{segment_id}"): Rule(
        "ingest",
        lambda w: Ask("/v1/segments/1"),
        [not_found(lambda w: f"/v1/segments/{w.car_segment}")],
    ),
    ("GET", "/v1/feeds"): Rule(
        "view",
        lambda w: Ask("/v1/feeds", holds='"street"'),
        [lambda w: Ask("/v1/feeds", holds='"street"', hides='"car"')],
    ),
    ("POST", "/v1/feeds"): Rule(
        "admin", lambda w: Ask("/v1/feeds", {"camera": uuid.uuid4().hex, "url": URL}, expect=201)
    ),
    ("GET", "/v1/feeds/{feed_id}"): Rule(
        "view",
        lambda w: Ask(f"/v1/feeds/{w.street_feed}"),
        [not_found(lambda w: f"/v1/feeds/{w.car_feed}")],
    ),
    ("POST", "/v1/feeds/{feed_id}/pause"): Rule(
        "admin", lambda w: Ask(f"/v1/feeds/{w.street_feed}/pause", holds='"paused"')
    ),
    ("POST", "/v1/feeds/{feed_id}/resume"): Rule(
        "admin", lambda w: Ask(f"/v1/feeds/{w.street_feed}/resume", holds='"running"')
    ),
    ("DELETE", "/v1/feeds/{feed_id}"): Rule(
        "admin", lambda w: Ask(f"/v1/feeds/{new_feed(w)}", expect=204)
    ),
    ("GET", "/v1/cameras/{camera_id}/gaps"): Rule(
        "view",
        lambda w: Ask(f"/v1/cameras/{w.street}/gaps"),
        [not_found(lambda w: f"/v1/cameras/{w.car}/gaps")],
    ),
    ("GET", "/v1/webhooks"): Rule("notify", lambda w: Ask("/v1/webhooks", hides="secret")),
    ("POST", "/v1/webhooks"): Rule(
        "notify", lambda w: Ask("/v1/webhooks", WEBHOOK, expect=201), also=("search",)
    ),
    **{
        (method, "/v1/webhooks/{webhook_id}" + below): Rule(
            "notify",
            partial(own_webhook, asked, expect, body),
            [partial(others_webhook, asked, body)],
            also=("search",),
        )
        for method, below, asked, expect, body in (
            ("GET", "", "", 200, None),
            ("PATCH", "", "", 200, {"state": "paused"}),
            ("DELETE", "", "", 204, None),
            ("POST", "/rotate", "/rotate", 200, None),
            ("POST", "/test", "/test", 202, None),
            ("GET", "/deliveries", "/deliveries", 200, None),
            (
                "POST",
                "/deliveries/{event_id}/retry",
                f"/deliveries/{EVENT}/retry",
                202,
                None,
            ),
        )
    },
    ("GET", "/v1/standing-queries"): Rule(
        "search", lambda w: Ask("/v1/standing-queries", holds="items")
    ),
    ("POST", "/v1/standing-queries"): Rule(
        "search",
        lambda w: Ask("/v1/standing-queries", standing_body(w.street_frame), expect=201),
        [
            not_found(lambda w: "/v1/standing-queries", lambda w: standing_body(w.car_frame)),
            not_found(
                lambda w: "/v1/standing-queries",
                lambda w: standing_body(w.street_frame, camera_ids=[w.car]),
            ),
        ],
    ),
    **{
        (method, "/v1/standing-queries/{standing_query_id}" + below): Rule(
            "search",
            partial(own_standing, below, expect),
            [partial(others_standing, below)],
        )
        for method, below, expect in (
            ("GET", "", 200),
            ("DELETE", "", 204),
            ("POST", "/pause", 200),
            ("POST", "/resume", 200),
        )
    },
    ("GET", "/v1/alerts"): Rule("search", lambda w: Ask("/v1/alerts", holds="items")),
    **{
        ("GET", "/v1/alerts/{alert_id}" + below): Rule(
            "search",
            partial(own_alert, below),
            [partial(others_alert, below), partial(car_alert, below)],
        )
        for below in ("", "/overlay")
    },
    ("GET", "/v1/keys"): Rule("admin", lambda w: Ask("/v1/keys", hides="secret")),
    ("POST", "/v1/keys"): Rule(
        "admin", lambda w: Ask("/v1/keys", {"name": "a", "actions": ["view"]}, expect=201)
    ),
    ("GET", "/v1/keys/{key_id}"): Rule("admin", lambda w: Ask(f"/v1/keys/{new_key(w)}")),
    ("DELETE", "/v1/keys/{key_id}"): Rule(
        "admin", lambda w: Ask(f"/v1/keys/{new_key(w)}", holds='"revoked_at":"2')
    ),
    ("GET", "/v1/audit"): Rule("admin", lambda w: Ask("/v1/audit", holds="sha256")),
    ("GET", "/v1/jobs"): Rule("admin", lambda w: Ask("/v1/jobs", holds="job_id")),
    ("GET", "/v1/jobs/{job_id}"): Rule("admin", lambda w: Ask(f"/v1/jobs/{w.job}")),
    ("GET", "/v1/generations"): Rule("admin", lambda w: Ask("/v1/generations", holds="live")),
}


def segment_body(camera_id: int) -> dict[str, Any]:
    start = f"2026-02-01T{uuid.uuid4().int % 24:02}:00:00Z"
    return {"path": "street/bikes.mp4", "camera_id": camera_id, "start_utc": start}


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


@pytest.fixture(scope="module")
def world(api: Api) -> World:
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
        street_feed=add_feed(api.context, "street", URL, IntervalPolicy(1.0)),
        car_feed=add_feed(api.context, "car", URL, IntervalPolicy(1.0)),
        job=str(others["job_id"]),
    )


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
    if "/webhooks/" in path:
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
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
    if rule.action is not None:
        wrong = api.key(*[one for one in ACTIONS if one not in (rule.action, "admin")])
        refused = ask(world, method, wanted, wrong)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")

    assert_told(ask(world, method, wanted, right), wanted)

    if rule.action == "admin":
        assert not rule.others  # an admin key cannot be limited to cameras
        return
    limited = api.key(*(needed or ["view"]), camera_ids=[world.street])
    if "/queries" in path:
        asked = {"params": {"tau": -1.0, "group": "frame", "limit": 1000}}
        told = api.answered(limited, **asked)
        assert told["params"]["camera_ids"] == [world.street]
        world.own_query = uuid.UUID(told["query_id"])
    if "/webhooks/" in path:
        world.others_webhook = world.own_webhook
        world.own_webhook = new_webhook(world, limited)
    if "/standing" in path or "/alerts" in path:
        world.own_standing, world.own_alerts = new_standing(world, limited)
    assert_told(ask(world, method, rule.right(world), limited), rule.right(world))
    for other in rule.others:
        unseen = other(world)
        assert_told(ask(world, method, unseen, limited), unseen)


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
