"""What Prometheus is told: the documented metrics and no others, with true values."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from api.desk import ApiDesk
from api.metrics import serve_metrics
from models.session import connect
from tests.api.conftest import Api, serving
from tests.conftest import REPO
from tests.feeding import until
from tests.parts import sql
from worker.config import Settings
from worker.errors import SetupFailed

DOCS = REPO / "docs"


@dataclass(frozen=True)
class Scrape:
    """``families``: type and label names by name; ``values`` by name of sample and labels."""

    families: Mapping[str, tuple[str, frozenset[str]]]
    values: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    def value(self, name: str, **labels: str) -> float | None:
        return self.values.get((name, frozenset(labels.items())))


@contextmanager
def served(desk: ApiDesk) -> Iterator[str]:
    configured = desk.settings.model_copy(update={"metrics_port": 0})
    server = serve_metrics(configured, desk.metrics, desk.db)
    assert server is not None
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()


def scrape(desk: ApiDesk) -> Scrape:
    with served(desk) as url, urllib.request.urlopen(url, timeout=30) as reply:
        assert reply.headers["Content-Type"].startswith("text/plain")
        found = list(text_string_to_metric_families(reply.read().decode()))
    families, values = {}, {}
    for family in found:
        labels = {name for sample in family.samples for name in sample.labels}
        families[family.name] = (family.type, frozenset(labels - {"le"}))
        for sample in family.samples:
            values[sample.name, frozenset(sample.labels.items())] = sample.value
    return Scrape(families, values)


@cache
def documented() -> dict[str, tuple[str, frozenset[str]]]:
    table = (DOCS / "metrics.md").read_text().split("## Metrics\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1:4] for line in table.splitlines() if line.startswith("| `")]
    return {
        name.strip().strip("`"): (kind.strip(), frozenset(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels in rows
    }


@pytest.fixture
def troubled(api: Api) -> Iterator[Api]:
    """A query answered, a paused feed and one that waits, gaps, drops and an erasure."""
    api.answered(api.key("search"))
    admin = api.key("admin")
    for name in ("one", "two"):
        given = {"camera": name, "url": "rtsp://camera.example/a"}
        made = api.client.post("/v1/feeds", json=given, headers=admin).json()
    api.client.post(f"/v1/feeds/{made['feed_id']}/pause", headers=admin)
    ids = "select id from cameras where name in ('one', 'two')"
    statements = [
        "insert into feed_gaps (camera_id, from_utc, reason)"
        f" select id, now(), 'stalled' from ({ids}) x",
        "update feed_gaps set to_utc = now() where camera_id = (select max(id) from cameras)",
        f"insert into feed_drops select id, now(), 'busy', 7 from ({ids}) x",
        "update jobs set run_after = now() - interval '90 seconds' where kind = 'feed'",
        "update jobs set retry_code = 'storage_full' where kind = 'feed'",
        "insert into jobs (id, kind, queue, payload) values"
        f" ('{uuid.uuid4()}', 'erase', 'ingest', '{{}}')",
        "insert into message_counts values ('mqtt', 'malformed', 3, 'x')",
        "insert into watched_folders (folder, time_zone, policy, error_code)"
        " values ('/a', 'UTC', '{}', 'video_unreadable')",
        "insert into canary_checks (generation_id, asked, found)"
        " select id, 8, 6 from index_generations where state = 'live'",
        "insert into erasures (job_id, camera_id, reason)"
        " select id, 1, 'request' from jobs where kind = 'erase'",
    ]
    for statement in statements:
        sql(api.context, statement)
    yield api
    for table in (
        *(
            "canary_checks",
            "feed_gaps",
            "feed_drops",
            "erasures",
            "feeds",
            "message_counts",
            "watched_folders",
        ),
    ):
        sql(api.context, f"delete from {table}")
    sql(api.context, "delete from jobs where kind in ('feed', 'erase')")


def test_what_is_served_is_what_is_documented(troubled: Api):
    assert scrape(troubled.desk).families == documented()
    assert len(documented()) > 10


def test_numbers_of_the_record_are_true(troubled: Api):
    found = scrape(troubled.desk)
    done = sql(
        troubled.context, "select count(*) from jobs where (kind, state) = ('ingest', 'done')"
    )
    assert found.value("ris_jobs", kind="ingest", state="done") == done[0][0] == 2
    assert found.value("ris_jobs", kind="feed", state="queued") == 2
    assert found.value("ris_jobs", kind="offload", state="running") == 0
    failed = sql(
        troubled.context, "select count(*) from jobs where (kind, state) = ('feed', 'failed')"
    )
    assert found.value("ris_jobs_failed_lately", kind="feed") == failed[0][0]
    waited_s = found.value("ris_job_oldest_queued_seconds", kind="feed")
    assert waited_s is not None and waited_s >= 90
    assert found.value("ris_job_oldest_queued_seconds", kind="reindex") == 0
    assert found.value("ris_feeds", state="waiting") == 1
    assert found.value("ris_feeds", state="paused") == 1
    assert found.value("ris_feeds", state="live") == 0
    assert found.value("ris_feed_open_gaps", reason="stalled") == 1
    assert found.value("ris_feed_gaps_total", reason="stalled") == 2
    assert found.value("ris_jobs_retrying", kind="feed", code="storage_full") == 2
    assert found.value("ris_feed_dropped_frames_total", reason="busy") == 14
    frames, shards = sql(
        troubled.context, "select (select count(*) from frames), (select count(*) from shards)"
    )[0]
    assert found.value("ris_canary_recall") == 0.75
    age_s = found.value("ris_canary_age_seconds")
    assert age_s is not None and 0 <= age_s < 60
    assert (found.value("ris_frames"), found.value("ris_shards")) == (frames, shards)
    assert frames > 5
    assert found.value("ris_erasures_under_way") == 1
    assert found.value("ris_messages_total", source="mqtt", outcome="malformed") == 3
    assert found.value("ris_messages_total", source="mqtt", outcome="accepted") == 0
    assert found.value("ris_watched_folders", state="trouble") == 1
    assert found.value("ris_watched_folders", state="ok") == 0
    assert found.value("ris_postgres_up") == 1


def test_stages_of_queries_and_deliveries_of_events_are_told(api: Api):
    sql(api.context, "update jobs set finished_at = finished_at - interval '1 hour'")
    assert scrape(api.desk).value("ris_webhook_deliveries", state="dead") == 0
    told = api.answered(api.key("search"))
    found = scrape(api.desk)
    for stage in ("describe", "search", "look"):
        for quantile in ("0.5", "0.95"):
            took_s = found.value("ris_query_stage_seconds", stage=stage, quantile=quantile)
            assert took_s == pytest.approx(told["stats"][f"{stage}_ms"] / 1000)
    whole_s = found.value("ris_query_stage_seconds", stage="all", quantile="0.5")
    waited_s = found.value("ris_query_stage_seconds", stage="queued", quantile="0.5")
    assert whole_s is not None and waited_s is not None and 0 < waited_s < whole_s
    assert found.value("ris_query_stage_seconds", stage="early", quantile="0.5") is None


def test_requests_are_counted_by_the_route_and_not_by_what_stands_in_it(api: Api):
    desk = replace(api.desk, metrics=type(api.desk.metrics)())
    key = api.key("view")
    with serving(desk) as client:
        for camera in (1, 2, 10**9):
            client.get(f"/v1/cameras/{camera}", headers=key)
        client.get("/v1/cameras", headers=key)
        client.get("/v1/cameras")
        client.get("/v1/" + uuid.uuid4().hex, headers=key)
        client.request("BREW", "/healthz")
    found = scrape(desk)

    def counted(route: str, status: int, method: str = "GET") -> float | None:
        return found.value("ris_api_requests_total", route=route, method=method, status=str(status))

    assert counted("/v1/cameras/{camera_id}", 200) == 2
    assert counted("/v1/cameras/{camera_id}", 404) == 1
    assert (counted("/v1/cameras", 200), counted("/v1/cameras", 401)) == (1, 1)
    assert counted("none", 404) == 1
    assert counted("/healthz", 405, "other") == 1
    total = sum(v for (name, _), v in found.values.items() if name == "ris_api_requests_total")
    timed = found.value(
        "ris_api_request_seconds_count", route="/v1/cameras/{camera_id}", method="GET"
    )
    assert (total, timed) == (7, 3)


def test_without_postgres_the_scrape_says_so(api: Api):
    gone = connect("postgresql://127.0.0.1:1/ris", application_name="away", connect_timeout_s=1)
    away = replace(api.desk, db=gone)
    found = scrape(away)
    gone.close()
    assert found.value("ris_postgres_up") == 0
    assert "ris_jobs" not in found.families
    assert "ris_api_requests" in found.families


def test_the_process_of_the_api_serves_them(api: Api, tmp_path: Path):
    ready, log = tmp_path / "ready", tmp_path / "log"
    environment = os.environ | {
        "RIS_DATABASE_URL": str(api.context.settings.database_url),
        "RIS_DATA_DIR": str(tmp_path / "var"),
        "RIS_API_PORT": "0",
        "RIS_METRICS_PORT": "0",
        "WORKER_READY_FILE": str(ready),
    }
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "api"], env=environment, cwd=REPO, stdout=out, stderr=out
        )
    try:
        until(ready.exists, what="the API")
        port = re.search(r'"port": ?(\d+)', log.read_text())
        assert port is not None, log.read_text()
        with urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/metrics", timeout=30) as reply:
            assert b"\nris_postgres_up 1.0\n" in reply.read()
    finally:
        process.terminate()
    assert process.wait(30) == 0, log.read_text()


def test_it_is_off_until_a_port_is_set(api: Api, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RIS_METRICS_PORT", raising=False)
    assert serve_metrics(Settings(), api.desk.metrics, api.desk.db) is None


def test_a_port_that_is_taken_is_refused(api: Api):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        changed = {"metrics_port": taken.getsockname()[1]}
        configured = api.desk.settings.model_copy(update=changed)
        with pytest.raises(SetupFailed, match="RIS_METRICS_PORT"):
            serve_metrics(configured, api.desk.metrics, api.desk.db)


def series() -> set[str]:
    """Names that may stand in an expression."""
    ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return {name + end for name, (kind, _) in documented().items() for end in ends.get(kind, ("",))}


def expressions() -> list[tuple[str, str]]:
    board: Any = json.loads((DOCS / "grafana.json").read_text())
    rules: Any = yaml.safe_load((DOCS / "alerts.yml").read_text())
    shown = [
        (panel["title"], target["expr"]) for panel in board["panels"] for target in panel["targets"]
    ]
    alerts = [(rule["alert"], rule["expr"]) for group in rules["groups"] for rule in group["rules"]]
    assert len(shown) > 10 and len(alerts) > 5
    return shown + alerts


@pytest.mark.parametrize(("where", "expression"), expressions())
def test_panels_and_alerts_ask_for_metrics_that_are_there(where: str, expression: str):
    named = set(re.findall(r"\bris_\w+", expression))
    assert named or expression.startswith("up{"), where
    assert named <= series()
    for selector in re.findall(r"(ris_\w+)\{([^}]*)\}", expression):
        name = re.sub(r"_(total|bucket|sum|count)$", "", selector[0])
        used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector[1]))
        assert used <= documented()[name][1], (where, used)


def test_panels_do_not_overlap_and_alerts_say_what_to_do():
    board = json.loads((DOCS / "grafana.json").read_text())
    places = [panel["gridPos"] for panel in board["panels"]]
    cells = [
        (x, y)
        for at in places
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    rules = yaml.safe_load((DOCS / "alerts.yml").read_text())["groups"][0]["rules"]
    for rule in rules:
        assert rule["annotations"].keys() == {"summary", "action"}, rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning")
