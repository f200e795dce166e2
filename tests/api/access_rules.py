"""What each operation of the API may tell to which key: what test_access.py goes through."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

from models.repositories import search as search_record
from tests.api.conftest import BOX, STREET_START, Api
from tests.api.test_standing import ALERT
from tests.parts import run_jobs, sql
from worker.accepting.desk import COMMAND_LINE
from worker.accepting.evidence import order_export
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

TIMELESS = {
    ("GET", "/v1/me"),
    ("GET", "/v1/cameras/{camera_id}/mask"),
    *(
        (method, f"/v1/queries{below}")
        for method, below in (
            ("GET", ""),
            ("GET", "/{query_id}/picture"),
            ("GET", "/{query_id}/events"),
            ("GET", "/{query_id}/hits/{rank}/overlay"),
            ("POST", "/{query_id}/evidence"),
            ("GET", "/{query_id}/evidence/{evidence_id}"),
            ("GET", "/{query_id}/evidence/{evidence_id}/bundle"),
        )
    ),
    *(
        (method, f"/v1/changes{below}")
        for method, below in (
            ("GET", ""),
            ("DELETE", "/{change_query_id}"),
            ("GET", "/{change_query_id}/events"),
        )
    ),
    *(
        (method, f"/v1/standing-queries{below}")
        for method, below in (
            ("GET", ""),
            ("GET", "/{standing_query_id}"),
            ("DELETE", "/{standing_query_id}"),
            ("POST", "/{standing_query_id}/pause"),
            ("POST", "/{standing_query_id}/resume"),
        )
    ),
}
"""Of a key's own, which was limited when it was made, or of no time; webhooks as well."""

URL = "rtsp://camera.example/a"
WEBHOOK = {"name": "a", "url": "https://vms.example/"}
EVENT = uuid.UUID(int=7)
WINDOW = {"footage_from_utc": STREET_START, "footage_to_utc": STREET_START + timedelta(minutes=30)}
DAY = "?from_utc=2026-01-01T00:00:00Z&to_utc=2026-01-02T00:00:00Z"
LATE = {"t_from_utc": "2026-01-01T13:00:00Z"}
NO_ITEMS = '"items":[]'


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
    asker: dict[str, str] = field(default_factory=dict)
    own_changes: str = ""
    others_changes: str = ""
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
    that is limited to ``street`` must not learn of: refused as unknown, or left out. ``outside``:
    the same for one that sees the time of ``street``'s footage only. ``of_now``: such a key is
    shown nothing. ``also``: what else the right key allows."""

    action: str | None
    right: Callable[[World], Ask]
    others: list[Callable[[World], Ask]] = field(default_factory=list)
    outside: list[Callable[[World], Ask]] = field(default_factory=list)
    of_now: bool = False
    also: tuple[str, ...] = ()


def not_found(path: Callable[[World], str], json: Callable[[World], Any] = lambda _w: None) -> Any:
    return lambda w: Ask(path(w), json(w), expect=404)


def query_body(frame_id: int, **params: Any) -> dict[str, Any]:
    return {"frame_id": frame_id, "roi": BOX, "params": {"tau": -1.0, **params}}


def example_body(w: World, name: str) -> dict[str, Any]:
    return query_body(w.street_frame, **{name: [{"frame_id": w.car_frame, **BOX}]})


def own_query(below: str, w: World) -> Ask:
    return Ask(f"/v1/queries/{w.own_query}{below}")


def own_inside(below: str, w: World) -> Ask:
    """Of what lies in the key's time, the query's own address tells that it is limited to it."""
    told = {"": '"t_to_utc":"2026-01-01T12:30:00+00:00"'}.get(below, f'"camera_id":{w.street},')
    return Ask(f"/v1/queries/{w.own_query}{below}", holds=told, hides=f'"camera_id":{w.car},')


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


def changes_body(camera_id: int, **given: Any) -> dict[str, Any]:
    return {"camera_id": camera_id, "roi": BOX, **given}


def own_changes(below: str, expect: int, w: World) -> Ask:
    return Ask(f"/v1/changes/{w.own_changes}{below}", expect=expect)


def others_changes(below: str, w: World) -> Ask:
    return Ask(f"/v1/changes/{w.others_changes}{below}", expect=404)


def nothing_changed(below: str, w: World) -> Ask:
    """The footage of ``car`` lies outside the key's time."""
    asked = new_changes(w, w.car, w.asker)
    return Ask(f"/v1/changes/{asked}{below}", holds='"frames":0')


