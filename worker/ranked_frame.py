"""What a search takes and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass

from worker.core.rematch import HitTerms
from worker.core.types import Box, FloatArray, IntArray, Region


@dataclass(frozen=True, slots=True)
class ExampleDescriptors:
    """A box on an indexed frame: descriptors float32 (q, d) of its cells int64 (q, 2)."""

    frame_id: int
    patches_qd: FloatArray
    cells: IntArray
    box: Box


@dataclass(frozen=True, slots=True)
class QueryDescriptors:
    """The query as descriptors: ``patches_qd`` float32 (q, d) of the ROI's cells, ``cells``
    int64 (q, 2) their (row, col) in the query grid, ``global_d`` float32 (D,) for eq. 4, ``box``
    the ROI's bounding box, from which the boxes of hits are made. ``more``, ``less``: examples that
    show the subject, and that do not."""

    patches_qd: FloatArray
    cells: IntArray
    global_d: FloatArray
    box: Box | None = None
    more: tuple[ExampleDescriptors, ...] = ()
    less: tuple[ExampleDescriptors, ...] = ()


@dataclass(frozen=True, slots=True)
class RankedFrame:
    """A candidate in its final place.

    ``camera_id``, ``t_epoch_s``: who recorded it and when. ``stage1_score``: what stage 1 chose it
    by. ``similarity``: mean cosine over the region (0 without one). ``coverage``: share of distinct
    query cells that the region supports. ``box``: where the subject is, finer than cells; None
    where only the region's cells are known. ``on_trail``: found by following the subject.
    ``appearance``: the likeness alone; ``false_matches``: frames that chance brings to it in the
    frames compared; both None where the strategy does not say. ``terms``: what it takes to make
    region and score again from the frame's descriptors.
    """

    frame_id: int
    camera_id: int
    t_epoch_s: float
    score: float
    global_score: float
    stage1_score: float
    similarity: float
    coverage: float
    region: Region | None
    box: Box | None = None
    on_trail: bool = False
    appearance: float | None = None
    false_matches: float | None = None
    terms: HitTerms | None = None
