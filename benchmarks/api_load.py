"""A user of the API for locust: asks, follows the events, reads the hits. See benchmarks.api.

Not a program of its own: ``benchmarks.api`` starts locust with it.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import time
import uuid
from pathlib import Path
from typing import Any

_locust: Any = importlib.import_module("locust")
_GIVEN: dict[str, Any] = json.loads(os.environ["RIS_LOAD"])
_HEADERS = {"Authorization": f"Bearer {_GIVEN['key']}"}
_NOTES = Path(_GIVEN["notes"])


class Investigator(_locust.HttpUser):  # type: ignore[misc]
    """Asks again as soon as the last answer is read."""

    wait_time = _locust.constant(0)

    @_locust.task  # type: ignore[untyped-decorator]
    def search(self) -> None:
        """One query, from the request to its hits."""
        frame_id, box = random.choice(_GIVEN["frames"]), _GIVEN["box"]
        asked = {"frame_id": frame_id, "roi": {"box": box}, "params": _GIVEN["params"]}
        begun_s = time.perf_counter()
        headers = {**_HEADERS, "Idempotency-Key": uuid.uuid4().hex}
        with self.client.post(
            "/v1/queries", json=asked, headers=headers, name="ask", catch_response=True
        ) as reply:
            if reply.status_code != 202:
                reply.failure(reply.text)
                return
            where = reply.headers["Location"]
        first_s = self._follow(where) - begun_s
        hits = self.client.get(f"{where}/hits?limit=50", headers=_HEADERS, name="hits").json()
        answered_s = time.perf_counter() - begun_s
        told = self.client.get(where, headers=_HEADERS, name="query").json()
        stats = told["stats"]
        note = {
            "answered_ms": 1000 * answered_s,
            "first_ms": 1000 * first_s,
            "search_ms": sum(stats.get(f"{step}_ms", 0) for step in _STEPS),
            "hits": len(hits["items"]),
            "begun_s": time.time() - answered_s,
        }
        with _NOTES.open("a") as notes:
            notes.write(json.dumps(note) + "\n")

    def _follow(self, where: str) -> float:
        """Read events until the query is done; when the first hits were told of."""
        first_s: float | None = None
        with self.client.get(
            f"{where}/events", headers=_HEADERS, name="events", stream=True, catch_response=True
        ) as reply:
            for line in reply.iter_lines(decode_unicode=True):
                if not line.startswith("data: "):
                    continue
                event = json.loads(line[6:])
                if event["answer"] != "none" and first_s is None:
                    first_s = time.perf_counter()
                if event["state"] in ("done", "failed"):
                    break
            reply.success()
        return first_s or time.perf_counter()


_STEPS = ("describe", "early", "search", "look")
