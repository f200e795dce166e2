from __future__ import annotations

import os
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image

from tests.video.clips import FPS, H_PX, W_PX, make_audio, make_clip, real_clip
from worker.core.types import SizePx
from worker.errors import VideoInvalid, VideoUnreadable
from worker.video.probe import probe

MAX_PX = 10_000_000


def test_a_real_clip_is_described() -> None:
    info = probe(real_clip("bikes.mp4"), MAX_PX)
    assert (info.codec, info.coded_size, info.display_size) == (
        "h264",
        SizePx(272, 640),
        SizePx(272, 640),
    )
    assert (info.duration_s, info.fps, info.frames_expected) == (10.0, 25.0, 250)
    assert (info.time_base, info.start_pts, info.rotation_deg) == (Fraction(1, 12800), 0, 0)
    assert info.creation_time_utc is None
    assert info.timestamped


def test_non_square_pixels_widen_the_display_size() -> None:
    info = probe(real_clip("carphone_pristine.mp4"), MAX_PX)
    assert info.pixel_aspect == Fraction(128, 117)
    assert info.coded_size == SizePx(144, 176)
    assert info.display_size == SizePx(144, 193)  # 176 * 128 / 117 = 192.5


@pytest.mark.parametrize(
    ("given_ccw", "clockwise", "display"),
    [
        (0, 0, SizePx(H_PX, W_PX)),
        (90, 270, SizePx(W_PX, H_PX)),
        (180, 180, SizePx(H_PX, W_PX)),
        (-90, 90, SizePx(W_PX, H_PX)),
    ],
)
def test_rotation_comes_from_the_display_matrix(
    tmp_path: Path, given_ccw: int, clockwise: int, display: SizePx
) -> None:
    info = probe(make_clip(tmp_path / "a.mp4", 5, rotation_ccw_deg=given_ccw), MAX_PX)
    assert (info.rotation_deg, info.display_size) == (clockwise, display)
    assert info.coded_size == SizePx(H_PX, W_PX)


def test_creation_time_is_aware_utc_and_an_unset_clock_is_none(tmp_path: Path) -> None:
    dated = make_clip(tmp_path / "a.mp4", 5, creation_time="2026-03-01T08:00:00.000000Z")
    assert probe(dated, MAX_PX).creation_time_utc == datetime(2026, 3, 1, 8, tzinfo=UTC)
    unset = make_clip(tmp_path / "b.mp4", 5, creation_time="1970-01-01T00:00:00.000000Z")
    assert probe(unset, MAX_PX).creation_time_utc is None


def test_expected_frames_are_estimated_when_the_container_does_not_count(tmp_path: Path) -> None:
    info = probe(make_clip(tmp_path / "a.mkv", 60), MAX_PX)
    assert (info.frames_expected, info.fps, info.duration_s) == (60, FPS, 2.4)


def test_a_raw_stream_has_no_times_of_its_own(tmp_path: Path) -> None:
    info = probe(make_clip(tmp_path / "a.h264", 20, container="h264"), MAX_PX)
    assert not info.timestamped
    assert info.start_pts == 0


def test_missing_path_and_folder_are_unreadable(tmp_path: Path) -> None:
    with pytest.raises(VideoUnreadable, match=r"none\.mp4.*check the path"):
        probe(tmp_path / "none.mp4", MAX_PX)
    with pytest.raises(VideoUnreadable, match="not a regular file"):
        probe(tmp_path, MAX_PX)
    with pytest.raises(VideoUnreadable, match="check the path"):
        probe(Path("a\0b.mp4"), MAX_PX)


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoUnreadable, match="not a regular file"):
        probe(tmp_path / "pipe.mp4", MAX_PX)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_read_access_is_unreadable(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", 3)
    path.chmod(0)
    with pytest.raises(VideoUnreadable, match="read access"):
        probe(path, MAX_PX)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("empty.mp4", b"", "empty"),
        ("text.mp4", b"these are words, not pictures\n" * 200, "not a video"),
        ("noise.mp4", bytes(range(256)) * 400, "not a video"),
        ("list.m3u8", b"#EXTM3U\n#EXTINF:1,\nreal.ts\n#EXT-X-ENDLIST\n", "not a video"),
        ("list.txt", b"ffconcat version 1.0\nfile real.ts\n", "not a video"),
    ],
)
def test_files_that_are_no_video_are_invalid(
    tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    make_clip(tmp_path / "real.ts", 5, container="mpegts")  # what the playlists point to
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(VideoInvalid, match=told) as caught:
        probe(path, MAX_PX)
    assert str(path) in str(caught.value)


def test_a_name_that_looks_like_a_protocol_is_only_a_file(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", 5).rename(tmp_path / "concat:a|b.mp4")
    assert probe(path, MAX_PX).coded_size == SizePx(H_PX, W_PX)


def test_a_still_picture_is_not_a_video(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (64, 64)).save(path)
    with pytest.raises(VideoInvalid, match="not a video"):
        probe(path, MAX_PX)


def test_audio_only_is_invalid(tmp_path: Path) -> None:
    with pytest.raises(VideoInvalid, match="no video stream"):
        probe(make_audio(tmp_path / "a.m4a"), MAX_PX)


def test_pictures_above_the_limit_are_refused(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", 3)
    assert probe(path, W_PX * H_PX).coded_size == SizePx(H_PX, W_PX)
    with pytest.raises(VideoInvalid, match=r"160 x 120.*RIS_VIDEO_MAX_PX"):
        probe(path, W_PX * H_PX - 1)


def test_a_codec_outside_the_list_is_refused(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.avi", 3, codec="huffyuv", pixel_format="yuv422p")
    with pytest.raises(VideoInvalid, match="huffyuv"):
        probe(path, MAX_PX)


def test_a_header_without_a_decodable_picture_is_invalid(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mkv", 30)
    whole = path.read_bytes()
    start = whole.index(b"\x1f\x43\xb6\x75")  # the first cluster: everything after the header
    path.write_bytes(whole[: start + 12])
    with pytest.raises(VideoInvalid, match=r"a\.mkv"):
        probe(path, MAX_PX)
