"""Boxes of the hits an answer shows, from a closer look at their kept pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import structlog

from models.index import IndexGeneration
from worker.context import Context
from worker.core.closer_look import locate, look_window, make_template
from worker.core.geometry import cells_box
from worker.core.trail import shifted_box
from worker.core.types import Box, GridSize, ImageArray, SizePx
from worker.errors import RisError
from worker.generations import backbone_of
from worker.query_picture import cut_out, frame_picture, query_picture
from worker.ranked_frame import RankedFrame

log = structlog.get_logger()


def look_closer(
    context: Context,
    generation: IndexGeneration,
    hits: Sequence[RankedFrame],
    box: Box,
    *,
    frame_id: int | None = None,
    picture_sha256: str | None = None,
) -> list[RankedFrame]:
    """The hits with a finer ``box``, in the same order; ``box`` here is the query's.

    Each costs one picture read and one forward pass. A hit whose picture is gone, and all of them
    when the query's is, keep the box they have: that is logged, and no reason to fail a search.
    """
    if not hits:
        return []
    try:
        query_img_hwc = query_picture(context, frame_id, picture_sha256)
        return _located(context, generation, hits, query_img_hwc, box)
    except RisError as error:
        log.warning("no_closer_look", frame_id=frame_id, code=error.code, detail=str(error))
        return list(hits)


def _picture(context: Context, frame_id: int) -> ImageArray | None:
    try:
        return frame_picture(context, frame_id)
    except RisError as error:
        log.warning("no_closer_look", frame_id=frame_id, code=error.code, detail=str(error))
        return None


def _located(
    context: Context,
    generation: IndexGeneration,
    hits: Sequence[RankedFrame],
    query_img_hwc: ImageArray,
    box: Box,
) -> list[RankedFrame]:
    backbone = backbone_of(context, generation)
    grid = backbone.spec.grid
    query_window = look_window(box, _size(query_img_hwc))
    query_patches_cd = backbone.embed([cut_out(query_img_hwc, query_window)]).patches_ncd[0]
    template = make_template(query_patches_cd, grid, query_window, box)
    located = list(hits)
    for first in range(0, len(hits), context.settings.embed_batch):
        views, asked = list[ImageArray](), list[tuple[int, Box, Box]]()
        for position in range(first, min(first + context.settings.embed_batch, len(hits))):
            hit = hits[position]
            img_hwc, expected = _picture(context, hit.frame_id), _expected(hit, box, grid)
            if img_hwc is not None and expected is not None:
                window = look_window(expected, _size(img_hwc))
                views.append(cut_out(img_hwc, window))
                asked.append((position, window, expected))
        patches_ncd = backbone.embed(views).patches_ncd if views else ()
        for (position, window, expected), patches_cd in zip(asked, patches_ncd, strict=True):
            found = locate(template, patches_cd, grid, window, expected)
            located[position] = dataclasses.replace(hits[position], box=found)
    return located


def _expected(hit: RankedFrame, box: Box, grid: GridSize) -> Box | None:
    """Where the index says the subject is: the query's box, about the middle of the region."""
    if hit.box is not None or hit.region is None:
        return hit.box
    region = cells_box(hit.region.cell_index, grid)
    d_x = (region.x0 + region.x1 - box.x0 - box.x1) / 2
    return shifted_box(box, d_x, (region.y0 + region.y1 - box.y0 - box.y1) / 2)


def _size(img_hwc: ImageArray) -> SizePx:
    return SizePx(*img_hwc.shape[:2])
