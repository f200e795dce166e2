from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from tests.video.clips import FPS, H_PX, W_PX, make_clip, numbered, read_number, real_clip
from worker.core.sampling import ChangePolicy, IntervalPolicy, KeyframePolicy, SamplingPolicy
from worker.core.types import ImageArray, SizePx
from worker.errors import InputInvalid, VideoInvalid, VideoUnreadable
from worker.video.decode import sample_video
from worker.video.probe import probe
from worker.video.values import DecodeReport, SampledFrame

INPUT = SizePx(64, 96)
EVERY = IntervalPolicy(0.001)

CONTAINERS = [
    ("a.mp4", "libx264", None),
    ("a.mov", "mpeg4", None),
    ("a.mkv", "libx264", None),
    ("a.webm", "libvpx-vp9", None),
    ("a.avi", "mpeg4", None),
    ("a.ts", "libx264", "mpegts"),
    ("b.ts", "mpeg2video", "mpegts"),
    ("a.flv", "libx264", None),
    ("a.h264", "libx264", "h264"),
    ("a.mjpeg", "mjpeg", "mjpeg"),
]
IDS = [name for name, _, _ in CONTAINERS]


def sample(
    path: Path, policy: SamplingPolicy, resume_after_pts: int | None = None, **kwargs: int
) -> tuple[list[SampledFrame], DecodeReport]:
    settings = {"picture_max_side_px": 1920, "max_px": 10_000_000, "threads": 1} | kwargs
    with sample_video(
        path, policy, input_size=INPUT, resume_after_pts=resume_after_pts, **settings
    ) as video:
        frames = list(video)
        return frames, video.report


def shown(frames: list[SampledFrame]) -> list[tuple[int, float]]:
    return [(read_number(frame.img_picture_hwc), round(frame.t_s, 6)) for frame in frames]


def decode_everything(path: Path) -> list[tuple[int, bool, ImageArray]]:
    with av.open(str(path)) as container:
        return [
            (
                frame.pts or 0,
                bool(frame.key_frame),
                np.array(frame.to_ndarray(format="rgb24"), np.uint8),
            )
            for frame in container.decode(video=0)
        ]


@pytest.mark.parametrize(("name", "codec", "container"), CONTAINERS, ids=IDS)
def test_the_right_pictures_at_the_right_times(
    tmp_path: Path, name: str, codec: str, container: str | None
) -> None:
    path = make_clip(tmp_path / name, 60, codec=codec, container=container)
    frames, report = sample(path, IntervalPolicy(0.4))
    assert shown(frames) == [(number, number / FPS) for number in range(0, 60, 10)]
    assert (report.frames_decoded, report.frames_kept, report.decode_errors) == (60, 6, 0)
    assert not report.truncated
    assert report.frames_out_of_order == 0


@pytest.mark.parametrize(("name", "codec", "container"), CONTAINERS, ids=IDS)
@pytest.mark.parametrize(
    "policy",
    [IntervalPolicy(0.28), KeyframePolicy(), ChangePolicy(20.0, max_gap_s=0.6)],
    ids=["interval", "keyframe", "change"],
)
def test_a_resumed_run_keeps_what_an_uninterrupted_run_keeps(
    tmp_path: Path, name: str, codec: str, container: str | None, policy: SamplingPolicy
) -> None:
    path = make_clip(tmp_path / name, 60, codec=codec, container=container)
    whole, _ = sample(path, policy)
    assert len(whole) >= 4
    for cut in range(len(whole)):
        rest, _ = sample(path, policy, resume_after_pts=whole[cut].pts)
        assert shown(rest) == shown(whole)[cut + 1 :], f"after picture {cut}"


@pytest.mark.parametrize("clip", ["bikes.mp4", "carphone_pristine.mp4"])
def test_interval_equals_a_naive_scan_on_real_footage(clip: str) -> None:
    path = real_clip(clip)
    slot_pts = Fraction(7, 10) / probe(path, 10**6).time_base
    expected: list[int] = []
    slot = -1
    for pts, _, _ in decode_everything(path):
        if pts // slot_pts > slot:
            slot = pts // slot_pts
            expected.append(pts)
    frames, _ = sample(path, IntervalPolicy(0.7))
    assert [frame.pts for frame in frames] == expected
    middle = expected[len(expected) // 2]
    rest, _ = sample(path, IntervalPolicy(0.7), resume_after_pts=middle)
    assert [frame.pts for frame in rest] == [pts for pts in expected if pts > middle]


@pytest.mark.parametrize(
    ("name", "codec"), [("a.ts", "libx264"), ("b.ts", "mpeg2video"), ("a.mkv", "libx264")]
)
def test_resuming_late_does_not_decode_from_the_start(
    tmp_path: Path, name: str, codec: str
) -> None:
    path = make_clip(tmp_path / name, 1000, codec=codec)
    whole, _ = sample(path, IntervalPolicy(2.1))
    cut = whole[-4]
    rest, report = sample(path, IntervalPolicy(2.1), resume_after_pts=cut.pts)
    assert shown(rest) == shown(whole)[-3:]
    assert report.frames_decoded == 1000 - round(cut.t_s * FPS) - 1
    # Proof by damage: without its first half the file still resumes.
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:20_000] + bytes(half - 20_000) + content[half:])
    assert shown(sample(path, IntervalPolicy(2.1), resume_after_pts=cut.pts)[0]) == shown(rest)


