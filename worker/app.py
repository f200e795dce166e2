"""The Celery application: a doorbell between processes that all read the same job record."""

from __future__ import annotations

import logging
import sys
from datetime import timedelta
from typing import Any

import structlog
from celery import Celery, bootsteps
from celery.signals import celeryd_after_setup, setup_logging, worker_shutdown
from celery.worker import state
from kombu.entity import Exchange, Queue
from redis.exceptions import ConnectionError as RedisConnectionError

from worker import tracing
from worker.config import Settings, settings
from worker.errors import SetupFailed
from worker.logs import configure_logging
from worker.messages import (
    ADMIN_QUEUE,
    CANARY_TASK,
    COMPACT_TASK,
    DELIVER_TASK,
    FEED_QUEUE,
    INGEST_QUEUE,
    INGEST_QUEUES,
    OFFLOAD_TASK,
    QUERY_QUEUE,
    RETAIN_TASK,
    SEAL_TASK,
    SWEEP_TASK,
    WATCH_QUEUE,
    WATCH_TASK,
    scan_queue,
)
from worker.services import broker_url

log = structlog.get_logger()

# Tasks yield after job_slice_s; an unacknowledged message comes back after twice the longest.
VISIBILITY_TIMEOUT_S = 1200


ACK_WATCH_S = 3.0
CANARY_RING_S = 300.0
RESULTS_KEPT_S = 30.0


class AckWatch(bootsteps.StartStopStep):  # type: ignore[misc]
    """Connects anew when a message stays unacknowledged although nothing runs.

    While Redis is away an acknowledgement is lost with one log line, and the message goes on
    filling the prefetch window: a worker of one slot would wait for ever, seemingly healthy.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        """Look every ``ACK_WATCH_S``; the second look in a row that finds it so raises."""
        found = 0

        def look() -> None:
            nonlocal found
            qos = consumer.task_consumer.channel.qos
            held = len(qos._delivered) - len(qos._dirty)
            found = found + 1 if held and not state.reserved_requests else 0
            if found == 2:
                log.warning("acknowledgement_lost", messages=held)
                raise RedisConnectionError("an acknowledgement was lost: connecting anew")

        self.entry = consumer.timer.call_repeatedly(ACK_WATCH_S, look)

    def stop(self, consumer: Any) -> None:
        """Look no more; a new connection begins with a new watch."""
        self.entry.cancel()


def _results(url: str, configured: Settings) -> dict[str, Any]:
    """Where scan workers put their answers: read at once and forgotten, or gone with their time."""
    return {
        "result_backend": url,
        "result_serializer": "json",
        "result_accept_content": ["json"],
        "result_expires": timedelta(seconds=RESULTS_KEPT_S + configured.scan_wait_s),
        "redis_socket_connect_timeout": 3,
        "redis_socket_timeout": 5,
        "result_backend_transport_options": {"retry_policy": {"max_retries": 1}},
    }


def make_app() -> Celery:
    """A configured Celery application. Connects to nothing."""
    configured = settings()
    # Beat rings by name only: the tasks' code would cost it seconds and a hundred megabytes.
    code = [] if "beat" in sys.argv else ["worker.tasks"]
    app = Celery("ris", broker=broker_url(configured), include=code)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_create_missing_queues=False,
        task_queues=[
            Queue(name, Exchange(name), routing_key=name)  # type: ignore[no-untyped-call]
            for name in (
                *INGEST_QUEUES,
                QUERY_QUEUE,
                ADMIN_QUEUE,
                FEED_QUEUE,
                WATCH_QUEUE,
                *map(scan_queue, range(configured.scan_groups)),
            )
        ],
        task_default_queue=ADMIN_QUEUE,
        **(_results(broker_url(configured), configured) if configured.scan_groups else {}),
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_TIMEOUT_S,
            "socket_connect_timeout": 3,
            "socket_timeout": 5,  # a frozen broker must not hold up whoever rings
            "max_retries": 0,  # of ringing: the sweeper rings again
            "socket_keepalive": True,
        },
        beat_schedule={
            task: {
                "task": task,
                "schedule": timedelta(seconds=every_s),
                "options": {"queue": queue, "expires": max(1.0, every_s)},
            }
            for task, every_s, queue in (
                (SWEEP_TASK, configured.sweep_every_s, ADMIN_QUEUE),
                (RETAIN_TASK, configured.retain_every_s, ADMIN_QUEUE),
                (COMPACT_TASK, configured.compact_every_s, ADMIN_QUEUE),
                (SEAL_TASK, configured.seal_every_s, ADMIN_QUEUE),
                (OFFLOAD_TASK, configured.s3_every_s, ADMIN_QUEUE),
                (DELIVER_TASK, configured.deliver_every_s, WATCH_QUEUE),
                (WATCH_TASK, configured.standing_every_s, WATCH_QUEUE),
                # More often than it is due: it gives way to queries, and tries again.
                (CANARY_TASK, min(CANARY_RING_S, configured.canary_every_s), ADMIN_QUEUE),
            )
            if every_s > 0
        },
        timezone="UTC",
    )
    app.steps["consumer"].add(AckWatch)
    return app


@celeryd_after_setup.connect  # type: ignore[untyped-decorator]
def _archives_last(instance: Any = None, **_: Any) -> None:
    """An ingest worker looks into its queues in their order, not in turn."""
    if INGEST_QUEUE in instance.app.amqp.queues.consume_from:
        instance.app.conf.broker_transport_options["queue_order_strategy"] = "priority"


@celeryd_after_setup.connect  # type: ignore[untyped-decorator]
def _start_tracing(sender: str = "worker", **_: Any) -> None:
    """``sender`` is called query@host. No pool of ours forks: a thread of this process sends."""
    try:
        tracing.start(sender.partition("@")[0], settings())
    except SetupFailed as error:  # the signal keeps other errors to itself
        raise SystemExit(f"{error.code}: {error}") from error


@worker_shutdown.connect  # type: ignore[untyped-decorator]
def _stop_tracing(**_: Any) -> None:
    tracing.stop()


@setup_logging.connect  # type: ignore[untyped-decorator]
def _configure_logging(**_: Any) -> None:
    configure_logging(settings().log_level)
    if settings().log_level == "INFO":  # beat tells of every ring, and some are rung each second
        logging.getLogger("celery.beat").setLevel(logging.WARNING)


app = make_app()
