"""Bodies of requests: multipart forms, from memory or piece by piece from a file."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

_PIECE_BYTES = 1 << 20


class FileForm:
    """A multipart form with a segment's JSON and a file behind it, read while it is sent."""

    def __init__(self, path: Path, said: str) -> None:
        boundary = uuid.uuid4().hex
        self._path = path
        self._head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="segment"\r\n\r\n{said}\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="recording";'
            f' filename="{quote(path.name)}"\r\nContent-Type: application/octet-stream\r\n\r\n'
        ).encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        byte_count = len(self._head) + path.stat().st_size + len(self._tail)
        self.headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(byte_count),
        }

    def pieces(self) -> Iterator[bytes]:
        """All of it, from the start."""
        yield self._head
        with self._path.open("rb") as stream:
            while piece := stream.read(_PIECE_BYTES):
                yield piece
        yield self._tail


def picture_form(picture: bytes, query: str) -> tuple[bytes, dict[str, str]]:
    """A multipart form with the picture and the query's JSON, and its Content-Type."""
    boundary = uuid.uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="query"\r\n\r\n{query}\r\n'.encode(),
        f'--{boundary}\r\nContent-Disposition: form-data; name="picture"; filename="picture"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n".encode(),
        picture,
        f"\r\n--{boundary}--\r\n".encode(),
    ]
    return b"".join(parts), {"Content-Type": f"multipart/form-data; boundary={boundary}"}
