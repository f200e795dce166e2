"""Recordings that are sent: the form goes to the disk as it comes, in memory is only a piece of it.

The event loop parses, threads of their own write: however slow a sender is, it holds neither a
thread nor a connection to Postgres.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from api.bodies import FORM_TYPE, JSON_TYPE, parsed
from api.desk import ApiDesk
from api.given import RecordingGiven, SegmentGiven
from worker.errors import (
    BodyTooLarge,
    BodyTooSlow,
    InputInvalid,
    MediaUnsupported,
    RisError,
)
from worker.video.recording_store import IncomingRecording

_PIECE_BYTES = 1 << 20
_READ_ON_S, _READ_ON_BYTES = 5.0, 64 << 20
_MOST_TEXT_BYTES = 256 * 1024
_WANTED = "the form has a text `segment`, then a file `recording`, and nothing else"

SEGMENT_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        JSON_TYPE: {"schema": {"$ref": f"#/components/schemas/{SegmentGiven.__name__}"}},
        FORM_TYPE: {
            "schema": {
                "type": "object",
                "properties": {
                    "segment": {
                        "type": "string",
                        "contentMediaType": JSON_TYPE,
                        "contentSchema": {
                            "$ref": f"#/components/schemas/{RecordingGiven.__name__}"
                        },
                        "description": "What it is a recording of, as JSON text. Comes first.",
                    },
                    "recording": {
                        "type": "string",
                        "format": "binary",
                        "description": "The video file, of at most RIS_API_MAX_RECORDING_BYTES.",
                    },
                },
                "required": ["segment", "recording"],
                "additionalProperties": False,
            }
        },
    },
}
"""What OpenAPI says of the body."""


@dataclass(frozen=True, slots=True)
class Received:
    """A whole recording on disk, not kept yet: whoever has it keeps or discards it. ``name``: what
    its sender calls it."""

    given: RecordingGiven
    incoming: IncomingRecording
    sha256: str
    name: str


Checked = Callable[[RecordingGiven], Awaitable[None]]
"""What may refuse a recording before it is read."""


async def receive_recording(request: Request, desk: ApiDesk, check: Checked) -> Received:
    """Read a form. Raises :class:`InputInvalid`, :class:`MediaUnsupported`, what ``check`` raises,
    :class:`StorageFull` and :class:`StorageFailed`; then nothing stays on disk."""
    form = _Form(_boundary(request))
    announced = request.headers.get("content-length", "")
    byte_count = int(announced) if announced.isdecimal() else 0
    begin = partial(desk.recordings.begin, desk.settings.min_free_bytes, byte_count)
    stream = request.stream()
    given: RecordingGiven | None = None
    incoming: IncomingRecording | None = None
    try:
        async for chunk in stream:
            form.feed(chunk)
            if given is None and form.text_ended:
                given = await run_in_threadpool(parsed, RecordingGiven, bytes(form.text))
                await check(given)
                incoming = await desk.receiving.run(begin)
            if incoming is not None and len(form.piece) >= _PIECE_BYTES:
                await _write(desk, incoming, form)
        if given is None or incoming is None or not form.ended:
            raise InputInvalid(f"the form ends too early: {_WANTED}")
        await _write(desk, incoming, form)
        sha256 = await desk.receiving.run(incoming.finish)
        return Received(given, incoming, sha256, form.name)
    except BaseException as error:  # a client that goes away, and the end of the server, included
        if incoming is not None:
            incoming.discard()
        if isinstance(error, RisError) and not isinstance(error, BodyTooLarge | BodyTooSlow):
            await _read_on(stream)
        raise


async def _read_on(stream: AsyncIterator[bytes]) -> None:
    """Read what a refused sender still sends, for a while: to one that is cut off in the middle
    the answer may never be shown."""
    read_bytes = 0
    with suppress(TimeoutError, RisError):
        async with asyncio.timeout(_READ_ON_S):
            async for chunk in stream:
                read_bytes += len(chunk)
                if read_bytes > _READ_ON_BYTES:
                    return


async def _write(desk: ApiDesk, incoming: IncomingRecording, form: _Form) -> None:
    piece, form.piece = form.piece, bytearray()
    await desk.receiving.run(lambda: incoming.write(piece))


def _boundary(request: Request) -> bytes:
    kind, fields = parse_options_header(request.headers.get("content-type", ""))
    boundary = fields.get(b"boundary")
    if kind != FORM_TYPE.encode() or not boundary:
        raise MediaUnsupported(f"Content-Type without a boundary: send {FORM_TYPE}")
    return boundary


@dataclass(slots=True)
class _Form:
    """A form of one text and one file, parsed as it comes. ``text``: of the field `segment`;
    ``piece``: of the file, what has come and was not taken yet."""

    boundary: bytes
    text: bytearray = field(default_factory=bytearray)
    piece: bytearray = field(default_factory=bytearray)
    name: str = ""
    text_ended: bool = False
    ended: bool = False
    _parts: list[str] = field(default_factory=list)
    _header: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _disposition: bytes = b""
    _parser: Any = None

    def __post_init__(self) -> None:
        callbacks: Any = {
            "on_part_begin": self._begin,
            "on_header_field": lambda raw, start, end: self._header.extend(raw[start:end]),
            "on_header_value": lambda raw, start, end: self._value.extend(raw[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_part,
            "on_part_data": self._take,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(self.boundary, callbacks)
        except FormParserError as error:
            raise InputInvalid(f"the form cannot be read: {error}") from error

    def feed(self, chunk: bytes) -> None:
        """Parse what has come. Raises :class:`InputInvalid`."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise InputInvalid(f"the form cannot be read: {error}") from error

    def _begin(self) -> None:
        self._disposition = b""

    def _end_header(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _begin_part(self) -> None:
        _, fields = parse_options_header(self._disposition)
        self._parts.append(fields.get(b"name", b"").decode("utf-8", "replace"))
        if self._parts not in (["segment"], ["segment", "recording"]):
            raise InputInvalid(_WANTED)
        if self._parts[-1] == "recording":
            self.name = fields.get(b"filename", b"").decode("utf-8", "replace")

    def _take(self, raw: bytes, start: int, end: int) -> None:
        if self._parts[-1] == "recording":
            self.piece += raw[start:end]
            return
        self.text += raw[start:end]
        if len(self.text) > _MOST_TEXT_BYTES:
            raise InputInvalid(f"the text `segment` is larger than {_MOST_TEXT_BYTES} bytes")

    def _end_part(self) -> None:
        self.text_ended = True

    def _end(self) -> None:
        self.ended = self._parts == ["segment", "recording"]
