"""The pictures a query is about: the one it was drawn on, and those of indexed frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.index import IndexGeneration
from models.repositories import videos as video_record
from worker.backbones.embedder import embed_masked
from worker.context import Context
from worker.core.types import Box, Descriptors, ImageArray, SizePx
from worker.errors import NotFound
from worker.generations import backbone_of
from worker.masks import frame_masks
from worker.video.picture import load_query_picture


def query_picture(context: Context, frame_id: int | None, picture_sha256: str | None) -> ImageArray:
    """The picture the ROI was drawn on: an upload, or the kept one of an indexed frame.

    Raises :class:`NotFound` where it is gone, and what reading a picture raises.
    """
    if picture_sha256 is not None:
        raw = context.uploads.load(picture_sha256)
        return load_query_picture(raw, context.settings.query_picture_max_px)
    assert frame_id is not None
    return frame_picture(context, frame_id)


def frame_picture(context: Context, frame_id: int) -> ImageArray:
    """The kept picture of an indexed frame. Raises as :func:`query_picture`."""
    with context.db.transaction() as session:
        frame = video_record.find_frame(session, frame_id)
    if frame is None:
        raise NotFound(f"frame {frame_id} is not known")
    return context.pictures.load(frame.picture_sha256)


def embed_frames(
    context: Context,
    generation: IndexGeneration,
    frame_ids: Sequence[int],
    imgs_hwc: Sequence[ImageArray],
) -> Descriptors:
    """Descriptors of indexed frames from their kept pictures, as they would be recorded: what lies
    under the mask that a frame was painted with tells nothing here either."""
    with context.db.transaction() as session:
        masks = frame_masks(session, frame_ids)
    sizes = [SizePx(*img_hwc.shape[:2]) for img_hwc in imgs_hwc]
    backbone = backbone_of(context, generation)
    return embed_masked(backbone, imgs_hwc, masks, sizes, context.settings.embed_batch)


def cut_out(img_hwc: ImageArray, box: Box) -> ImageArray:
    """What lies inside a normalised box: a copy, at least one pixel each way."""
    h_px, w_px = img_hwc.shape[:2]
    x0, y0 = min(int(box.x0 * w_px + _SLACK), w_px - 1), min(int(box.y0 * h_px + _SLACK), h_px - 1)
    x1, y1 = max(x0 + 1, round(box.x1 * w_px)), max(y0 + 1, round(box.y1 * h_px))
    return np.ascontiguousarray(img_hwc[y0:y1, x0:x1])


_SLACK = 1e-6  # an edge on a whole pixel stays there whatever the division rounded
