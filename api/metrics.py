"""Metrics for Prometheus, at an address of their own: what this process answers, and what the
record says when it is asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Final, get_args
from wsgiref.simple_server import WSGIServer

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from models.repositories.measures import Measures, measure
from models.session import Database, DatabaseUnavailable
from worker.config import Settings
from worker.errors import SetupFailed
from worker.messages import JobKind

log = structlog.get_logger()

_JOB_STATES: Final = ("queued", "running", "done", "failed")
_FEED_STATES: Final = ("waiting", "connecting", "live", "idle", "paused", "ended")
_DELIVERY_STATES: Final = ("pending", "delivered", "dead")
_OUTCOMES: Final = ("accepted", "malformed", "refused")
METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

disable_created_metrics()  # type: ignore[no-untyped-call] # a series more for each, for nothing


class RequestMetrics:
    """How many requests this process answered, and how long each took."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "ris_api_requests",
            "Requests answered, by route and status.",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "ris_api_request_seconds",
            "Seconds from a request's head to the end of its answer.",
            ["route", "method"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )

    def note(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request. ``route``: its template, so that ids make no series."""
        method = method if method in METHODS else "other"
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route, method).observe(seconds)


class RecordMetrics(Collector):
    """What Postgres says, asked at each scrape; one at a time, so that scrapes that pile up do not
    take the connections of requests."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """The families; without Postgres only that it is away."""
        with self._lock:
            try:
                with self._db.snapshot() as session:
                    found = measure(session)
            except DatabaseUnavailable as error:
                log.warning("metrics_without_postgres", detail=str(error))
                found = None
        up = GaugeMetricFamily("ris_postgres_up", "1 when Postgres answered this scrape.")
        up.add_metric([], 0 if found is None else 1)
        yield up
        if found is not None:
            yield from _families(found)


def _families(found: Measures) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("ris_jobs", "Jobs of the record.", labels=["kind", "state"])
    failed = GaugeMetricFamily(
        "ris_jobs_failed_lately", "Jobs that failed in the last 15 minutes.", labels=["kind"]
    )
    waiting = GaugeMetricFamily(
        "ris_job_oldest_queued_seconds",
        "How long the queued job that is due longest has waited; 0: none is queued.",
        labels=["kind"],
    )
    for kind in get_args(JobKind):
        failed.add_metric([kind], found.failed_lately.get(kind, 0))
        waiting.add_metric([kind], found.waiting_s.get(kind, 0.0))
        for state in _JOB_STATES:
            jobs.add_metric([kind, state], found.jobs.get((kind, state), 0))
    yield jobs
    yield failed
    yield waiting
    retrying = GaugeMetricFamily(
        "ris_jobs_retrying", "Jobs that wait for another try.", labels=["kind", "code"]
    )
    for of, count in sorted(found.retrying.items()):
        retrying.add_metric(of, count)
    yield retrying
    yield from _of_queries_and_events(found)
    yield from _of_feeds(found)
    messages = CounterMetricFamily(
        "ris_messages", "Messages that tell of recordings.", labels=["source", "outcome"]
    )
    for outcome in _OUTCOMES:
        messages.add_metric(["mqtt", outcome], found.messages.get(("mqtt", outcome), 0))
    yield messages
    watched = GaugeMetricFamily("ris_watched_folders", "Watched folders.", labels=["state"])
    watched.add_metric(["ok"], found.watched_folders - found.watch_troubles)
    watched.add_metric(["trouble"], found.watch_troubles)
    yield watched
    recall = GaugeMetricFamily(
        "ris_canary_recall", "Share of stored frames that found themselves in the last check."
    )
    age = GaugeMetricFamily("ris_canary_age_seconds", "How long ago the last check was.")
    if (last := found.canaries) is not None:
        recall.add_metric([], last.found / last.asked)
        age.add_metric([], last.age_s)
    yield recall
    yield age
    for name, says, value in (
        ("ris_frames", "Frames of the live generation.", found.frames),
        ("ris_shards", "Shards of the live generation.", found.shards),
        ("ris_erasures_under_way", "Erasures that are not finished.", found.erasures),
    ):
        yield GaugeMetricFamily(name, says, value=value)


def _of_feeds(found: Measures) -> Iterator[Metric]:
    feeds = GaugeMetricFamily("ris_feeds", "Feeds, by how they are.", labels=["state"])
    for state in _FEED_STATES:
        feeds.add_metric([state], found.feeds.get(state, 0))
    yield feeds
    gaps = GaugeMetricFamily("ris_feed_open_gaps", "Cameras without frames.", labels=["reason"])
    for reason, count in sorted(found.open_gaps.items()):
        gaps.add_metric([reason], count)
    yield gaps
    begun = CounterMetricFamily("ris_feed_gaps", "Gaps that began.", labels=["reason"])
    for reason, count in sorted(found.gaps.items()):
        begun.add_metric([reason], count)
    yield begun
    dropped = CounterMetricFamily(
        "ris_feed_dropped_frames", "Frames received and not recorded.", labels=["reason"]
    )
    for reason, count in sorted(found.dropped_frames.items()):
        dropped.add_metric([reason], count)
    yield dropped


def _of_queries_and_events(found: Measures) -> Iterator[Metric]:
    stages = GaugeMetricFamily(
        "ris_query_stage_seconds",
        "What the queries answered in the last 15 minutes took.",
        labels=["stage", "quantile"],
    )
    for stage, took_s in sorted(found.query_stage_s.items()):
        for quantile, value in zip(("0.5", "0.95"), took_s, strict=True):
            stages.add_metric([stage, quantile], value)
    yield stages
    deliveries = GaugeMetricFamily(
        "ris_webhook_deliveries", "Events for webhooks, kept a while.", labels=["state"]
    )
    for state in _DELIVERY_STATES:
        deliveries.add_metric([state], found.deliveries.get(state, 0))
    yield deliveries


def serve_metrics(
    configured: Settings, requests: RequestMetrics, db: Database
) -> WSGIServer | None:
    """Serve ``/metrics`` in a thread of its own; None where no port is set.

    Raises :class:`SetupFailed`.
    """
    host, port = configured.metrics_host, configured.metrics_port
    if port is None:
        return None
    registry = CollectorRegistry()
    registry.register(RecordMetrics(db))
    registry.register(requests.registry)
    try:
        server, _ = start_http_server(port, host, registry)
    except OSError as error:
        raise SetupFailed(
            f"cannot listen on {host}:{port} ({error.strerror or error}): set RIS_METRICS_PORT to"
            " another port, or leave it out for no metrics"
        ) from error
    log.info("metrics_served", host=host, port=server.server_port)
    return server
