"""What a fixed camera goes on showing is stored once: runs of a cell whose descriptor hardly moves.

A frame's cell is stood for by a row that the same cell had before, when both are within an angle;
else it begins a row of its own. The mapping from (cell, time) to row is the temporal side of f_map
(paper, eq. 3): every frame is made up again from rows, each cell within the angle.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from worker.core.types import BoolArray, FloatArray, IntArray
from worker.errors import IndexDamaged, InputInvalid

REMEMBERED_ROWS = 4
"""Rows per cell that a frame is compared with, those used last: what passes in front of a
background gives way to the same background again."""

UIntArray = NDArray[np.uint32]


@dataclass(frozen=True, slots=True, eq=False)
class CellRuns:
    """Which of ``rows`` stands for each of ``cells`` of each of ``frames``, as m runs.

    ``start_m``, ``row_m``: uint32 (m,). Run i begins at cell ``start // frames`` and frame
    ``start % frames`` and ends where the next begins. Ascending; each cell has a run that begins
    with frame 0. Raises ``IndexDamaged`` for anything else.
    """

    frames: int
    cells: int
    rows: int
    start_m: UIntArray
    row_m: UIntArray

    def __post_init__(self) -> None:
        keys = np.arange(self.cells, dtype=np.int64) * self.frames
        at = np.searchsorted(self.start_m, keys)
        if (
            self.start_m.shape != self.row_m.shape
            or self.start_m.size < self.cells
            or (self.start_m[1:] <= self.start_m[:-1]).any()
            or not np.array_equal(self.start_m[np.minimum(at, self.start_m.size - 1)], keys)
            or int(self.start_m[-1]) >= self.frames * self.cells
            or int(self.row_m.max()) >= self.rows
        ):
            raise IndexDamaged(
                f"runs of {self.cells} cells over {self.frames} frames do not hold together"
            )

    def rows_of(self, frames: IntArray) -> IntArray:
        """Row of every cell of some frames, int64 (n, cells)."""
        keys = np.arange(self.cells, dtype=np.int64) * self.frames + frames[:, None]
        run = np.searchsorted(self.start_m, keys.astype(np.uint32), side="right") - 1
        return self.row_m[run].astype(np.int64)

    def by_row(self) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """Runs in order of their row, int64 (m,) each: row, cell, first frame and end frame."""
        start = self.start_m.astype(np.int64)
        cell, first = np.divmod(start, self.frames)
        end = np.append(start[1:], self.frames * self.cells) - cell * self.frames
        order = np.argsort(self.row_m, kind="stable")
        row = self.row_m.astype(np.int64)
        return row[order], cell[order], first[order], end[order]


@dataclass(slots=True)
class RunFinder:
    """Finds the runs of one shard, frame by frame. ``largest_distance``: of a cosine."""

    cells: int
    largest_distance: float
    _near: FloatArray | None = None
    _stored: np.ndarray | None = None
    _row: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    _used: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    _rows_nc: list[NDArray[np.uint32]] = field(default_factory=list)
    rows: int = 0

    def add(self, stored_cd: np.ndarray, patches_cd: FloatArray, *, exact: bool) -> BoolArray:
        """The next frame, as stored and as float32 unit rows; which cells begin a row, bool (c,).

        Rows are numbered in order of frame, then cell. ``exact``: only an equal row stands for a
        cell; of frames that are made up already, so that they do not move twice.
        """
        if self._near is None or self._stored is None:
            memory = (self.cells, REMEMBERED_ROWS)
            self._near = np.zeros((*memory, patches_cd.shape[1]), dtype=np.float32)
            self._stored = np.zeros((*memory, stored_cd.shape[1]), dtype=stored_cd.dtype)
            self._row = np.full(memory, -1, dtype=np.int64)
            self._used = np.full(memory, -1, dtype=np.int64)
        at = np.arange(self.cells)
        cosine_cm = np.matmul(self._near, patches_cd[:, :, None])[:, :, 0]
        cosine_cm[self._row < 0] = -np.inf
        if exact:
            equal_cm = (self._stored == stored_cd[:, None, :]).all(axis=2)
            cosine_cm = np.where(equal_cm, cosine_cm, -np.inf).astype(np.float32)
        best = cosine_cm.argmax(axis=1)
        found: BoolArray = cosine_cm[at, best] >= 1 - self.largest_distance
        begun = np.flatnonzero(~found)
        oldest = self._used[begun].argmin(axis=1)
        best[begun] = oldest
        self._near[begun, oldest] = patches_cd[begun]
        self._stored[begun, oldest] = stored_cd[begun]
        self._row[begun, oldest] = self.rows + np.arange(begun.size)
        self._used[at, best] = len(self._rows_nc)
        self.rows += begun.size
        self._rows_nc.append(self._row[at, best].astype(np.uint32))
        return ~found

    def runs(self) -> CellRuns:
        """The runs of all frames added. Raises ``InputInvalid`` without any, or too many."""
        frames = len(self._rows_nc)
        if frames == 0 or frames * self.cells >= 2**32:
            raise InputInvalid(f"{frames} frames of {self.cells} cells cannot be numbered")
        rows_cn = np.stack(self._rows_nc, axis=1)
        begins = np.ones(rows_cn.shape, dtype=np.bool_)
        begins[:, 1:] = rows_cn[:, 1:] != rows_cn[:, :-1]
        start = np.flatnonzero(begins)
        return CellRuns(
            frames, self.cells, self.rows, start.astype(np.uint32), rows_cn.ravel()[start]
        )
