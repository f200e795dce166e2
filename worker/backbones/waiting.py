"""Pictures that wait to be embedded: those of all callers in one line, left in batches."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from worker.backbones.base import StoredType
from worker.core.types import Descriptors, ImageArray
from worker.errors import DeviceFailed


@dataclass(eq=False)
class Request:
    """What one caller wants: pictures, and descriptors in a codec's type, in the same order.

    Its pictures may be embedded in several batches; the first that fails ends it.
    """

    imgs_hwc: Sequence[ImageArray]
    stored: StoredType
    answer: Future[Descriptors] = field(default_factory=Future)
    _rows: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def give(self, position: int, global_d: np.ndarray, patches_cd: np.ndarray) -> None:
        """Descriptors of one picture; the last one answers the caller."""
        with self._lock:
            self._rows[position] = (global_d, patches_cd)
            if len(self._rows) == len(self.imgs_hwc) and not self.answer.done():
                rows = [self._rows[at] for at in range(len(self.imgs_hwc))]
                self.answer.set_result(
                    Descriptors(np.stack([g for g, _ in rows]), np.stack([p for _, p in rows]))
                )

    def fail(self, error: BaseException) -> None:
        """Answer the caller with an error, once."""
        with self._lock:
            if not self.answer.done():
                self.answer.set_exception(error)


@dataclass(frozen=True, slots=True)
class Item:
    """One picture of a request."""

    request: Request
    position: int
    since_s: float

    @property
    def img_hwc(self) -> ImageArray:
        """The picture."""
        return self.request.imgs_hwc[self.position]


class WaitingLine:
    """First in, first out, of at most ``capacity`` pictures: who brings more waits."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: deque[Item] = deque()
        self._closed = False
        self._changed = threading.Condition()

    def join(self, request: Request) -> None:
        """Queue a request's pictures. Raises ``DeviceFailed`` once the line is closed."""
        for position in range(len(request.imgs_hwc)):
            with self._changed:
                while len(self._items) >= self._capacity and not self._closed:
                    self._changed.wait()
                if self._closed:
                    raise DeviceFailed("the embedder of this process has been closed")
                self._items.append(Item(request, position, time.monotonic()))
                self._changed.notify_all()

    def take(self, count: int, deadline_s: float) -> list[Item]:
        """Up to ``count`` pictures: as soon as there are that many, or the first has waited for
        ``deadline_s``. Empty once the line is closed."""
        with self._changed:
            while not self._closed:
                if len(self._items) >= count:
                    break
                if self._items:
                    left_s = self._items[0].since_s + deadline_s - time.monotonic()
                    if left_s <= 0:
                        break
                    self._changed.wait(left_s)
                else:
                    self._changed.wait()
            if self._closed:
                return []
            taken = [self._items.popleft() for _ in range(min(count, len(self._items)))]
            self._changed.notify_all()
            return taken

    def close(self) -> list[Item]:
        """Let nobody in or out any more; the pictures that still waited."""
        with self._changed:
            self._closed = True
            left = list(self._items)
            self._items.clear()
            self._changed.notify_all()
            return left
