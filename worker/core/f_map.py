"""The mapping f_map from index rows to frames and patches, kept as runs (paper, eq. 3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worker.core.types import IntArray
from worker.errors import IndexDamaged, NotFound


@dataclass(frozen=True, slots=True, eq=False)
class FMapRuns:
    """``f_map(row) -> (frame, view, patch)`` of one shard as m runs of contiguous rows.

    All int64 (m,): rows ``start_row .. start_row + row_count`` (half-open) are the patches
    0 .. row_count of ``view`` of ``frame_id``, in row-major order of the grid. Patch ids are
    0-based (the paper counts from 1). Sorted by ``start_row``, gaps allowed. Raises
    ``IndexDamaged`` for runs that are unsorted, overlap, are empty or name a view twice.
    """

    start_row: IntArray
    row_count: IntArray
    frame_id: IntArray
    view: IntArray

    def __post_init__(self) -> None:
        columns = (self.start_row, self.row_count, self.frame_id, self.view)
        if any(column.dtype != np.int64 or column.ndim != 1 for column in columns):
            raise IndexDamaged("f_map columns must be int64 (m,): read them anew")
        if len({column.size for column in columns}) != 1:
            raise IndexDamaged(f"f_map columns have lengths {[column.size for column in columns]}")
        invalid = np.flatnonzero((self.row_count < 1) | (self.start_row < 0))
        if invalid.size:
            raise IndexDamaged(f"f_map run {self._name(invalid[0])} covers no valid rows")
        clash = np.flatnonzero(self.start_row[1:] < (self.start_row + self.row_count)[:-1])
        if clash.size:
            raise IndexDamaged(
                f"f_map run {self._name(clash[0] + 1)} is unsorted or overlaps the run before it, "
                f"{self._name(clash[0])}: verify the index"
            )
        self._refuse_repeated_views()

    def _refuse_repeated_views(self) -> None:
        order = np.lexsort((self.view, self.frame_id))
        frame_id, view = self.frame_id[order], self.view[order]
        again = np.flatnonzero((frame_id[1:] == frame_id[:-1]) & (view[1:] == view[:-1]))
        if again.size:
            raise IndexDamaged(
                f"view {view[again[0]]} of frame {frame_id[again[0]]} has two f_map runs: "
                "verify the index"
            )

    def _name(self, run: np.int64) -> str:
        start = int(self.start_row[run])
        return f"{start}..{start + int(self.row_count[run])} (frame {self.frame_id[run]})"

    @property
    def rows(self) -> int:
        """Number of rows covered: frames x views x cells (design, section 4.1)."""
        return int(self.row_count.sum())

    def resolve(self, rows: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """``(frame_id, view, patch_id)`` of every row, int64 and shaped like ``rows`` each.

        Raises ``IndexDamaged`` for a row that no run covers (FAISS marks a missing neighbour with
        -1: drop those first).
        """
        if rows.size and not self.start_row.size:
            raise IndexDamaged(f"row {rows.flat[0]} is asked for, but the shard has no f_map runs")
        run = np.searchsorted(self.start_row, rows, side="right") - 1
        patch_id = rows - self.start_row[run]
        lost = (run < 0) | (patch_id >= self.row_count[run])
        if lost.any():
            raise IndexDamaged(
                f"{int(lost.sum())} of {rows.size} rows have no f_map run, the first is row "
                f"{rows[lost][0]}: verify the index"
            )
        return self.frame_id[run], self.view[run], patch_id

    def rows_of(self, frame_id: int, view: int = 0) -> range:
        """Rows of one view of a frame, in patch order. Raises ``NotFound``."""
        run = np.flatnonzero((self.frame_id == frame_id) & (self.view == view))
        if not run.size:
            raise NotFound(f"view {view} of frame {frame_id} has no rows in this shard")
        start = int(self.start_row[run[0]])
        return range(start, start + int(self.row_count[run[0]]))
