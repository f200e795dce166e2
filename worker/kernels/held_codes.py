"""Compact codes that stay on a device between searches, within a bound. Loads torch."""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker.core.coarse import CoarseQuery
from worker.core.compact import CODE_DIM, Codes
from worker.core.types import BoolArray, FloatArray
from worker.kernels.device_codes import DeviceCodes, best_similarities_on_device, weighted

_BYTES_A_CELL = CODE_DIM + 2
"""A code, at most, and its weight."""

ReadCodes = Callable[[int], Iterable[tuple[int, Codes]]]
"""From a block on: the first block of each chunk, and its codes, int8 (n, at least cells, k)."""


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """``background``: checksum of what the weights were made of."""

    codes: DeviceCodes
    background: int | None

    @property
    def size_bytes(self) -> int:
        frames, cells, _ = self.codes.codes_nck.shape
        return int(frames * cells * _BYTES_A_CELL)


class HeldCodes:
    """Codes of shards, those searched last. Safe to share between threads.

    ``find_place``: asked at first use for a torch device and how many bytes may lie there; None:
    nothing is held.
    """

    def __init__(self, find_place: Callable[[], tuple[str, int] | None]) -> None:
        self._find_place = find_place
        self._place: tuple[torch.device, int] | None = None
        self._held: OrderedDict[Hashable, _Held] = OrderedDict()
        self._lock = threading.Lock()

    def fitting(self, sizes: Sequence[tuple[int, int]]) -> list[bool]:
        """Which shards of these frames and cells may be held together, those named first before
        others: what is asked for again must not have made way for the rest meanwhile. Raises what
        ``find_place`` does."""
        with self._lock:
            _, left_bytes = self._opened()
        fit = []
        for frames, cells in sizes:
            size_bytes = frames * cells * _BYTES_A_CELL
            fit.append(0 < size_bytes <= left_bytes)
            left_bytes -= size_bytes if fit[-1] else 0
        return fit

    def let_go(self) -> None:
        """Forget all codes."""
        with self._lock:
            self._held.clear()

    def shrink(self) -> None:
        """Forget all codes, and hold half as many from now on: they were too many, or it failed."""
        with self._lock:
            self._held.clear()
            if self._place is not None:
                self._place = (self._place[0], self._place[1] // 2)

    def codes(
        self,
        key: Hashable,
        frames: int,
        cells: int,
        background_ck: FloatArray | None,
        read: ReadCodes,
    ) -> DeviceCodes:
        """The first ``frames`` of what ``key`` names, whose blocks never change but may become
        more; only new ones are read. What was asked for longest ago makes way.

        Raises what ``read`` and ``find_place`` raise, and ``torch.OutOfMemoryError``.
        """
        background = None if background_ck is None else zlib.crc32(background_ck.tobytes())
        with self._lock:
            device, max_bytes = self._opened()
            held = self._held.get(key)
            if held is None or held.codes.frames < frames:
                codes_nck = self._read(device, held, frames, cells, read)
                held = _Held(weighted(codes_nck, background_ck), background)
            elif held.background != background:
                held = _Held(weighted(held.codes.codes_nck, background_ck), background)
            self._held[key] = held
            self._held.move_to_end(key)
            while sum(one.size_bytes for one in self._held.values()) > max_bytes:
                self._held.popitem(last=False)
        weight_nc = held.codes.weight_nc
        return DeviceCodes(
            held.codes.codes_nck[:frames], None if weight_nc is None else weight_nc[:frames]
        )

    def _opened(self) -> tuple[torch.device, int]:
        if self._place is None:
            found = self._find_place()
            self._place = (
                (torch.device("cpu"), 0) if found is None else (torch.device(found[0]), found[1])
            )
        return self._place

    def _read(
        self, device: torch.device, held: _Held | None, frames: int, cells: int, read: ReadCodes
    ) -> Tensor:
        have = 0 if held is None else held.codes.frames
        parts = [] if held is None else [held.codes.codes_nck]
        for _, chunk in read(have):
            parts.append(
                torch.from_numpy(np.require(chunk[:, :cells], requirements=["C", "W"])).to(device)
            )
        codes_nck = torch.cat(parts)
        assert len(codes_nck) == frames
        return codes_nck


def likeness_on_device(
    codes: DeviceCodes, step: float, query: CoarseQuery, inside_c: BoolArray | None
) -> Tensor:
    """``query.likeness`` of :func:`best_similarities_on_device`, float32 (n,) on the device: four
    bytes a frame come back, not four for every row of the query."""
    best_nq = best_similarities_on_device(codes, step, query.query_qk, inside_c)
    mix_qe = np.zeros((len(query.query_qk), len(query.lengths)), dtype=np.float32)
    first = 0
    for at, length in enumerate(query.lengths):
        weight_q = query.weight_q[first : first + length]
        mix_qe[first : first + length, at] = weight_q / weight_q.sum()
        first += length
    seen_ne = best_nq @ torch.from_numpy(mix_qe).to(best_nq.device)
    count = len(query.shares)
    share_e = torch.tensor(query.shares, dtype=torch.float32, device=best_nq.device)
    seen_n = seen_ne[:, :count] @ (share_e / share_e.sum())
    if len(query.lengths) > count:
        seen_n = seen_n - query.against_weight * seen_ne[:, count:].amax(dim=1)
    return seen_n


def to_host(parts: Sequence[Tensor]) -> list[FloatArray]:
    """Several vectors in one transfer."""
    if not parts:
        return []
    whole = torch.cat(list(parts)).cpu().numpy()
    return np.split(whole, np.cumsum([len(part) for part in parts])[:-1])