def test_keyframe_policy_decodes_keyframes_only() -> None:
    path = real_clip("bikes.mp4")
    expected = [pts for pts, keyframe, _ in decode_everything(path) if keyframe]
    frames, report = sample(path, KeyframePolicy())
    assert [frame.pts for frame in frames] == expected
    assert all(frame.keyframe for frame in frames)
    assert report.frames_decoded == len(expected) < 250
    assert not report.truncated


def test_keyframes_of_a_raw_stream_get_their_true_times(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.h264", 40, container="h264")
    frames, _ = sample(path, KeyframePolicy())
    keyframes = [i for i, (_, keyframe, _) in enumerate(decode_everything(path)) if keyframe]
    assert len(keyframes) >= 4
    assert shown(frames) == [(number, number / FPS) for number in keyframes]


def test_change_policy_keeps_a_picture_when_the_scene_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=FPS)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = W_PX, H_PX, "yuv420p"
        for i in range(50):
            scene = av.VideoFrame.from_ndarray(numbered(0 if i < 20 else 255), "rgb24")
            scene.pts, scene.time_base = i, Fraction(1, FPS)
            output.mux(stream.encode(scene))
        output.mux(stream.encode())
    frames, _ = sample(path, ChangePolicy(10.0, max_gap_s=60.0))
    assert shown(frames) == [(0, 0.0), (255, 0.8)]


