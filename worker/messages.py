"""What travels through the broker: task names, queues, and nothing but ids.

The API imports only this module of the worker, so it needs neither torch nor FAISS nor PyAV.
"""

from __future__ import annotations

from typing import Final, Literal

JobKind = Literal["ingest", "query", "reindex", "erase", "compact", "seal", "feed"]
Queue = Literal["ingest", "query", "admin", "feed"]

INGEST_QUEUE: Final[Queue] = "ingest"
QUERY_QUEUE: Final[Queue] = "query"
ADMIN_QUEUE: Final[Queue] = "admin"
FEED_QUEUE: Final[Queue] = "feed"

RUN_JOB_TASK: Final = "ris.run_job"
SWEEP_TASK: Final = "ris.sweep"
RETAIN_TASK: Final = "ris.retain"
COMPACT_TASK: Final = "ris.compact"
SEAL_TASK: Final = "ris.seal"

QUEUE_OF_KIND: Final[dict[JobKind, Queue]] = {
    "ingest": INGEST_QUEUE,
    "query": QUERY_QUEUE,
    # Reindexing embeds, so it shares the embedding worker, slice by slice.
    "reindex": INGEST_QUEUE,
    # One worker writes shards, whatever for.
    "erase": INGEST_QUEUE,
    "compact": INGEST_QUEUE,
    "seal": INGEST_QUEUE,
    # Slices of feeds go on side by side, so they have a worker of threads to themselves.
    "feed": FEED_QUEUE,
}
