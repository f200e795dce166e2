from __future__ import annotations

import io
import struct
import zlib
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.video.clips import real_clip
from worker.core.sampling import IntervalPolicy
from worker.core.types import Box, GridSize, ImageArray, Point, Polygon, SizePx
from worker.errors import InputInvalid, PictureInvalid, StorageFailed
from worker.video.decode import sample_video
from worker.video.picture import HitPicture, draw_hits, load_query_picture

MAX_PX = 1_000_000


def halves(h_px: int = 40, w_px: int = 60) -> ImageArray:
    """Red on the left, blue on the right."""
    img_hwc = np.zeros((h_px, w_px, 3), np.uint8)
    img_hwc[:, : w_px // 2, 0] = 200
    img_hwc[:, w_px // 2 :, 2] = 200
    return img_hwc


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_pictures_are_read_from_bytes_and_files_alike(tmp_path: Path, kind: str) -> None:
    content = encoded(Image.fromarray(halves()), kind)
    path = tmp_path / "query"
    path.write_bytes(content)
    img_hwc = load_query_picture(content, MAX_PX)
    assert img_hwc.shape == (40, 60, 3)
    assert img_hwc.dtype == np.uint8
    assert np.abs(img_hwc[20, [5, 55]].astype(int) - halves()[20, [5, 55]]).max() < 12
    assert np.array_equal(img_hwc, load_query_picture(path, MAX_PX))


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn a quarter clockwise
    img_hwc = load_query_picture(encoded(Image.fromarray(halves()), "PNG", exif=exif), MAX_PX)
    assert img_hwc.shape == (60, 40, 3)
    assert img_hwc[5, 20].tolist() == [200, 0, 0]
    assert img_hwc[55, 20].tolist() == [0, 0, 200]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_every_colour_mode_becomes_rgb(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    img_hwc = load_query_picture(encoded(Image.new(mode, (8, 6)), kind), MAX_PX)
    assert img_hwc.shape == (6, 8, 3)


def test_16_bit_grey_keeps_its_shades() -> None:
    ramp = np.arange(0, 65_536, 1024, dtype=np.uint16).reshape(8, 8)
    img_hwc = load_query_picture(encoded(Image.fromarray(ramp), "PNG"), MAX_PX)
    assert img_hwc[..., 0].ravel().tolist() == list(range(0, 256, 4))


def png_header(w_px: int, h_px: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", w_px, h_px, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 100) + b"IDAT" + b"x\x9c"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side_px", [1001, 12_000, 60_000])
def test_size_is_checked_before_any_pixel_is_decoded(side_px: int) -> None:
    with pytest.raises(PictureInvalid, match="scale it down"):
        load_query_picture(png_header(side_px, side_px), MAX_PX)


def test_the_limit_itself_is_accepted() -> None:
    content = encoded(Image.new("RGB", (1000, 1000)), "PNG")
    assert load_query_picture(content, MAX_PX).shape == (1000, 1000, 3)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a picture at all",
        png_header(0, 10),
        png_header(10, 10),
        encoded(Image.fromarray(halves()), "JPEG")[:300],
        encoded(Image.fromarray(halves(400, 400)), "PNG")[:-40],
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
    ],
    ids=["empty", "text", "no-width", "no-pixels", "cut-jpeg", "cut-png", "eps"],
)
def test_unreadable_pictures_are_invalid(content: bytes) -> None:
    with pytest.raises(PictureInvalid, match=f"picture of {len(content)} bytes"):
        load_query_picture(content, MAX_PX)


def test_missing_files_and_folders_are_invalid(tmp_path: Path) -> None:
    with pytest.raises(PictureInvalid, match=r"none\.jpg.*No such file"):
        load_query_picture(tmp_path / "none.jpg", MAX_PX)
    with pytest.raises(PictureInvalid, match="directory"):
        load_query_picture(tmp_path, MAX_PX)


GRID = GridSize(4, 4)
GREEN = (52, 224, 120)
AMBER = (255, 176, 32)


def hit(rank: int = 1, cells: tuple[int, ...] = (5, 6), **changes: object) -> HitPicture:
    fields: dict[str, object] = {
        "img_hwc": np.full((90, 160, 3), 100, np.uint8),
        "rank": rank,
        "camera": "Gate north",
        "t_utc": datetime(2026, 3, 1, 8, 0, tzinfo=UTC),
        "score": 0.9,
        "cell_index": np.array(cells, np.int64),
        "grid": GRID,
    }
    return HitPicture(**(fields | changes))  # type: ignore[arg-type]


def drawn(tmp_path: Path, *hits: HitPicture, roi: Box | Polygon | None = None) -> ImageArray:
    path = tmp_path / "result.png"
    query = np.full((90, 160, 3), 60, np.uint8)
    size = draw_hits(query, roi or Box(0.25, 0.25, 0.75, 0.75), hits, path)
    img_hwc = np.asarray(Image.open(path).convert("RGB"))
    assert SizePx(*img_hwc.shape[:2]) == size
    return img_hwc


def where(img_hwc: ImageArray, colour: tuple[int, int, int]) -> Box:
    """Bounding box, in pixels, of a colour below the title and its legend."""
    rows, cols = np.nonzero((img_hwc[92:] == colour).all(axis=2))
    return Box(cols.min(), rows.min() + 92, cols.max() + 1, rows.max() + 93)


def test_the_roi_is_drawn_where_it_is(tmp_path: Path) -> None:
    roi = where(drawn(tmp_path), AMBER)
    assert (roi.x1 - roi.x0) / (roi.y1 - roi.y0) == pytest.approx(160 / 90, rel=0.05)
    assert (roi.x0 + roi.x1) / 2 == pytest.approx(40 + 310, abs=3)  # middle of the query panel


def test_the_region_is_tinted_and_outlined_where_its_cells_are(tmp_path: Path) -> None:
    img_hwc = drawn(tmp_path, hit(cells=(0, 1, 4, 5)))
    w_px = (1760 - 80 - 620 - 20 - 20) // 2  # two columns of hits
    left_px, top_px = 40 + 620 + 20, 92
    picture = img_hwc[top_px : top_px + round(w_px * 90 / 160), left_px : left_px + w_px]
    middle = picture[picture.shape[0] // 4, w_px // 4 + 40]
    outside = picture[picture.shape[0] * 3 // 4, w_px * 3 // 4]
    assert outside.tolist() == [100, 100, 100]
    assert middle[1] > 130 > middle[0]
    assert tuple(picture[picture.shape[0] // 4, w_px // 2 - 1]) == GREEN  # right edge
    assert tuple(picture[picture.shape[0] // 4, w_px // 4]) != GREEN  # no line between cells


def test_a_hit_without_cells_or_with_a_box_is_drawn(tmp_path: Path) -> None:
    plain = drawn(tmp_path, hit(cells=()))
    boxed = drawn(tmp_path, hit(cells=(), box=Box(0.0, 0.0, 1.0, 1.0)))
    assert plain.shape == boxed.shape
    assert not np.array_equal(plain[92:], boxed[92:])


def test_captions_tell_rank_camera_time_and_score(tmp_path: Path) -> None:
    base = drawn(tmp_path, hit())
    later = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
    changed = [hit(rank=2), hit(camera="Gate south"), hit(t_utc=later), hit(score=0.8)]
    for other in changed:
        assert not np.array_equal(base, drawn(tmp_path, other))
    zoned = datetime(2026, 3, 1, 10, 0, tzinfo=timezone(timedelta(hours=2)))
    assert np.array_equal(base, drawn(tmp_path, hit(t_utc=zoned)))  # shown in UTC


@pytest.mark.parametrize("count", [0, 1, 2, 4, 5, 12, 13, 30])
def test_any_number_of_hits_fits(tmp_path: Path, count: int) -> None:
    portrait = np.full((200, 50, 3), 90, np.uint8)
    hits = [
        hit(
            rank, camera="A very long camera name " * 4, img_hwc=portrait if rank == 2 else halves()
        )
        for rank in range(1, count + 1)
    ]
    img_hwc = drawn(tmp_path, *hits)
    assert img_hwc.shape[1] == 1760
    background = img_hwc[0, 0]
    assert (img_hwc[:, -30:] == background).all()  # nothing runs over the right margin
    assert (img_hwc[-30:] == background).all()


def test_a_polygon_at_the_border_is_drawn(tmp_path: Path) -> None:
    roi = Polygon((Point(0.0, 0.0), Point(1.0, 0.0), Point(0.5, 1.0)))
    assert where(drawn(tmp_path, roi=roi), AMBER).x0 < 60


def test_cells_outside_the_grid_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputInvalid, match="hit 1"):
        drawn(tmp_path, hit(cells=(3, 16)))


def test_a_place_that_cannot_be_written_is_a_storage_failure(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match="nowhere"):
        draw_hits(halves(), Box(0, 0, 1, 1), [], tmp_path / "nowhere" / "result.png")


def test_real_footage_is_drawn(tmp_path: Path) -> None:
    with sample_video(
        real_clip("bikes.mp4"),
        IntervalPolicy(2.0),
        input_size=SizePx(32, 32),
        picture_max_side_px=640,
        max_px=10**6,
    ) as video:
        imgs = [frame.img_picture_hwc for frame in video]
    hits = [hit(rank, img_hwc=img_hwc) for rank, img_hwc in enumerate(imgs[1:], 1)]
    size = draw_hits(imgs[0], Box(0.3, 0.3, 0.6, 0.8), hits, tmp_path / "result.png")
    assert size.w_px == 1760
    assert size.h_px > 500
