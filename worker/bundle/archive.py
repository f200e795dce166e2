"""ZIP files with one way to write them: stored, in order, without times. Whatever differs from that
way is damage, and is found by its place."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

from worker.errors import EvidenceInvalid

MAX_ARCHIVE_BYTES = 1024**3
MAX_FILES = 10_000
_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_LOCAL_FIELDS, _CENTRAL_FIELDS, _END_FIELDS = "<4s5H3I2H", "<4s6H3I5H2I", "<4s4H2IH"
_VERSION, _MADE_BY = 20, 3 << 8 | 20  # plain ZIP 2.0, attributes as on Unix
_NO_TIME, _FIRST_DAY = 0, 1 << 5 | 1  # 1980-01-01, where times of ZIP begin
_READ_ONLY_FILE = 0o100444 << 16


def write_archive(files: Mapping[str, bytes]) -> bytes:
    """The archive of these files, in their order. Names are ASCII paths with slashes."""
    return _written(files, {name: zlib.crc32(content) for name, content in files.items()})


def _written(files: Mapping[str, bytes], sums: Mapping[str, int]) -> bytes:
    body, directory = bytearray(), bytearray()
    for name, content in files.items():
        raw = name.encode("ascii")
        shared = (0, 0, _NO_TIME, _FIRST_DAY, sums[name], len(content), len(content))
        directory += struct.pack(
            _CENTRAL_FIELDS,
            *(_CENTRAL, _MADE_BY, _VERSION, *shared, len(raw), 0, 0, 0, 0),
            *(_READ_ONLY_FILE, len(body)),
        )
        directory += raw
        body += struct.pack(_LOCAL_FIELDS, _LOCAL, _VERSION, *shared, len(raw), 0)
        body += raw
        body += content
    count = len(files)
    end = struct.pack(_END_FIELDS, _END, 0, 0, count, count, len(directory), len(body), 0)
    return bytes(body + directory) + end


def read_archive(content: bytes) -> tuple[dict[str, bytes], list[str]]:
    """Its files, and what is wrong with the archive around them, in words; damage inside of a file
    is for its hash to tell. Raises :class:`EvidenceInvalid` where no files can be made out."""
    files: dict[str, bytes] = {}
    sums: dict[str, int] = {}
    at, size = 0, struct.calcsize(_LOCAL_FIELDS)
    while content[at : at + 4] == _LOCAL:
        try:
            fields = struct.unpack_from(_LOCAL_FIELDS, content, at)
            stored_bytes, name_bytes = fields[7], fields[9]
            name = content[at + size : at + size + name_bytes].decode("ascii")
        except (struct.error, UnicodeDecodeError):
            raise _unreadable(at, files) from None
        start = at + size + name_bytes
        end = start + stored_bytes
        if end > len(content) or name in files or len(files) >= MAX_FILES:
            raise _unreadable(at, files)
        files[name], sums[name] = content[start:end], fields[6]
        at = end
    if content[at : at + 4] != _CENTRAL or not files:
        raise _unreadable(at, files)
    return files, _differences(content, files, sums)


def _unreadable(at: int, files: Mapping[str, bytes]) -> EvidenceInvalid:
    behind = f", behind {list(files)[-1]}" if files else ""
    return EvidenceInvalid(
        f"no archive as RIS writes it: byte {at}{behind} begins no file; take the bundle as it was"
        " exported (one that was unpacked and packed again is another file)"
    )


def _differences(content: bytes, files: Mapping[str, bytes], sums: Mapping[str, int]) -> list[str]:
    """Where the archive is not what these files make, part by part. ``sums``: of its headers."""
    right, at = _written(files, sums), 0
    wrong = [
        f"{name}: its bytes are not those that were packed"
        for name, body in files.items()
        if zlib.crc32(body) != sums[name]
    ]
    if right == content:
        return wrong
    for name, body in files.items():
        head = struct.calcsize(_LOCAL_FIELDS) + len(name)
        if content[at : at + head] != right[at : at + head]:
            wrong.append(f"archive: the header of {name} is not as written")
        at += head + len(body)
    if content[at:] != right[at:]:
        wrong.append("archive: the directory at its end is not as written")
    return wrong
