"""A request's trace goes on in the job that it made, and tells nothing of what was asked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.api.conftest import Api
from tests.otlp_collector import Collector, collecting
from tests.parts import run_jobs
from worker import tracing
from worker.config import Settings

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as made:
        tracing.start("test", Settings(otlp_endpoint=made.url))
        yield made
        tracing.stop()


def test_a_query_is_one_trace_with_the_callers(api: Api, collector: Collector) -> None:
    key = api.key("admin")
    asked = {
        "frame_id": api.frame("street"),
        "roi": {"box": [0.21327, 0.2, 0.8, 0.81931]},
        "params": {"tau": -1.0, "close_looks": 2},
    }
    told = api.client.post(
        "/v1/queries?secret=marker1",
        json=asked,
        headers={
            **key,
            "traceparent": f"00-{TRACE}-{SPAN}-01",
            "tracestate": "vendor=marker2",
            "baggage": "secret=marker3",
            "X-Request-ID": "vms-17",
        },
    )
    assert told.status_code == 202 and told.headers["X-Request-ID"] == "vms-17"
    assert "traceparent" not in told.headers
    query_id = told.json()["query_id"]
    run_jobs(api.context)
    assert api.client.get("/healthz?secret=marker4").status_code == 200
    tracing.stop()
    request = collector.one("POST /v1/queries")
    assert (request.trace, request.parent) == (TRACE, SPAN)
    assert request.attributes["ris.request_id"] == "vms-17"
    assert request.attributes["ris.query_id"] == query_id
    assert request.attributes["http.response.status_code"] == 202
    job = collector.one("job query", query_id=query_id, job_id=request.attributes["ris.job_id"])
    assert (job.trace, job.parent) == (TRACE, request.id)
    stages = {"query.describe", "query.search", "query.look_closer", "query.record"}
    assert collector.below(job) >= stages | {"search.stage1", "search.stage2"}
    assert {span.trace for span in collector.spans} == {TRACE}
    assert collector.one("search.stage1").attributes["ris.shards"] == 2
    assert collector.one("query.search").attributes["ris.frames"] > 0
    raw = b"".join(collector.raw)
    secret = key["Authorization"].removeprefix("Bearer ")
    for hidden in ("marker", secret, "0.21327", "0.81931", "street", "testserver"):
        assert hidden.encode() not in raw, hidden


def test_refusals_and_strange_requests_are_traced_without_their_text(
    api: Api, collector: Collector
) -> None:
    assert api.client.get("/v1/queries", headers={"traceparent": "00-no-0"}).status_code == 401
    assert api.client.request("MARKER", "/v1/marker", headers=api.key()).status_code in (404, 405)
    tracing.stop()
    refused, strange = collector.spans
    assert (refused.name, refused.parent, refused.failed) == ("GET /v1/queries", "", False)
    assert strange.name == "_OTHER none" and strange.attributes["http.route"] == "none"
    assert b"marker" not in b"".join(collector.raw).lower()
