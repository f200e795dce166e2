"""Requests of a program to RIS: ask, wait, read, send footage."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from ris_client.forms import FileForm, picture_form
from ris_client.values import (
    Alert,
    Answer,
    Box,
    Camera,
    Changes,
    Feed,
    Frame,
    Gap,
    Hit,
    Query,
    RisApiError,
    Segment,
    StandingQuery,
    Webhook,
)

_AGAIN = (429, 503)
_PAGE = 200
_FIRST_POLL_S, _SLOWEST_POLL_S = 0.05, 1.0
_SILENCE_S = 30.0
"""A stream of events says something every 10 seconds."""


@dataclass(frozen=True, slots=True)
class RisClient:
    """An API at ``url`` and a key of it, or an access token of the issuer that it believes, which
    is not renewed; connects anew for each request.

    A request that meets 429 or 503 is sent again, for ``patience_s`` at most; what makes something
    carries an Idempotency-Key, so that it is made once. Every method raises :class:`RisApiError`
    for a refusal and ``OSError`` where nobody answers.
    """

    url: str
    key: str
    timeout_s: float = 60.0
    patience_s: float = 30.0

    def cameras(self) -> list[Camera]:
        """Every camera that exists for the key."""
        return [Camera.of(told) for told in self._rows("/v1/cameras")]

    def camera(self, name: str) -> Camera:
        """The camera of a name. Raises ``LookupError``."""
        for camera in self.cameras():
            if camera.name == name:
                return camera
        raise LookupError(f"no camera is named {name!r}")

    def nearest_frame(self, camera_id: int, t_utc: datetime) -> Frame:
        """The frame of a camera whose time is nearest; ``t_utc`` is aware."""
        asked = urlencode({"camera_id": camera_id, "t_utc": t_utc.isoformat()})
        return Frame.of(self._json("GET", f"/v1/frames/nearest?{asked}"))

    def picture(self, frame_id: int) -> bytes:
        """The kept picture of a frame, JPEG."""
        return self._send("GET", f"/v1/frames/{frame_id}/picture")

    def overlay(self, hit: Hit | Alert) -> bytes:
        """The picture of a hit or an alert with the matched region drawn, JPEG."""
        return self._send("GET", hit.overlay)

    def search(
        self,
        *,
        frame_id: int | None = None,
        picture: bytes | None = None,
        box: Box | None = None,
        polygon: Sequence[tuple[float, float]] | None = None,
        **params: Any,
    ) -> Query:
        """Ask for what is inside a box or polygon of an indexed frame or of a picture.

        ``params``: as in docs/search.md, e.g. ``camera_ids=[1, 2], limit=20``; times as
        ``datetime`` or text.
        """
        asked: dict[str, Any] = {
            "roi": _roi(box, polygon),
            "params": {name: _plain(value) for name, value in params.items()},
        }
        if frame_id is not None:
            asked["frame_id"] = frame_id
        named = _once()
        if picture is None:
            return Query.of(self._json("POST", "/v1/queries", asked, named))
        body, kind = picture_form(picture, json.dumps(asked))
        return Query.of(json.loads(self._send("POST", "/v1/queries", body, named | kind)))

    def query(self, query_id: str) -> Query:
        """A query as it stands."""
        return Query.of(self._json("GET", f"/v1/queries/{query_id}"))

    def cancel(self, query_id: str) -> Query:
        """Take a query back."""
        return Query.of(self._json("DELETE", f"/v1/queries/{query_id}"))

    def hits(self, query_id: str) -> list[Hit]:
        """All hits of a query, by rank."""
        return [Hit.of(told) for told in self._rows(f"/v1/queries/{query_id}/hits")]

    def wait(self, query_id: str, timeout_s: float = 120.0) -> Query:
        """The query once it is done. Raises :class:`RisApiError` with its code when it failed, and
        ``TimeoutError`` after ``timeout_s`` and ten seconds at most: it is still worked on."""
        return Query.of(self._done(f"/v1/queries/{query_id}", timeout_s))

    def changes(
        self,
        camera_id: int,
        *,
        box: Box | None = None,
        polygon: Sequence[tuple[float, float]] | None = None,
        timeout_s: float = 120.0,
        **asked: Any,
    ) -> Changes:
        """When a box or polygon of a camera's picture changed, and when it was again as before.

        ``asked``: ``t_from_utc``, ``t_to_utc`` (``datetime`` or text), ``hold``. Raises as
        :meth:`wait`.
        """
        body = {"camera_id": camera_id, "roi": _roi(box, polygon)}
        body |= {name: _plain(value) for name, value in asked.items()}
        told = self._json("POST", "/v1/changes", body, _once())
        return Changes.of(self._done(f"/v1/changes/{told['change_query_id']}", timeout_s))

    def _done(self, path: str, timeout_s: float) -> Mapping[str, Any]:
        """What is told at an address once it is done."""
        until_s, poll_s = time.monotonic() + timeout_s, _FIRST_POLL_S
        while True:
            self._follow(path, until_s)
            told: Mapping[str, Any] = self._json("GET", path)
            if told["state"] == "done":
                return told
            if told["state"] == "failed":
                raise RisApiError(told["error"]["code"], told["error"]["detail"], 200)
            if time.monotonic() > until_s:
                raise TimeoutError(f"{path} is {told['state']} after {timeout_s:g} s")
            time.sleep(poll_s)  # the stream ended early, or there is none to be had
            poll_s = min(_SLOWEST_POLL_S, poll_s * 1.3)

    def _follow(self, path: str, until_s: float) -> None:
        """Read the events of what is told at an address until it has ended, for as long as they
        come."""
        request = urllib.request.Request(  # noqa: S310 - the address is the caller's
            f"{self.url.rstrip('/')}{path}/events",
            headers={"Authorization": f"Bearer {self.key}"},
        )
        left_s = max(_FIRST_POLL_S, until_s - time.monotonic())
        try:
            with urllib.request.urlopen(  # noqa: S310
                request, timeout=min(left_s, _SILENCE_S)
            ) as reply:
                for line in reply:
                    told = json.loads(line[6:]) if line.startswith(b"data: ") else {}
                    if told.get("state") in ("done", "failed") or time.monotonic() > until_s:
                        return
        except (OSError, HTTPException, ValueError):
            return  # whoever waits asks at the address itself

    def webhooks(self) -> list[Webhook]:
        """Addresses that this key has told of events; of all keys for an admin's."""
        return [Webhook.of(told) for told in self._rows("/v1/webhooks")]

    def add_webhook(self, name: str, url: str, kinds: Sequence[str] = ()) -> tuple[Webhook, str]:
        """Have an address told of events of these kinds, or of all that the key may read. With it
        comes the secret that checks signatures, this once."""
        asked = {"name": name, "url": url, "kinds": list(kinds)}
        told = self._json("POST", "/v1/webhooks", asked, _once())
        return Webhook.of(told), str(told["secret"])

    def remove_webhook(self, webhook_id: int) -> None:
        """Have it told nothing more."""
        self._send("DELETE", f"/v1/webhooks/{webhook_id}")

    def watch_for(self, name: str, frame_id: int, box: Box, **params: Any) -> StandingQuery:
        """Compare every new frame with a box of an indexed frame (docs/search.md). ``params``: as
        for :meth:`search`."""
        plain = {key: _plain(value) for key, value in params.items()}
        asked = {"name": name, "frame_id": frame_id, "roi": {"box": box}, "params": plain}
        return StandingQuery.of(self._json("POST", "/v1/standing-queries", asked, _once()))

    def standing_queries(self) -> list[StandingQuery]:
        """What this key watches for, newest first."""
        return [StandingQuery.of(told) for told in self._rows("/v1/standing-queries")]

    def remove_standing_query(self, standing_query_id: int) -> None:
        """Watch for it no more, and forget its alerts."""
        self._send("DELETE", f"/v1/standing-queries/{standing_query_id}")

    def alerts(self) -> Iterator[Alert]:
        """Alerts of what this key watches for, newest first, read as they are asked for."""
        return map(Alert.of, self._rows("/v1/alerts"))

    def search_and_wait(self, *, wait_s: float = 120.0, **asked: Any) -> Answer:
        """:meth:`search`, :meth:`wait` and :meth:`hits` in one."""
        query = self.wait(self.search(**asked).query_id, wait_s)
        return Answer(query, tuple(self.hits(query.query_id)))

    def evidence(self, query_id: str, ranks: Sequence[int], timeout_s: float = 120.0) -> bytes:
        """Hits of a query as one signed ZIP file (docs/evidence.md); the key may ``export``.

        Raises :class:`RisApiError` with its code when it failed, and ``TimeoutError``.
        """
        path, named = f"/v1/queries/{query_id}/evidence", _once()
        told = self._json("POST", path, {"ranks": list(ranks)}, named)
        until_s, poll_s = time.monotonic() + timeout_s, _FIRST_POLL_S
        while told["bundle"] is None:
            if told["state"] == "failed":
                raise RisApiError(told["error"]["code"], told["error"]["detail"], 200)
            if time.monotonic() > until_s:
                name = told["evidence_id"]
                raise TimeoutError(f"evidence {name} is {told['state']} after {timeout_s:g} s")
            time.sleep(poll_s)
            poll_s = min(_SLOWEST_POLL_S, poll_s * 1.3)
            told = self._json("GET", f"{path}/{told['evidence_id']}")
        return self._send("GET", str(told["bundle"]))

    def submit_segment(
        self, path: str, camera_id: int, start_utc: datetime, every_s: float = 1.0
    ) -> Segment:
        """Have a recorded file ingested; ``path`` lies below the server's RIS_FOOTAGE_DIR."""
        asked = {
            "path": path,
            "camera_id": camera_id,
            "start_utc": start_utc.isoformat(),
            "every_s": every_s,
        }
        named = _once()
        return Segment.of(self._json("POST", "/v1/segments", asked, named))

    def fetch_segment(
        self, url: str, camera: str, start_utc: datetime, every_s: float = 1.0
    ) -> Segment:
        """Have a recording of a camera that is there fetched from an address and ingested."""
        asked = {
            "url": url,
            "camera": camera,
            "start_utc": start_utc.isoformat(),
            "every_s": every_s,
        }
        named = _once()
        return Segment.of(self._json("POST", "/v1/segments", asked, named))

    def send_segment(
        self,
        recording: Path,
        camera: str,
        start_utc: datetime,
        every_s: float = 1.0,
        timeout_s: float = 3600.0,
    ) -> Segment:
        """Send a recorded file of a camera that is there, to be ingested. It is read piece by
        piece, and once more where it is sent again."""
        said = {"camera": camera, "start_utc": start_utc.isoformat(), "every_s": every_s}
        form = FileForm(recording, json.dumps(said))
        named = _once() | form.headers
        return Segment.of(json.loads(self._send("POST", "/v1/segments", form, named, timeout_s)))

    def segment(self, segment_id: int) -> Segment:
        """A segment and how its ingest stands."""
        return Segment.of(self._json("GET", f"/v1/segments/{segment_id}"))

    def feeds(self) -> list[Feed]:
        """Feeds of the cameras that exist for the key, and how each is."""
        return [Feed.of(told) for told in self._rows("/v1/feeds")]

    def add_feed(
        self, camera: str, url: str, policy: str = "interval", every_s: float = 10.0
    ) -> Feed:
        """Have a camera read from now on; a new name is a new camera. The same again changes
        nothing."""
        asked = {"camera": camera, "url": url, "policy": policy, "every_s": every_s}
        return Feed.of(self._json("POST", "/v1/feeds", asked))

    def pause_feed(self, feed_id: int) -> Feed:
        """Stop reading a camera until it is resumed."""
        return Feed.of(self._json("POST", f"/v1/feeds/{feed_id}/pause"))

    def resume_feed(self, feed_id: int) -> Feed:
        """Read a camera again."""
        return Feed.of(self._json("POST", f"/v1/feeds/{feed_id}/resume"))

    def remove_feed(self, feed_id: int) -> None:
        """Read a camera no more and forget its address; its footage stays."""
        self._send("DELETE", f"/v1/feeds/{feed_id}")

    def gaps(self, camera_id: int) -> list[Gap]:
        """Of which times a live camera has no frames, newest first."""
        return [Gap.of(told) for told in self._rows(f"/v1/cameras/{camera_id}/gaps")]

    def mask(self, camera_id: int) -> list[dict[str, Any]]:
        """Areas of a camera's picture that are painted black, as boxes and polygons in JSON."""
        areas: list[dict[str, Any]] = self._json("GET", f"/v1/cameras/{camera_id}/mask")["areas"]
        return areas

    def set_mask(self, camera_id: int, areas: Sequence[Mapping[str, Any]]) -> None:
        """Paint these areas black from now on, in the place of all former ones; none: nothing."""
        self._json("PUT", f"/v1/cameras/{camera_id}/mask", {"areas": list(areas)})

    def _rows(self, path: str) -> Iterator[Mapping[str, Any]]:
        cursor: str | None = None
        while True:
            asked = {"limit": _PAGE} if cursor is None else {"limit": _PAGE, "cursor": cursor}
            page = self._json("GET", f"{path}?{urlencode(asked)}")
            yield from page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def _json(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        raw = None if body is None else json.dumps(body).encode()
        given = {"Content-Type": "application/json", **(headers or {})}
        return json.loads(self._send(method, path, raw, given))

    def _send(
        self,
        method: str,
        path: str,
        body: bytes | FileForm | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> bytes:
        given = {"Authorization": f"Bearer {self.key}", **(headers or {})}
        until_s = time.monotonic() + self.patience_s
        while True:
            request = urllib.request.Request(  # noqa: S310 - the address is the caller's
                self.url.rstrip("/") + path, _again(body), given, method=method
            )
            try:
                with urllib.request.urlopen(  # noqa: S310
                    request, timeout=timeout_s or self.timeout_s
                ) as reply:
                    content: bytes = reply.read()
                    return content
            except urllib.error.HTTPError as error:
                refused = _refusal(error)
                wait_s = _wait_s(error.headers.get("Retry-After", ""))
                if error.code not in _AGAIN or time.monotonic() + wait_s > until_s:
                    raise refused from None
                time.sleep(wait_s)


def _again(body: bytes | FileForm | None) -> Any:
    """A body that is sent from its beginning, also the second time."""
    return body.pieces() if isinstance(body, FileForm) else body


def _once() -> dict[str, str]:
    """A name for a request that is to be carried out once, however often it is sent."""
    return {"Idempotency-Key": uuid.uuid4().hex}


def _wait_s(retry_after: str) -> float:
    """Seconds to wait; one where the header is missing or, from a proxy in between, a date."""
    return float(retry_after) if retry_after.isdecimal() else 1.0


def _refusal(error: urllib.error.HTTPError) -> RisApiError:
    try:
        told = json.loads(error.read())
        return RisApiError(told["code"], told["detail"], error.code, told["request_id"])
    except (ValueError, KeyError, TypeError):  # a proxy in between has its own words
        return RisApiError("internal", f"HTTP {error.code} {error.reason}", error.code)


def _roi(box: Box | None, polygon: Sequence[tuple[float, float]] | None) -> dict[str, Any]:
    return {"polygon": [list(point) for point in polygon]} if polygon else {"box": box}


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
