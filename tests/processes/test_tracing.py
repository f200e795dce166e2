"""Traces across real processes: one for a request and its job; nobody waits for a collector."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.otlp_collector import Collector, collecting
from tests.processes.harness import Ris
from tests.processes.test_api import call
from worker.embedded.state import api_path

pytestmark = pytest.mark.slow

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_one_trace_from_the_request_to_the_record(
    tmp_path: Path, quick_settings: dict[str, str], footage: dict[str, Path]
) -> None:
    with collecting() as collector:
        ris = Ris(
            tmp_path / "var",
            {
                **quick_settings,
                "RIS_FEED_SLOTS": "0",
                "RIS_OTLP_ENDPOINT": collector.url,
                "OTEL_BSP_SCHEDULE_DELAY": "100",  # of the standard: milliseconds
            },
            tmp_path,
        )
        key = str(ris.json("up")["admin_key"])
        try:
            _ask_and_look(ris, collector, key, footage["bikes"])
            collector.hanging.set()
            assert _answered(ris, key)["state"] == "done"  # nobody waits for it
            began_s = time.monotonic()
        finally:
            ris.run("down")
        assert time.monotonic() - began_s < 120
    supervisor = (ris.data_dir / "logs" / "supervisor.log").read_text()
    assert "after 10 s of grace" not in supervisor, ris.logs()
    assert "shared memory" not in supervisor  # no thread was there before the fork


def _answered(ris: Ris, key: str) -> dict[str, object]:
    url = str(json.loads(api_path(ris.data_dir).read_text())["url"])
    frame = ris.rows("select min(id) from frames")[0][0]
    body = {"frame_id": frame, "roi": {"box": [0.3, 0.3, 0.7, 0.9]}}
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
    status, told = call(url, "/v1/queries", key, body, headers=headers)
    assert status == 202, told
    where = f"/v1/queries/{told['query_id']}"
    ris.eventually(lambda: call(url, where, key)[1]["state"] == "done", "the query is answered")
    found: dict[str, object] = call(url, where, key)[1]
    return found


def _ask_and_look(ris: Ris, collector: Collector, key: str, clip: Path) -> None:
    ris.run("ingest", str(clip), "--camera", "street", "--every", "0.5")
    query_id = _answered(ris, key)["query_id"]
    ris.eventually(
        lambda: collector.named("job query") and collector.named("job ingest"), "spans come"
    )
    request, job = collector.one("POST /v1/queries"), collector.one("job query")
    assert (request.trace, request.parent, request.service) == (TRACE, SPAN, "ris-api")
    assert (job.trace, job.parent, job.service) == (TRACE, request.id, "ris-query")
    assert job.attributes["ris.query_id"] == query_id
    assert {"query.describe", "query.search", "query.record"} <= collector.below(job)
    ingest = collector.named("job ingest")[-1]
    assert ingest.service == "ris-ingest" and "index.append" in collector.below(ingest)
    for name, span in (("api", request), ("worker-query", job)):
        lines = (ris.data_dir / "logs" / f"{name}.log").read_text().splitlines()
        logged = [json.loads(line) for line in lines if span.id in line]
        assert {line["trace_id"] for line in logged} == {TRACE}, name
    raw = b"".join(collector.raw)
    for hidden in (key, str(ris.state.database_url), str(clip), "street"):
        assert hidden.encode() not in raw