def test_input_is_stretched_and_close_to_the_area_mean(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", 3, size=(192, 128))
    frames, _ = sample(path, EVERY)
    decoded = decode_everything(path)[2][2].astype(np.float32)
    expected = decoded.reshape(64, 2, 96, 2, 3).mean(axis=(1, 3))
    img_hwc = frames[2].img_input_hwc
    assert img_hwc.shape == (64, 96, 3)
    assert img_hwc.dtype == np.uint8
    assert np.abs(img_hwc - expected).mean() < 2.0
    assert read_number(img_hwc) == 2


def test_a_small_video_is_enlarged_for_the_input_only(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", 2, size=(64, 48))
    frames, _ = sample(path, EVERY)
    assert frames[1].img_input_hwc.shape == (64, 96, 3)
    assert frames[1].img_picture_hwc.shape == (48, 64, 3)
    assert read_number(frames[1].img_input_hwc) == 1


def test_the_kept_picture_is_bounded_and_never_enlarged(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", 2)
    assert sample(path, EVERY, picture_max_side_px=80)[0][0].img_picture_hwc.shape == (60, 80, 3)
    assert sample(path, EVERY)[0][0].img_picture_hwc.shape == (H_PX, W_PX, 3)


def test_non_square_pixels_are_honoured(tmp_path: Path) -> None:
    wide, _ = sample(real_clip("carphone_pristine.mp4"), IntervalPolicy(1.0))
    assert wide[0].img_picture_hwc.shape == (144, 193, 3)
    tall = make_clip(tmp_path / "a.mp4", 2, pixel_aspect=Fraction(1, 2))
    assert sample(tall, EVERY)[0][0].img_picture_hwc.shape == (2 * H_PX, W_PX, 3)


@pytest.mark.parametrize(
    ("ccw_deg", "red_at", "blue_at"),
    [  # red is lower left and blue lower right in the coded picture
        (0, (-8, 8), (-8, -8)),
        (90, (-8, -8), (8, -8)),
        (180, (8, -8), (8, 8)),
        (-90, (8, 8), (-8, 8)),
    ],
)
def test_rotation_is_applied_to_both_pictures(
    tmp_path: Path, ccw_deg: int, red_at: tuple[int, int], blue_at: tuple[int, int]
) -> None:
    path = make_clip(tmp_path / "a.mp4", 2, rotation_ccw_deg=ccw_deg)
    frame = sample(path, EVERY)[0][0]
    turned = ccw_deg in (90, -90)
    assert frame.img_picture_hwc.shape == ((W_PX, H_PX, 3) if turned else (H_PX, W_PX, 3))
    assert frame.img_input_hwc.shape == (*INPUT, 3)
    for img_hwc in (frame.img_picture_hwc, frame.img_input_hwc):
        assert img_hwc.flags.c_contiguous
        assert int(img_hwc[red_at][0]) > int(img_hwc[red_at][2]) + 80
        assert int(img_hwc[blue_at][2]) > int(img_hwc[blue_at][0]) + 80


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts"])
def test_times_count_from_an_offset_start(tmp_path: Path, name: str) -> None:
    path = make_clip(tmp_path / name, 30, start=1000)
    frames, _ = sample(path, IntervalPolicy(0.4))
    assert shown(frames) == [(0, 0.0), (10, 0.4), (20, 0.8)]


def test_times_count_from_a_negative_start(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.ts", 30, start=-10, container="mpegts")
    frames, report = sample(path, IntervalPolicy(0.4))
    assert shown(frames) == [(0, 0.0), (10, 0.4), (20, 0.8)]
    assert report.frames_decoded == 30


def test_irregular_times_are_kept_as_they_are(tmp_path: Path) -> None:
    times = [0, 1, 2, 10, 11, 40, 41, 42, 100, 101]
    path = make_clip(tmp_path / "a.mkv", 10, pts_of=times)
    frames, report = sample(path, EVERY)
    assert shown(frames) == [(i, t / FPS) for i, t in enumerate(times)]
    assert report.last_pts == frames[-1].pts == 4040


def test_pictures_out_of_order_are_dropped_and_counted(tmp_path: Path) -> None:
    # AVI stores no presentation times, so reordered pictures come with times that go back.
    path = make_clip(tmp_path / "a.avi", 40, codec="libx264")
    frames, report = sample(path, EVERY)
    times = [frame.pts for frame in frames]
    assert times == sorted(set(times))
    assert report.frames_out_of_order > 0
    assert report.frames_out_of_order + len(frames) == report.frames_decoded == 40


@pytest.mark.parametrize("name", ["a.mkv", "a.avi", "faststart.mp4"])
def test_a_cut_off_file_yields_what_it_holds(tmp_path: Path, name: str) -> None:
    options = {"movflags": "faststart"} if name.endswith("mp4") else {}
    path = make_clip(tmp_path / name, 100, codec="mpeg4", container_options=options)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    frames, report = sample(path, IntervalPolicy(0.4))
    assert 2 <= len(frames) < 10
    assert shown(frames) == [(i, i / FPS) for i in range(0, 10 * len(frames), 10)]
    assert report.truncated
    assert report.frames_decoded < 100
    keyframes, by_keyframe = sample(path, KeyframePolicy())
    assert keyframes
    assert by_keyframe.truncated


def test_a_cut_off_file_without_its_index_is_invalid(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(real_clip("bikes.mp4").read_bytes()[:400_000])  # its index is at the end
    with pytest.raises(VideoInvalid, match=r"a\.mp4"):
        sample(path, EVERY)


def test_damage_in_the_middle_is_counted_and_passed(tmp_path: Path) -> None:
    content = bytearray(real_clip("bikes.mp4").read_bytes())
    for at in range(60_000, len(content) - 60_000, 7_001):
        content[at : at + 200] = b"\xa5" * 200
    path = tmp_path / "damaged.mp4"
    path.write_bytes(content)
    frames, report = sample(path, IntervalPolicy(1.0))
    assert report.decode_errors > 0
    assert 200 < report.frames_decoded < 250
    assert [round(frame.t_s) for frame in frames] == list(range(10))


def test_a_nonsense_colour_matrix_is_read_as_the_usual_one(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", 3, options={"x264-params": "colormatrix=ICtCp"})
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).colorspace == 14
    assert [number for number, _ in shown(sample(path, EVERY)[0])] == [0, 1, 2]


def test_threads_change_nothing(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", 40)
    one, _ = sample(path, IntervalPolicy(0.2))
    more, _ = sample(path, IntervalPolicy(0.2), threads=2)
    assert shown(one) == shown(more)
    assert all(
        np.array_equal(a.img_input_hwc, b.img_input_hwc) for a, b in zip(one, more, strict=True)
    )


def test_stopping_early_reports_what_was_done_and_closes(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", 60)
    with sample_video(
        path, IntervalPolicy(0.4), input_size=INPUT, picture_max_side_px=100, max_px=10**6
    ) as video:
        next(video)
        next(video)
        assert video.report.frames_kept == 2
        assert not video.report.truncated
        assert video.report.frames_expected == 60
    assert not any(
        Path(f"/proc/self/fd/{fd.name}").exists()
        and Path(f"/proc/self/fd/{fd.name}").resolve() == path
        for fd in Path("/proc/self/fd").iterdir()
    )


def test_resuming_after_the_last_picture_yields_nothing(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", 30)
    last = sample(path, EVERY)[0][-1]
    assert sample(path, EVERY, resume_after_pts=last.pts)[0] == []


def test_refusals_come_before_the_first_picture(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", 3)
    with pytest.raises(VideoUnreadable):
        sample(tmp_path / "none.mp4", EVERY)
    with pytest.raises(VideoInvalid, match="RIS_VIDEO_MAX_PX"):
        sample(path, EVERY, max_px=100)
    with pytest.raises(InputInvalid, match="picture_max_side_px"):
        sample(path, EVERY, picture_max_side_px=0)
    with (
        pytest.raises(InputInvalid, match="input_size"),
        sample_video(path, EVERY, input_size=SizePx(0, 5), picture_max_side_px=9, max_px=10**6),
    ):
        pass
