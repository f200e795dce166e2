"""What FFmpeg reads by HTTP in a process without a network: files that come through a gate."""

from __future__ import annotations

import io
import json
import os
import select
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from cryptography.hazmat.primitives import padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from worker.errors import FeedFailed

PLAYLIST_TYPES: Final = (
    "application/vnd.apple.mpegurl", "application/x-mpegurl", "audio/mpegurl", "audio/x-mpegurl",
)  # fmt: skip
MAX_ANSWER_BYTES: Final = 4 * 1024
_WRITE: Final = 2
_GUARDED: Final = ("not_allowed", "refused", "auth")
_BLOCK_BYTES: Final = 16


class Gate:
    """The decoder's end of :class:`worker.video.http_gate.HttpGate`.

    ``give_up``: called where a playlist names what may not be read; FFmpeg would try it again and
    again.
    """

    def __init__(
        self, fd: int, label: str, stall_s: float, give_up: Callable[[FeedFailed], None]
    ) -> None:
        self._line = socket.socket(fileno=fd)
        self._label, self._stall_s, self._give_up = label, stall_s, give_up

    def open(self, url: str, first: int = 0, last: int | None = None) -> GatedFile:
        """An address from byte ``first`` on. Raises :class:`FeedFailed`."""
        return GatedFile(self, url, first, last, self._stall_s)

    def ask(self, **request: Any) -> tuple[dict[str, Any], int]:
        """One request, and the descriptor that came with the answer, or -1."""
        self._line.send(json.dumps(request).encode())
        told, fds, _, _ = socket.recv_fds(self._line, MAX_ANSWER_BYTES, 1)
        if not told:
            raise FeedFailed(f"{self._label} was lost", reason="connection_lost")
        answer = json.loads(told)
        if answer["reason"]:
            raise FeedFailed(f"{self._label} {answer['text']}", reason=answer["reason"])
        return answer, fds[0] if fds else -1

    def nested(self, url: str, flags: int, options: Mapping[str, str]) -> Any:
        """What a playlist names: segments, keys, other playlists. Raises :class:`FeedFailed`."""
        if flags & _WRITE:
            raise FeedFailed(f"{self._label} asks for something to be written", reason="invalid")
        plain = url.removeprefix("crypto+").removeprefix("crypto:")
        first, end = int(options.get("offset", 0)), int(options.get("end_offset", 0))
        try:
            file = self.open(plain, first, end - 1 if end else None)
        except FeedFailed as error:
            if error.reason in _GUARDED:
                self._give_up(error)
                raise
            return io.BytesIO()  # one piece that is gone is left out, as FFmpeg does
        if plain == url:
            return file
        key, iv = bytes.fromhex(options["key"]), bytes.fromhex(options["iv"])
        return DecryptedFile(file, key, iv)


class GatedFile:
    """One answer's bytes. Can be read from the middle where the server can."""

    def __init__(self, gate: Gate, url: str, first: int, last: int | None, stall_s: float) -> None:
        self.name = url
        self._gate, self._first, self._last, self._stall_s = gate, first, last, stall_s
        self._at = first
        self._begin()

    def _begin(self) -> None:
        answer, self._fd = self._gate.ask(url=self.name, first=self._at, last=self._last)
        self._body_at = self._at
        self._number = answer["number"]
        self._byte_count: int | None = answer["byte_count"]
        self._ranges = bool(answer["ranges"]) and self._byte_count is not None
        self.media_type = str(answer["media_type"])

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Whether it can be read from the middle."""
        return self._ranges and self._last is None

    def read(self, count: int) -> bytes:
        """Up to ``count`` bytes, as they come. Raises :class:`FeedFailed` for a broken body."""
        if self._body_at != self._at or self._fd < 0:
            self.close()
            if self._byte_count is not None and self._at >= self._byte_count:
                return b""
            self._begin()
        ready = select.poll()
        ready.register(self._fd, select.POLLIN)
        if not ready.poll(2000 * self._stall_s):
            raise FeedFailed("has stalled", reason="stalled")  # the gate should have told
        part = os.read(self._fd, count)
        if not part:
            self._gate.ask(fate=self._number)
        self._at += len(part)
        self._body_at += len(part)
        return part

    def tell(self) -> int:
        """Where it stands."""
        return self._at - self._first

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go on from elsewhere, with the next read."""
        from_ = {os.SEEK_SET: self._first, os.SEEK_CUR: self._at, os.SEEK_END: self._byte_count}
        self._at = max(self._first, offset + (from_[whence] or 0))
        return self.tell()

    def close(self) -> None:
        """Read no more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class DecryptedFile:
    """A segment that a playlist says is encrypted by AES-128 (CBC, PKCS 7)."""

    def __init__(self, file: GatedFile, key: bytes, iv: bytes) -> None:
        self._file = file
        self._decryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor()
        self._unpadder = padding.PKCS7(8 * _BLOCK_BYTES).unpadder()
        self._plain = b""
        self._over = False

    def readable(self) -> bool:
        """Always."""
        return True

    def read(self, count: int) -> bytes:
        """Up to ``count`` bytes of the plain text."""
        while not self._over and not self._plain:
            part = self._file.read(max(count, _BLOCK_BYTES))
            self._over = not part
            if part:
                self._plain = self._unpadder.update(self._decryptor.update(part))
            else:
                with suppress(ValueError):  # cut off, or another key: what came is shown
                    self._plain = self._unpadder.finalize()
        told, self._plain = self._plain[:count], self._plain[count:]
        return told

    def close(self) -> None:
        """Read no more."""
        self._file.close()
