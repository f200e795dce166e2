"""Object storage that speaks S3, through obstore: written once, read in ranges, never changed.

Objects of one index lie below a name that is made by chance with the first of them and kept in the
data folder, so that two indexes, or an index and its restored copy, may share a bucket and neither
takes the other's objects for left-overs. An object is spoken of by its whole URL.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from worker.errors import ObjectStoreUnavailable, SetupFailed

AWAY_S = 10.0
"""After it could not be reached, it is not asked again for so long: readers do not queue up."""
_MARK = "ris-index"
_REQUEST: dict[str, Any] = {"connect_timeout": "3s", "read_timeout": "10s", "timeout": "120s"}
_RETRY: dict[str, Any] = {"max_retries": 2, "retry_timeout": timedelta(seconds=15)}


@dataclass(frozen=True, slots=True)
class ObjectEntry:
    """An object that lies there; ``changed_s``: epoch seconds."""

    url: str
    byte_count: int
    changed_s: float


@dataclass(frozen=True)
class ObjectStore:
    """One bucket and prefix. Building one does no I/O; safe to share between threads.

    Credentials are obstore's affair: ``AWS_*`` variables, or what the machine is given. Everything
    raises :class:`ObjectStoreUnavailable` when the store cannot be reached or refuses.
    """

    url: str
    id_path: Path
    endpoint: str | None = None
    region: str | None = None
    _away: list[tuple[float, str]] = field(default_factory=list, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @cached_property
    def _store(self) -> Any:
        from obstore.store import S3Store

        parts = urlsplit(self.url)
        given: dict[str, Any] = {"endpoint": self.endpoint, "region": self.region}
        options = dict(_REQUEST)
        if self.endpoint is not None and self.endpoint.startswith("http://"):
            options["allow_http"] = True
        return S3Store(
            parts.netloc,
            prefix=parts.path.strip("/") or None,
            client_options=options,  # type: ignore[arg-type]
            retry_config=_RETRY,  # type: ignore[arg-type]
            **{name: value for name, value in given.items() if value is not None},
        )

    def index_url(self) -> str | None:
        """Where this index's objects lie, ending with a slash; None before the first."""
        try:
            return f"{self.url}/{self.id_path.read_text()}/"
        except FileNotFoundError:
            return None

    def ensure_index_url(self) -> str:
        """The same, made when there is none, and marked: an empty bucket is no lost index."""
        known = self.index_url()
        if known is None:
            part = self.id_path.with_name(f"{self.id_path.name}.{uuid.uuid4().hex}.tmp")
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
            try:
                os.write(descriptor, uuid.uuid4().hex.encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            try:
                os.link(part, self.id_path)  # the first one stays
            except FileExistsError:
                pass
            finally:
                part.unlink()
            folder = os.open(self.id_path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
            known = self.index_url()
            assert known is not None
        if not self.is_there(known + _MARK):
            with self._errors():
                self._obstore().put(self._store, self._key(known + _MARK), b"", use_multipart=False)
        return known

    def put(self, url: str, path: Path) -> None:
        """Upload a file. Nobody sees it before it is whole."""
        with path.open("rb") as file, self._errors():
            self._obstore().put(self._store, self._key(url), file)

    def read(self, url: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Bytes of ``[first, end)`` spans, short where the object ends, empty where it is not."""
        key = self._key(url)
        with self._errors():
            try:
                return self._ranges(key, spans)
            except FileNotFoundError as error:
                self._require_index(url, error)
                return [b""] * len(spans)
            except BaseException as error:
                # A span begins behind the end: the store refuses it alone, and joined to those
                # before it obstore panics, with an error that is no Exception.
                if "416" not in str(error) and type(error).__name__ != "PanicException":
                    raise
                size = self._size(key) or 0
                inside = [(min(a, size), min(b, size)) for a, b in spans]
                asked = [span for span in inside if span[0] < span[1]]
                found = iter(self._ranges(key, asked) if asked else [])
                return [next(found) if a < b else b"" for a, b in inside]

    def _ranges(self, key: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        starts, ends = [first for first, _ in spans], [end for _, end in spans]
        found = self._obstore().get_ranges(
            self._store, key, starts=starts, ends=ends, coalesce=64 * 1024
        )
        return [bytes(body) for body in found]

    def _size(self, key: str) -> int | None:
        try:
            return int(self._obstore().head(self._store, key)["size"])
        except FileNotFoundError:
            return None

    def is_there(self, url: str) -> bool:
        """Whether there is an object of that name."""
        with self._errors():
            return self._size(self._key(url)) is not None

    def below(self, url: str) -> Iterator[list[ObjectEntry]]:
        """Objects below a URL that ends with a slash, some at a time."""
        with self._errors():
            for entries in self._obstore().list(self._store, prefix=self._key(url)):
                yield [
                    ObjectEntry(
                        f"{self.url}/{entry['path']}",
                        int(entry["size"]),
                        entry["last_modified"].timestamp(),
                    )
                    for entry in entries
                    if not entry["path"].endswith(f"/{_MARK}")
                ]

    def remove(self, urls: Sequence[str]) -> None:
        """Remove objects; those that are not there are no error."""
        keys = [self._key(url) for url in urls]
        if keys:
            with self._errors():
                self._obstore().delete(self._store, keys)

    def check(self) -> None:
        """Ask it something, whatever was learnt before."""
        with self._lock:
            self._away.clear()
        with self._errors():
            next(iter(self._obstore().list(self._store, prefix="ris-doctor/")), None)

    def _require_index(self, url: str, error: Exception) -> None:
        """An object that is missing is damage; a bucket without the index is a mistake elsewhere:
        nothing shall be given up for it."""
        first = url.removeprefix(f"{self.url}/").partition("/")[0]
        mark = f"{self.url}/{first}/{_MARK}"
        if self._size(self._key(mark)) is None:
            raise self._noted(
                f"{self.url} does not hold this index (no {mark}): is RIS_S3_URL, or"
                " RIS_S3_ENDPOINT, another one than the index was moved to?"
            ) from error

    def _key(self, url: str) -> str:
        if not url.startswith(f"{self.url}/"):
            raise ObjectStoreUnavailable(
                f"an object lies at {url}, RIS_S3_URL is {self.url}: set it to where the index's"
                " objects are"
            )
        return url.removeprefix(f"{self.url}/").removesuffix("/")

    def _obstore(self) -> Any:
        with self._lock:
            if self._away and time.monotonic() - self._away[0][0] < AWAY_S:
                raise ObjectStoreUnavailable(self._away[0][1])
        import obstore

        return obstore

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except FileNotFoundError as error:
            raise self._unavailable(error) from error
        except BaseError as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> ObjectStoreUnavailable:
        # Only the first line: what follows may quote requests.
        said = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        return self._noted(
            f"object storage {self.url} cannot be used: {said}; check that it runs, RIS_S3_ENDPOINT"
            " and its credentials"
        )

    def _noted(self, message: str) -> ObjectStoreUnavailable:
        with self._lock:
            self._away[:] = [(time.monotonic(), message)]
        return ObjectStoreUnavailable(message)


def open_store(
    url: str, id_path: Path, *, endpoint: str | None = None, region: str | None = None
) -> ObjectStore:
    """The store of a URL such as ``s3://bucket/prefix``. Raises :class:`SetupFailed` without the
    package that speaks to it."""
    try:
        import obstore  # noqa: F401
    except ImportError as error:
        raise SetupFailed(
            "RIS_S3_URL is set, and the package obstore is not installed: install RIS with the"
            " extra s3 (`.venv/bin/python -m pip install obstore`), or unset RIS_S3_URL"
        ) from error
    return ObjectStore(url.rstrip("/"), id_path, endpoint, region)
