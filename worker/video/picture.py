"""Query pictures read safely, and the result picture drawn for people.

The result picture is one PNG: the query with its ROI on the left, ranked hits with their region
on the right.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from worker.core.types import Box, GridSize, ImageArray, IntArray, Point, Polygon, Roi, SizePx
from worker.errors import InputInvalid, PictureInvalid
from worker.video.frame_store import storage_error

_MAX_SIDE_PX = 65_500  # of a JPEG, which queries are shown as
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")

_Rgb = tuple[int, int, int]
_XyPx = tuple[float, float]

_BACKGROUND: _Rgb = (17, 20, 24)
_CARD: _Rgb = (29, 33, 40)
_TEXT: _Rgb = (236, 239, 243)
_MUTED: _Rgb = (150, 158, 170)
_ROI: _Rgb = (255, 176, 32)
_BOX: _Rgb = (255, 255, 255)
_REGION: _Rgb = (52, 224, 120)
_REGION_ALPHA = 0.32

_SHEET_W_PX = 1760
_MARGIN_PX = 40
_GAP_PX = 20
_PAD_PX = 12
_TITLE_H_PX = 92
_CAPTION_H_PX = 58
_LABEL_H_PX = 34
_QUERY_W_PX = 620
_QUERY_MAX_H_PX = 620
_CROP_MAX_H_PX = 300


@dataclass(frozen=True, slots=True)
class HitPicture:
    """One ranked hit as drawn. ``img_hwc``: uint8 RGB. ``cell_index``: int64 cells of G*.

    ``rank`` starts at 1; ``t_utc`` is aware UTC; ``box`` is the normalised box of the hit, if any.
    """

    img_hwc: ImageArray
    rank: int
    camera: str
    t_utc: datetime
    score: float
    cell_index: IntArray
    grid: GridSize
    box: Box | None = None


def load_query_picture(source: Path | bytes, max_px: int) -> ImageArray:
    """Read a query picture as uint8 RGB (h, w, 3), turned upright by its EXIF orientation.

    The size is checked before any pixel is decoded. Raises ``PictureInvalid`` for a missing,
    empty, unreadable, cut-off or unknown file and for more than ``max_px`` pixels.
    """
    name = str(source) if isinstance(source, Path) else f"picture of {len(source)} bytes"
    try:
        opened = source if isinstance(source, Path) else io.BytesIO(source)
        with Image.open(opened, formats=_FORMATS) as picture:
            _check_size(picture, name, max_px)
            return _to_rgb(picture)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PictureInvalid(
            f"{name} is larger than the {max_px} pixels allowed; scale it down"
        ) from None
    # Pillow reports damaged files with all of these.
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or "not a complete JPEG, PNG, WebP, BMP or TIFF"
        raise PictureInvalid(f"{name} cannot be read ({reason}); give another picture") from None


def _check_size(picture: Image.Image, name: str, max_px: int) -> None:
    if picture.width * picture.height > max_px:
        raise PictureInvalid(
            f"{name} is {picture.width} x {picture.height}, more than the {max_px} pixels "
            "allowed; scale it down or raise RIS_QUERY_PICTURE_MAX_PX"
        )
    if max(picture.size) > _MAX_SIDE_PX:
        raise PictureInvalid(
            f"{name} is {picture.width} x {picture.height}, and a side has at most {_MAX_SIDE_PX}"
            " pixels; scale it down"
        )
    if picture.width < 1 or picture.height < 1:
        raise PictureInvalid(f"{name} has no pixels; give another picture")


def _to_rgb(picture: Image.Image) -> ImageArray:
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I;16"):  # Pillow would clip 16-bit grey to white
        gray_hw = (np.asarray(upright, dtype=np.uint16) >> 8).astype(np.uint8)
        upright = Image.fromarray(gray_hw)
    return np.array(upright.convert("RGB"), dtype=np.uint8)


def draw_hits(
    query_img_hwc: ImageArray,
    roi: Roi,
    hits: Sequence[HitPicture],
    out_path: Path,
    title: str = "Region-to-Image Search",
) -> SizePx:
    """Draw the result picture to ``out_path`` (PNG) and return its size.

    ``query_img_hwc``: uint8 RGB; ``roi`` normalised to it. Hits are drawn in the order given.
    Raises ``InputInvalid`` for a cell outside its grid and ``StorageFull`` or ``StorageFailed``
    when the file cannot be written.
    """
    query = _query_panel(query_img_hwc, roi)
    results = _hits_panel(hits)
    sheet_h_px = _TITLE_H_PX + max(query.height, results.height) + _MARGIN_PX
    sheet = Image.new("RGB", (_SHEET_W_PX, sheet_h_px), _BACKGROUND)
    _draw_title(sheet, title, hits)
    sheet.paste(query, (_MARGIN_PX, _TITLE_H_PX))
    sheet.paste(results, (_SHEET_W_PX - _MARGIN_PX - results.width, _TITLE_H_PX))
    try:
        sheet.save(out_path, "PNG")
    except OSError as error:
        raise storage_error(error, out_path) from error
    return SizePx(sheet.height, sheet.width)


def thumbnail(jpeg: bytes, max_side_px: int) -> bytes:
    """A kept picture as a JPEG no larger than ``max_side_px`` a side."""
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as picture:
        picture.draft(
            "RGB", (max_side_px, max_side_px)
        )  # decodes at an eighth where that is enough
        small = picture.convert("RGB")
        small.thumbnail((max_side_px, max_side_px), Image.Resampling.LANCZOS)
        return _encoded(small, "JPEG")


def small_picture(jpeg: bytes, size: SizePx) -> ImageArray:
    """A kept picture as uint8 RGB of that size, for looking at it coarsely."""
    wanted_wh = (size.w_px, size.h_px)
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as picture:
        picture.draft("RGB", wanted_wh)
        small = picture.convert("RGB").resize(wanted_wh, Image.Resampling.BOX)
    return np.array(small, dtype=np.uint8)


def as_jpeg(img_hwc: ImageArray) -> bytes:
    """A picture as a JPEG."""
    return _encoded(Image.fromarray(img_hwc), "JPEG")


def draw_overlay(hit: HitPicture, max_side_px: int, form: Literal["JPEG", "PNG"]) -> bytes:
    """A hit's picture with the matched region tinted and its box drawn, in that format.

    Raises ``InputInvalid`` for a cell outside its grid.
    """
    picture = Image.fromarray(hit.img_hwc)
    side_px = min(max_side_px, max(picture.size))
    shown = _with_region(_fit(picture, side_px, side_px), hit)
    if hit.box is not None:
        _outline(shown, _corners(hit.box, shown), _BOX, width_px=2)
    return _encoded(shown, form)


def draw_roi(img_hwc: ImageArray, roi: Roi, max_side_px: int) -> bytes:
    """A query's picture with its region outlined, as a JPEG."""
    picture = Image.fromarray(img_hwc)
    side_px = min(max_side_px, max(picture.size))
    shown = _fit(picture, side_px, side_px)
    _outline(shown, _corners(roi, shown), _ROI, width_px=3)
    return _encoded(shown, "JPEG")


