"""What travels through the broker: task names, queues, and nothing but ids (scans excepted).

The API imports only this module of the worker, so it needs neither torch nor FAISS nor PyAV.
"""

from __future__ import annotations

from typing import Final, Literal

JobKind = Literal[
    "ingest", "backfill", "fetch", "watch", "query", "reindex", "erase", "compact", "seal",
    "offload", "feed", "evidence", "changes",
]  # fmt: skip
Queue = Literal["fetch", "ingest", "backfill", "query", "admin", "feed", "watch"]

FETCH_QUEUE: Final[Queue] = "fetch"
BACKFILL_QUEUE: Final[Queue] = "backfill"
INGEST_QUEUES: Final = (FETCH_QUEUE, "ingest", BACKFILL_QUEUE)
"""Of one worker, which looks in this order: what only begins to wait for a network or a disk, what
just happened, archives."""
INGEST_QUEUE: Final[Queue] = "ingest"
QUERY_QUEUE: Final[Queue] = "query"
ADMIN_QUEUE: Final[Queue] = "admin"
FEED_QUEUE: Final[Queue] = "feed"
WATCH_QUEUE: Final[Queue] = "watch"
"""What is done behind all else: new frames are watched, events delivered."""

RUN_JOB_TASK: Final = "ris.run_job"
FETCH_TASK: Final = "ris.fetch"
ASIDE_KINDS: Final[frozenset[JobKind]] = frozenset({"fetch", "watch"})
"""Jobs that :data:`FETCH_TASK` is rung for."""
SWEEP_TASK: Final = "ris.sweep"
RETAIN_TASK: Final = "ris.retain"
COMPACT_TASK: Final = "ris.compact"
SEAL_TASK: Final = "ris.seal"
OFFLOAD_TASK: Final = "ris.offload"
CANARY_TASK: Final = "ris.canaries"
SCAN_TASK: Final = "ris.scan"
DELIVER_TASK: Final = "ris.deliver"
WATCH_TASK: Final = "ris.watch"

SCAN_QUEUE_PREFIX: Final = "scan"
"""Scan workers' queues, one for each group of shards; their messages carry compact descriptors."""


def scan_queue(group: int) -> str:
    """The queue of a group of shards, from 0."""
    return f"{SCAN_QUEUE_PREFIX}.{group}"


QUEUE_OF_KIND: Final[dict[JobKind, Queue]] = {
    "ingest": INGEST_QUEUE,
    "query": QUERY_QUEUE,
    # Archives give way to what just happened.
    "backfill": BACKFILL_QUEUE,
    # Beside what is ingested: their threads wait for networks and disks, not for the processor.
    "fetch": FETCH_QUEUE,
    "watch": FETCH_QUEUE,
    # Somebody waits for it, and it reads what a query reads.
    "evidence": QUERY_QUEUE,
    # The same, and it needs no backbone.
    "changes": QUERY_QUEUE,
    # Reindexing embeds, so it shares the embedding worker, slice by slice.
    "reindex": INGEST_QUEUE,
    # One worker writes shards, whatever for.
    "erase": INGEST_QUEUE,
    "compact": INGEST_QUEUE,
    "seal": INGEST_QUEUE,
    "offload": INGEST_QUEUE,
    # Slices of feeds go on side by side, so they have a worker of threads to themselves.
    "feed": FEED_QUEUE,
}
