"""Descriptors of a query and of its examples: read back from the index, or made from a picture."""

from __future__ import annotations

import numpy as np
import structlog

from models.index import IndexGeneration
from models.repositories import index as index_record
from models.repositories import videos as video_record
from worker.context import Context
from worker.core.examples import Example
from worker.core.geometry import roi_box, roi_cells
from worker.core.masking import hidden_cells, seen_cells
from worker.core.search_params import SearchParams
from worker.core.similarity import l2_normalise
from worker.core.types import FloatArray, ImageArray, IntArray, Roi, SizePx
from worker.errors import IndexDamaged, InputInvalid, NotFound, ObjectStoreUnavailable
from worker.generations import backbone_of
from worker.index.layout import KINDS
from worker.index.shard import read_blocks
from worker.masks import frame_masks
from worker.pinning import layout_of, spec_of
from worker.query_picture import cut_out, embed_frames, frame_picture, query_picture
from worker.ranked_frame import ExampleDescriptors, QueryDescriptors

log = structlog.get_logger()


def describe_query(
    context: Context,
    generation: IndexGeneration,
    roi: Roi,
    params: SearchParams,
    *,
    frame_id: int | None = None,
    picture_sha256: str | None = None,
    anew: bool = False,
) -> QueryDescriptors:
    """Query patches of the ROI and q_g. An indexed frame's rows are read back: no backbone runs
    (except for ``query_descriptor`` = roi-crop, which embeds the cut-out picture), unless its kept
    picture is to be embedded ``anew``."""
    grid = spec_of(generation).grid
    cells = _seen_cells(context, generation, roi, frame_id)
    patch_ids = cells[:, 0] * grid.w + cells[:, 1]
    img_hwc: ImageArray | None = None
    if frame_id is not None and not anew:
        global_d, patches_cd = _stored_descriptors(context, generation, frame_id)
    else:
        img_hwc = query_picture(context, frame_id, picture_sha256)
        embedded = (
            backbone_of(context, generation).embed([img_hwc])
            if frame_id is None
            else embed_frames(context, generation, [frame_id], [img_hwc])
        )
        global_d, patches_cd = embedded.global_nd[0], embedded.patches_ncd[0]
    patches_qd = np.ascontiguousarray(patches_cd[patch_ids])
    if params.query_descriptor == "roi-mean":
        global_d = _mean_descriptor(patches_qd, spec_of(generation).global_dim)
    elif params.query_descriptor == "roi-crop":
        if img_hwc is None:
            img_hwc = query_picture(context, frame_id, picture_sha256)
        crop_hwc = cut_out(img_hwc, roi_box(roi))
        global_d = backbone_of(context, generation).embed([crop_hwc]).global_nd[0]
    more, less = (
        tuple(_example(context, generation, example) for example in examples)
        for examples in (params.more, params.less)
    )
    return QueryDescriptors(patches_qd, cells, global_d, roi_box(roi), more, less)


def _seen_cells(
    context: Context, generation: IndexGeneration, roi: Roi, frame_id: int | None
) -> IntArray:
    """The ROI's cells but for those under the frame's privacy mask. Raises ``RoiInvalid``."""
    spec = spec_of(generation)
    if frame_id is None:
        return roi_cells(roi, spec.grid)
    with context.db.transaction() as session:
        (mask,) = frame_masks(session, [frame_id])
        frame = video_record.find_frame(session, frame_id)
    if mask is None or frame is None:
        return roi_cells(roi, spec.grid)
    size = SizePx(frame.h_px, frame.w_px)
    return seen_cells(roi, spec.grid, hidden_cells(mask, spec.grid, spec.input_size, size))


def _example(context: Context, generation: IndexGeneration, example: Example) -> ExampleDescriptors:
    grid = spec_of(generation).grid
    cells = _seen_cells(context, generation, example.roi, example.frame_id)
    _, patches_cd = _stored_descriptors(context, generation, example.frame_id)
    patches_qd = np.ascontiguousarray(patches_cd[cells[:, 0] * grid.w + cells[:, 1]])
    return ExampleDescriptors(example.frame_id, patches_qd, cells, roi_box(example.roi))


def _stored_descriptors(
    context: Context, generation: IndexGeneration, frame_id: int
) -> tuple[FloatArray, FloatArray]:
    """Descriptors of an indexed frame; from its kept picture where they are damaged, or
    cannot be reached."""
    revision = None
    while True:
        with context.db.transaction() as session:
            found = index_record.find_run(session, generation.id, frame_id)
        if found is None:
            raise NotFound(
                f"frame {frame_id} has no rows in index generation {generation.id};"
                " `ris verify` says why"
            )
        shard, run = found
        layout = layout_of(context.index, generation, shard)
        at = [run.start_row // layout.cells]
        known = -1 if run.global_crc32 is None else run.global_crc32
        sums_n2 = np.array([[known, run.crc32]], dtype=np.int64)
        try:
            global_nd, patches_ncd = (read_blocks(layout, kind, at, sums_n2) for kind in KINDS)
        except ObjectStoreUnavailable as error:
            log.warning("described_from_picture", frame_id=frame_id, detail=str(error))
            return _embedded(context, generation, frame_id)
        except IndexDamaged as error:
            if shard.revision != revision:  # a repair may just have replaced the files
                revision = shard.revision
                continue
            log.error("index_damaged", folder=error.folder, frame_id=frame_id, detail=str(error))
            return _embedded(context, generation, frame_id)
        return global_nd[0], patches_ncd[0]


def _embedded(
    context: Context, generation: IndexGeneration, frame_id: int
) -> tuple[FloatArray, FloatArray]:
    img_hwc = frame_picture(context, frame_id)
    embedded = embed_frames(context, generation, [frame_id], [img_hwc])
    return embedded.global_nd[0], embedded.patches_ncd[0]


def _mean_descriptor(patches_qd: FloatArray, global_dim: int) -> FloatArray:
    if patches_qd.shape[1] != global_dim:
        raise InputInvalid(
            f"query_descriptor roi-mean needs equal widths; this backbone's patches have"
            f" {patches_qd.shape[1]} numbers, its global descriptors {global_dim}: use frame"
        )
    return l2_normalise(patches_qd.mean(axis=0, dtype=np.float32))
