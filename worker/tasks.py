"""Celery tasks: thin doors to the job runner. A message carries an id and nothing else."""

from __future__ import annotations

import logging
import os
import uuid
from typing import Any

from celery.signals import worker_ready, worker_shutting_down

from worker import (
    canaries,
    changes,
    compacting,
    delivering,
    erasure,
    evidence,
    feeds,
    offloading,
    retention,
    scanning,
    sealing,
    standing_watch,
    watching,
)
from worker.app import app
from worker.errors import NotFound
from worker.feed_host import FeedHost
from worker.fetching import FetchHost, fail_fetch
from worker.generations import require_live_generation
from worker.ingest import after_failed_ingest, fail_ingest, run_ingest
from worker.jobs import Handler, run_rung
from worker.jobs import sweep as sweep_jobs
from worker.kernels import cosines, directions, region_growing, trail
from worker.messages import (
    CANARY_TASK,
    COMPACT_TASK,
    DELIVER_TASK,
    FEED_QUEUE,
    FETCH_TASK,
    OFFLOAD_TASK,
    QUERY_QUEUE,
    RETAIN_TASK,
    RUN_JOB_TASK,
    SCAN_QUEUE_PREFIX,
    SCAN_TASK,
    SEAL_TASK,
    SWEEP_TASK,
    WATCH_QUEUE,
    WATCH_TASK,
)
from worker.rebuilding import fail_reindex, run_reindex
from worker.runtime import process_context
from worker.search import fail_query, run_query
from worker.shard_scan import warm_up as warm_up_scan

FEEDS = FeedHost()
FETCHES = FetchHost()
WATCHER = standing_watch.Watcher()
_CHATTY = ("celery.worker.strategy", "celery.worker.request", "celery.app.trace")
"""Loggers that tell of every task; the watch worker is rung each second."""

HANDLERS = {
    "ingest": Handler(run_ingest, fail_ingest, after_fail=after_failed_ingest),
    "fetch": Handler(FETCHES.run, fail_fetch),
    "backfill": Handler(run_ingest, fail_ingest, after_fail=after_failed_ingest),
    "watch": Handler(watching.run_watch, watching.fail_watch),
    "query": Handler(run_query, fail_query),
    "reindex": Handler(run_reindex, fail_reindex),
    "erase": Handler(erasure.run_erase),
    "compact": Handler(compacting.run_compact),
    "seal": Handler(sealing.run_seal),
    "offload": Handler(offloading.run_offload),
    "feed": Handler(FEEDS.run, feeds.fail_feed, FEEDS.goes_on),
    "evidence": Handler(evidence.run_evidence),
    "changes": Handler(changes.run_changes, changes.fail_changes),
}


@app.task(name=RUN_JOB_TASK)  # type: ignore[untyped-decorator]
def run_job_task(job_id: str) -> None:
    """Run the job of that id, if it is still to be run, or the query whose turn it is."""
    run_rung(process_context(), uuid.UUID(job_id), HANDLERS)


@app.task(name=FETCH_TASK)  # type: ignore[untyped-decorator]
def fetch_task(job_id: str) -> None:
    """Have a recording fetched beside what this worker does. Taken is done: the record says what is
    not."""
    FETCHES.take(process_context(), uuid.UUID(job_id), HANDLERS)


@app.task(name=SWEEP_TASK)  # type: ignore[untyped-decorator]
def sweep_task() -> None:
    """Encrypt what is in clear, make the jobs that feeds and watched folders lack, ring again for
    forgotten ones."""
    feeds.seal_addresses(process_context())
    feeds.reconcile(process_context())
    watching.reconcile(process_context())
    sweep_jobs(process_context(), queue_length)


@app.task(name=RETAIN_TASK)  # type: ignore[untyped-decorator]
def retain_task() -> None:
    """Order the erasure of what has outlived its retention; old exports, events, queries of all
    kinds and jobs go at once."""
    context = process_context()
    retention.go_through(
        context,
        retention.submit_due,
        evidence.drop_old,
        changes.drop_old,
        standing_watch.clean_up,
        delivering.clean_up,
        retention.forget_outlived,
    )


@app.task(name=COMPACT_TASK)  # type: ignore[untyped-decorator]
def compact_task() -> None:
    """Order compact codes for what lacks them."""
    compacting.submit_due(process_context())


@app.task(name=SEAL_TASK)  # type: ignore[untyped-decorator]
def seal_task() -> None:
    """Order the sealing of shards that nothing is added to any more."""
    sealing.submit_due(process_context())


@app.task(name=SCAN_TASK, acks_late=False, ignore_result=False)  # type: ignore[untyped-decorator]
def scan_task(message: dict[str, Any]) -> dict[str, Any]:
    """Score a group of shards for a query that waits. Taken is done: nobody waits for it twice."""
    return scanning.answer_scan(process_context(), message)


@app.task(name=DELIVER_TASK)  # type: ignore[untyped-decorator]
def deliver_task() -> None:
    """Deliver events that are due."""
    delivering.deliver_due(process_context())


@app.task(name=WATCH_TASK)  # type: ignore[untyped-decorator]
def watch_task() -> None:
    """Compare new frames with standing queries."""
    WATCHER.watch(process_context())


@app.task(name=OFFLOAD_TASK)  # type: ignore[untyped-decorator]
def offload_task() -> None:
    """Order the moving of old sealed shards to object storage."""
    offloading.submit_due(process_context())


@app.task(name=CANARY_TASK)  # type: ignore[untyped-decorator]
def canary_task() -> None:
    """Have some stored frames find themselves, if that is due and nobody waits."""
    canaries.check_canaries(process_context())


def queue_length(queue: str) -> int:
    """Messages waiting in a broker queue."""
    with app.connection_for_read() as connection, connection.channel() as channel:
        return int(channel.client.llen(queue))


@worker_ready.connect  # type: ignore[untyped-decorator]
def _warm_up(sender: Any = None, **_: Any) -> None:
    """Load the live generation's backbone, and for queries the kernels, before the first job."""
    context = process_context()
    if all(name.startswith(SCAN_QUEUE_PREFIX) for name in app.amqp.queues.consume_from):
        warm_up_scan()  # a scan worker embeds nothing
        return
    if app.amqp.queues.consume_from.keys() == {WATCH_QUEUE}:
        os.nice(10)  # nobody waits for it: queries and cameras come first
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        return
    if app.amqp.queues.consume_from.keys() == {FEED_QUEUE} and not feeds.any_running(context):
        return  # a machine without cameras needs no third backbone in memory
    try:
        name = require_live_generation(context).backbone
    except NotFound:
        name = context.settings.backbone
    context.backbone(name)
    directions.warm_up()
    if QUERY_QUEUE in app.amqp.queues.consume_from:
        for kernels in (cosines, region_growing, trail):
            kernels.warm_up()
        warm_up_scan()


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _stop_feeds(**_: Any) -> None:
    """Slices end at once, so that whoever comes next goes on without waiting for a lease."""
    FEEDS.stop()
    FETCHES.stop()