def new_changes(w: World, camera_id: int, headers: dict[str, str]) -> str:
    """An answered change query of a key."""
    made = w.api.client.post("/v1/changes", json=changes_body(camera_id), headers=headers)
    assert made.status_code == 202, made.text
    run_jobs(w.api.context)
    return str(made.json()["change_query_id"])


def new_feed(w: World) -> int:
    return add_feed(w.api.context, uuid.uuid4().hex, URL, IntervalPolicy(1.0))


def own_webhook(below: str, expect: int, body: Any, w: World) -> Ask:
    return Ask(f"/v1/webhooks/{w.own_webhook}{below}", body, expect=expect)


def others_webhook(below: str, body: Any, w: World) -> Ask:
    return Ask(f"/v1/webhooks/{w.others_webhook}{below}", body, expect=404)


def standing_body(frame_id: int, **params: Any) -> dict[str, Any]:
    return {"name": "a", "frame_id": frame_id, "roi": BOX, "params": params}


def standing_example(name: str, w: World) -> dict[str, Any]:
    return standing_body(w.street_frame, **{name: [{"frame_id": w.car_frame, **BOX}]})


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
        [lambda w: Ask("/v1/cameras", holds='"car"', hides="T13:")],
    ),
    ("POST", "/v1/cameras"): Rule(
        "admin", lambda w: Ask("/v1/cameras", {"name": uuid.uuid4().hex}, expect=201)
    ),
    ("GET", "/v1/cameras/{camera_id}"): Rule(
        "view",
        lambda w: Ask(f"/v1/cameras/{w.street}"),
        [not_found(lambda w: f"/v1/cameras/{w.car}")],
        [lambda w: Ask(f"/v1/cameras/{w.car}", holds='"frames":0,"first_utc":null')],
    ),
    ("PATCH", "/v1/cameras/{camera_id}"): Rule(
        "admin", lambda w: Ask(f"/v1/cameras/{w.street}", {"retention_days": 0})
    ),
    ("GET", "/v1/cameras/{camera_id}/coverage"): Rule(
        "view",
        lambda w: Ask(f"/v1/cameras/{w.street}/coverage"),
        [not_found(lambda w: f"/v1/cameras/{w.car}/coverage")],
        [lambda w: Ask(f"/v1/cameras/{w.car}/coverage{DAY}", holds='"frames":0,"buckets":[]')],
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
        [lambda w: Ask(f"/v1/frames?camera_id={w.car}", holds=NO_ITEMS)],
    ),
    ("GET", "/v1/frames/nearest"): Rule(
        "view",
        lambda w: Ask(f"/v1/frames/nearest?camera_id={w.street}&t_utc=2026-01-01T12:00:00Z"),
        [not_found(lambda w: f"/v1/frames/nearest?camera_id={w.car}&t_utc=2026-01-01T13:00:00Z")],
        [not_found(lambda w: f"/v1/frames/nearest?camera_id={w.car}&t_utc=2026-01-01T12:00:00Z")],
    ),
    ("GET", "/v1/frames/{frame_id}"): Rule(
        "view",
        lambda w: Ask(f"/v1/frames/{w.street_frame}"),
        [not_found(lambda w: f"/v1/frames/{w.car_frame}")],
        [not_found(lambda w: f"/v1/frames/{w.car_frame}")],
    ),
    ("GET", "/v1/frames/{frame_id}/proposals"): Rule(
        "view",
        lambda w: Ask(f"/v1/frames/{w.street_frame}/proposals", holds="compared"),
        [not_found(lambda w: f"/v1/frames/{w.car_frame}/proposals")],
        [not_found(lambda w: f"/v1/frames/{w.car_frame}/proposals")],
    ),
    ("GET", "/v1/frames/{frame_id}/picture"): Rule(
        "view",
        lambda w: Ask(f"/v1/frames/{w.street_frame}/picture"),
        [not_found(lambda w: f"/v1/frames/{w.car_frame}/picture")],
        [not_found(lambda w: f"/v1/frames/{w.car_frame}/picture")],
    ),
    ("GET", "/v1/frames/{frame_id}/thumbnail"): Rule(
        "view",
        lambda w: Ask(f"/v1/frames/{w.street_frame}/thumbnail"),
        [not_found(lambda w: f"/v1/frames/{w.car_frame}/thumbnail")],
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
        [
            not_found(lambda w: "/v1/queries", lambda w: query_body(w.car_frame)),
            not_found(lambda w: "/v1/queries", lambda w: example_body(w, "more")),
            not_found(lambda w: "/v1/queries", lambda w: example_body(w, "less")),
            lambda w: Ask("/v1/queries", query_body(w.street_frame, **LATE), expect=422),
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
            [partial(own_inside, asked)] if asked in ("", "/hits", "/appearances") else [],
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
    ("POST", "/v1/changes"): Rule(
        "search",
        lambda w: Ask("/v1/changes", changes_body(w.street), expect=202),
        [not_found(lambda w: "/v1/changes", lambda w: changes_body(w.car))],
        [lambda w: Ask("/v1/changes", changes_body(w.street, **LATE), expect=422)],
    ),
    ("GET", "/v1/changes"): Rule(
        "search",
        lambda w: Ask("/v1/changes", holds=w.own_changes),
        [lambda w: Ask("/v1/changes", holds=w.own_changes, hides=w.others_changes)],
    ),
    **{
        (method, "/v1/changes/{change_query_id}" + below): Rule(
            "search",
            partial(own_changes, below, expect),
            [partial(others_changes, below)],
            [partial(nothing_changed, below)] if (method, below) == ("GET", "") else [],
        )
        for method, below, expect in (
            ("GET", "", 200),
            ("GET", "/events", 200),
            ("DELETE", "", 204),
        )
    },
    ("POST", "/v1/segments"): Rule(
        "ingest",
        lambda w: Ask("/v1/segments", segment_body(w.street), expect=202),
        [
            not_found(lambda w: "/v1/segments", lambda w: segment_body(w.car)),
            not_found(lambda w: "/v1/segments", lambda _w: segment_body(camera="car")),
        ],
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
        [lambda w: Ask("/v1/feeds", holds=NO_ITEMS)],
        of_now=True,
    ),
    ("POST", "/v1/feeds"): Rule(
        "admin", lambda w: Ask("/v1/feeds", {"camera": uuid.uuid4().hex, "url": URL}, expect=201)
    ),
    ("GET", "/v1/feeds/{feed_id}"): Rule(
        "view",
        lambda w: Ask(f"/v1/feeds/{w.street_feed}"),
        [not_found(lambda w: f"/v1/feeds/{w.car_feed}")],
        [not_found(lambda w: f"/v1/feeds/{w.street_feed}")],
        of_now=True,
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
        [lambda w: Ask(f"/v1/cameras/{w.car}/gaps", holds=NO_ITEMS)],
    ),
    ("GET", "/v1/webhooks"): Rule(
        "notify",
        lambda w: Ask("/v1/webhooks", holds=f'"webhook_id":{w.own_webhook},', hides="secret"),
        [lambda w: Ask("/v1/webhooks", hides=f'"webhook_id":{w.others_webhook},')],
        also=("search",),
    ),
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
        "search",
        lambda w: Ask("/v1/standing-queries", holds=f'"standing_query_id":{w.own_standing},'),
        [lambda w: Ask("/v1/standing-queries", hides=f'"standing_query_id":{w.others_standing},')],
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
            *(
                not_found(lambda w: "/v1/standing-queries", partial(standing_example, name))
                for name in ("more", "less")
            ),
        ],
        [
            not_found(lambda w: "/v1/standing-queries", lambda w: standing_body(w.car_frame)),
            lambda w: Ask(
                "/v1/standing-queries", standing_body(w.street_frame, **LATE), expect=422
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
    ("GET", "/v1/alerts"): Rule(
        "search",
        lambda w: Ask("/v1/alerts", holds="items"),
        [
            lambda w: Ask("/v1/alerts", hides=f'"alert_id":{w.own_alerts[1]},'),
            lambda w: Ask(f"/v1/alerts?camera_id={w.car}", holds=NO_ITEMS),
            not_found(lambda w: f"/v1/alerts?standing_query_id={w.others_standing}"),
        ],
        [
            lambda w: Ask("/v1/alerts", hides=f'"alert_id":{w.own_alerts[1]},'),
            lambda w: Ask(f"/v1/alerts?camera_id={w.car}", holds=NO_ITEMS),
        ],
    ),
    **{
        ("GET", "/v1/alerts/{alert_id}" + below): Rule(
            "search",
            partial(own_alert, below),
            [partial(others_alert, below), partial(car_alert, below)],
            [partial(car_alert, below)],
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


def segment_body(camera_id: int | None = None, **given: Any) -> dict[str, Any]:
    start = f"2026-02-01T{uuid.uuid4().int % 24:02}:00:00Z"
    named = given or {"camera_id": camera_id}
    return {"path": "street/bikes.mp4", "start_utc": start, **named}