def _encoded(picture: Image.Image, form: Literal["JPEG", "PNG"]) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **({"quality": 88} if form == "JPEG" else {}))
    return out.getvalue()


def _draw_title(sheet: Image.Image, title: str, hits: Sequence[HitPicture]) -> None:
    draw = ImageDraw.Draw(sheet)
    _text(draw, (_MARGIN_PX, 46), title, size_px=30, colour=_TEXT)
    right_px = _SHEET_W_PX - _MARGIN_PX
    count = f"{len(hits)} hit" if len(hits) == 1 else f"{len(hits) or 'no'} hits"
    _text(draw, (right_px, 46), count, size_px=20, colour=_MUTED, anchor="rm")
    x_px = right_px - _text_w(count, 20) - 36
    legend = [("matched region", _REGION), ("query region", _ROI)]
    if any(hit.box is not None for hit in hits):
        legend.insert(0, ("hit box", _BOX))
    for label, colour in legend:
        _text(draw, (x_px, 46), label, size_px=20, colour=_MUTED, anchor="rm")
        x_px -= _text_w(label, 20) + 26
        draw.rounded_rectangle((x_px, 38, x_px + 16, 54), 3, outline=colour, width=3)
        x_px -= 28


def _query_panel(query_img_hwc: ImageArray, roi: Roi) -> Image.Image:
    """The query with its ROI, and below it the ROI's box enlarged."""
    inner_w_px = _QUERY_W_PX - 2 * _PAD_PX
    whole = _fit(Image.fromarray(query_img_hwc), inner_w_px, _QUERY_MAX_H_PX)
    bounds = _bounds(roi)
    h_px, w_px = query_img_hwc.shape[:2]
    x0, y0 = math.floor(bounds.x0 * w_px), math.floor(bounds.y0 * h_px)
    x1, y1 = math.ceil(bounds.x1 * w_px), math.ceil(bounds.y1 * h_px)
    region = Image.fromarray(query_img_hwc[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)])
    crop = _fit(region, inner_w_px, _CROP_MAX_H_PX)
    _outline(whole, _corners(roi, whole), _ROI, width_px=4)
    panel_h_px = 2 * _LABEL_H_PX + whole.height + crop.height + 3 * _PAD_PX
    panel = _card(_QUERY_W_PX, panel_h_px)
    draw = ImageDraw.Draw(panel)
    y_px = _PAD_PX
    for label, picture in (("Query", whole), ("Query region", crop)):
        _text(draw, (_PAD_PX, y_px + 10), label, size_px=19, colour=_MUTED)
        y_px += _LABEL_H_PX - _PAD_PX // 2
        panel.paste(picture, ((_QUERY_W_PX - picture.width) // 2, y_px))
        y_px += picture.height + _PAD_PX + _PAD_PX // 2
    return panel


def _hits_panel(hits: Sequence[HitPicture]) -> Image.Image:
    panel_w_px = _SHEET_W_PX - 2 * _MARGIN_PX - _QUERY_W_PX - _GAP_PX
    if not hits:
        panel = _card(panel_w_px, 160)
        middle = (panel_w_px / 2, 80)
        _text(
            ImageDraw.Draw(panel),
            middle,
            "Nothing found for this region",
            size_px=22,
            colour=_MUTED,
            anchor="mm",
        )
        return panel
    columns = 2 if len(hits) <= 4 else 3 if len(hits) <= 12 else 4
    card_w_px = (panel_w_px - (columns - 1) * _GAP_PX) // columns
    # Pictures taller than 4:3 are bounded so that one portrait does not stretch its whole row.
    pictures = [_fit(Image.fromarray(hit.img_hwc), card_w_px, card_w_px * 3 // 4) for hit in hits]
    cards: list[Image.Image] = []
    for start in range(0, len(hits), columns):
        picture_h_px = max(picture.height for picture in pictures[start : start + columns])
        for hit, picture in list(zip(hits, pictures, strict=True))[start : start + columns]:
            cards.append(_hit_card(hit, picture, card_w_px, picture_h_px))
    y_px = [0]
    for card in cards[::columns]:
        y_px.append(y_px[-1] + card.height + _GAP_PX)
    panel = Image.new("RGB", (panel_w_px, y_px[-1] - _GAP_PX), _BACKGROUND)
    for i, card in enumerate(cards):
        panel.paste(card, (i % columns * (card_w_px + _GAP_PX), y_px[i // columns]))
    return panel


def _hit_card(
    hit: HitPicture, picture: Image.Image, card_w_px: int, picture_h_px: int
) -> Image.Image:
    shown = _with_region(picture, hit)
    if hit.box is not None:
        _outline(shown, _corners(hit.box, shown), _BOX, width_px=2)
    card = _card(card_w_px, picture_h_px + _CAPTION_H_PX)
    card.paste(shown, ((card_w_px - shown.width) // 2, (picture_h_px - shown.height) // 2))
    draw = ImageDraw.Draw(card)
    large_px, small_px = (19, 15) if card_w_px >= 300 else (16, 13)
    top_px, bottom_px = picture_h_px + 19, picture_h_px + 42
    rank, score = f"#{hit.rank}", f"{hit.score:.3f}"
    camera_x_px = _PAD_PX + _text_w(rank, large_px) + 10
    score_x_px = card_w_px - _PAD_PX
    room_px = score_x_px - _text_w(score, large_px) - 10 - camera_x_px
    camera = _short(hit.camera, large_px, room_px)
    time = hit.t_utc.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-4] + " UTC"
    _text(draw, (_PAD_PX, top_px), rank, size_px=large_px, colour=_REGION)
    _text(draw, (camera_x_px, top_px), camera, size_px=large_px, colour=_TEXT)
    _text(draw, (score_x_px, top_px), score, size_px=large_px, colour=_TEXT, anchor="rm")
    _text(draw, (_PAD_PX, bottom_px), time, size_px=small_px, colour=_MUTED)
    return card


def _with_region(picture: Image.Image, hit: HitPicture) -> Image.Image:
    """The picture with the cells of G* tinted and their common outline drawn."""
    grid = hit.grid
    if hit.cell_index.size and not (
        hit.cell_index.min() >= 0 and hit.cell_index.max() < grid.cells
    ):
        raise InputInvalid(
            f"hit {hit.rank} has cells {hit.cell_index.min()}..{hit.cell_index.max()} outside its "
            f"grid of {grid.h} x {grid.w}; give the grid the region was grown on"
        )
    inside = np.zeros((grid.h + 2, grid.w + 2), dtype=np.bool_)
    inside[1 + hit.cell_index // grid.w, 1 + hit.cell_index % grid.w] = True
    x_px = np.round(np.arange(grid.w + 1) * picture.width / grid.w).astype(int).tolist()
    y_px = np.round(np.arange(grid.h + 1) * picture.height / grid.h).astype(int).tolist()
    mask = Image.new("L", picture.size, 0)
    fill = ImageDraw.Draw(mask)
    edges: list[tuple[int, int, int, int]] = []
    for row, col in np.argwhere(inside[1:-1, 1:-1]).tolist():
        x0, x1, y0, y1 = x_px[col], x_px[col + 1] - 1, y_px[row], y_px[row + 1] - 1
        fill.rectangle((x0, y0, x1, y1), fill=round(255 * _REGION_ALPHA))
        sides = {(-1, 0): (x0, y0, x1, y0), (1, 0): (x0, y1, x1, y1)}
        sides |= {(0, -1): (x0, y0, x0, y1), (0, 1): (x1, y0, x1, y1)}
        edges += [
            side for (dr, dc), side in sides.items() if not inside[row + 1 + dr, col + 1 + dc]
        ]
    tinted = Image.composite(Image.new("RGB", picture.size, _REGION), picture, mask)
    draw = ImageDraw.Draw(tinted)
    for xa, ya, xb, yb in edges:
        draw.rectangle((xa - 1, ya - 1, xb + 1, yb + 1), fill=_REGION)
    return tinted


def _outline(picture: Image.Image, corners: Sequence[_XyPx], colour: _Rgb, width_px: int) -> None:
    """A closed line with a thin dark rim, so that it shows on bright pictures too."""
    draw = ImageDraw.Draw(picture)
    closed = [*corners, corners[0], corners[1]]
    draw.line(closed, fill=_BACKGROUND, width=width_px + 3, joint="curve")
    draw.line(closed, fill=colour, width=width_px, joint="curve")


def _corners(roi: Roi, picture: Image.Image) -> list[_XyPx]:
    if isinstance(roi, Polygon):
        points = roi.points
    else:
        points = (
            Point(roi.x0, roi.y0),
            Point(roi.x1, roi.y0),
            Point(roi.x1, roi.y1),
            Point(roi.x0, roi.y1),
        )
    # Lines on the very border would be half outside the picture.
    right_px, bottom_px = picture.width - 3.0, picture.height - 3.0
    return [
        (min(max(point.x * picture.width, 2.0), right_px),
         min(max(point.y * picture.height, 2.0), bottom_px))
        for point in points
    ]  # fmt: skip


def _bounds(roi: Roi) -> Box:
    if isinstance(roi, Box):
        return roi
    xs, ys = [point.x for point in roi.points], [point.y for point in roi.points]
    return Box(max(min(xs), 0.0), max(min(ys), 0.0), min(max(xs), 1.0), min(max(ys), 1.0))


def _fit(picture: Image.Image, max_w_px: int, max_h_px: int) -> Image.Image:
    scale = min(max_w_px / picture.width, max_h_px / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _card(w_px: int, h_px: int) -> Image.Image:
    card = Image.new("RGB", (w_px, h_px), _BACKGROUND)
    ImageDraw.Draw(card).rounded_rectangle((0, 0, w_px - 1, h_px - 1), 8, fill=_CARD)
    return card


def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size_px)


def _text(
    draw: ImageDraw.ImageDraw,
    at: _XyPx,
    text: str,
    *,
    size_px: int,
    colour: _Rgb,
    anchor: str = "lm",
) -> None:
    draw.text(at, text, fill=colour, font=_font(size_px), anchor=anchor)


def _text_w(text: str, size_px: int) -> int:
    return math.ceil(_font(size_px).getlength(text))


def _short(text: str, size_px: int, room_px: int) -> str:
    if _text_w(text, size_px) <= room_px:
        return text
    while text and _text_w(text + "...", size_px) > room_px:
        text = text[:-1]
    return text + "..."
