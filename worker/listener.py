"""``python -m worker.listener``: take messages of an MQTT broker until SIGTERM or SIGINT."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from worker.arrivals import listen
from worker.config import settings
from worker.errors import RisError, SetupFailed
from worker.logs import configure_logging
from worker.mqtt.subscription import require_package
from worker.runtime import process_context

_READY_FILE_VARIABLE = "WORKER_READY_FILE"


def main() -> int:
    """Exit status 1 with one line when it cannot listen at all."""
    os.umask(0o077)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    configure_logging(settings().log_level)
    try:
        if settings().mqtt_url is None:
            raise SetupFailed("RIS_MQTT_URL is not set: there is no broker to listen to")
        require_package()
        context = process_context()
        if path := os.environ.get(_READY_FILE_VARIABLE):
            Path(path).touch()  # the broker may be away: it is tried until it is there
        listen(context, stopping)
    except RisError as error:
        sys.stderr.write(f"{error.code}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
