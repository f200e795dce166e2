"""``python -m api``: serve until SIGTERM or SIGINT."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

import uvicorn

from api.app import make_app
from api.desk import BackgroundBell, open_desk
from api.metrics import serve_metrics
from worker import tracing
from worker.bell import ring
from worker.config import Settings, settings
from worker.embedded.service_folder import write_private
from worker.embedded.state import api_path, refuse_unfinished_restore
from worker.errors import RisError, SetupFailed
from worker.logs import configure_logging

_READY_FILE_VARIABLE = "WORKER_READY_FILE"
_BACKLOG = 512
_DRAIN_S = 8


class _Server(uvicorn.Server):
    """Says that it is ready, as workers do."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then touch the file that the supervisor waits for."""
        await super().startup(sockets)
        path = os.environ.get(_READY_FILE_VARIABLE)
        if path and self.started:
            Path(path).touch()


def main() -> int:
    """Bind, tell where, serve; exit status 1 with one line when that cannot be."""
    os.umask(0o077)  # uploads show footage
    configured = settings()
    configure_logging(configured.log_level)
    try:
        refuse_unfinished_restore(configured.data_dir)
        desk = open_desk(configured, BackgroundBell(ring))
        app = make_app(desk)
        listening = bound(configured)
        metrics = serve_metrics(configured, desk.metrics, desk.db)
        tracing.start("api", configured)
    except RisError as error:
        sys.stderr.write(f"{error.code}: {error}\n")
        return 1
    _tell_where(configured, listening)
    serving = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_S,
        timeout_keep_alive=30,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn drains, then raises the signal again for who was there before it: that is the end.
        signal.signal(number, lambda *_: None)
    _Server(serving).run(sockets=[listening])
    if metrics is not None:
        metrics.shutdown()
    tracing.stop()
    return 0


def bound(configured: Settings) -> socket.socket:
    """A socket that listens where the settings say. Raises :class:`SetupFailed`."""
    family = socket.AF_INET6 if ":" in configured.api_host else socket.AF_INET
    # Named TCP, or asyncio leaves Nagle's delay on: 40 ms an answer where the client waits, too.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((configured.api_host, configured.api_port))
        listening.listen(_BACKLOG)
    except OSError as error:
        raise SetupFailed(
            f"cannot listen on {configured.api_host}:{configured.api_port}"
            f" ({error.strerror or error}): set RIS_API_PORT to another port, 0 for any free one"
        ) from error
    return listening


def _tell_where(configured: Settings, listening: socket.socket) -> None:
    host, port = listening.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    path = api_path(configured.data_dir)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(path, json.dumps({"url": f"http://{host}:{port}", "pid": os.getpid()}))


if __name__ == "__main__":
    sys.exit(main())
