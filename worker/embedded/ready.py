"""Loaded into a Celery worker by ``-I``: touches a file once the worker takes tasks.

The app has remote control off, so nobody can ask a worker; health checks look at the file that
``WORKER_READY_FILE`` names.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery.signals import worker_ready

from worker.embedded.children import READY_FILE_VARIABLE


def _say_ready(**_: Any) -> None:
    path = os.environ.get(READY_FILE_VARIABLE)
    if path:
        Path(path).touch()


worker_ready.connect(_say_ready, weak=False)
