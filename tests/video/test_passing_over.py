"""What is not decoded is not missed: the same pictures as of decoding everything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from tests.video.clips import FPS, GOP, make_clip
from worker.core.sampling import (
    ChangePolicy,
    IntervalPolicy,
    KeyframePolicy,
    SamplingPolicy,
    sampler,
)
from worker.core.types import SizePx
from worker.video import passing_over
from worker.video.container import packets, video_stream
from worker.video.decode import sample_video
from worker.video.passing_over import PassingOver
from worker.video.probe import probe

COUNT = 100
GOPS = {
    "closed": ("a.mp4", "libx264", {"bf": "0"}),
    "b-pictures": ("a.mp4", "libx264", {"bf": "3", "x264-params": "b-pyramid=normal"}),
    "open": ("a.mkv", "libx264", {"bf": "3", "x264-params": "open-gop=1:b-pyramid=strict"}),
    "hevc-open": ("a.mp4", "libx265", {"x265-params": "open-gop=1:bframes=4:log-level=none"}),
    "mpeg2-open": ("a.ts", "mpeg2video", {"bf": "2"}),
    "vp9": ("a.webm", "libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "10"}),
    "all-keyframes": ("a.mp4", "libx264", {"g": "1"}),
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gops")
    made = {}
    for kind, (name, codec, options) in GOPS.items():
        (folder / kind).mkdir()
        made[kind] = make_clip(folder / kind / name, COUNT, codec=codec, options=options)
    return made


def pictures(path: Path, policy: SamplingPolicy, threads: int = 1):
    size = SizePx(60, 80)
    with sample_video(
        path, policy, input_size=size, picture_max_side_px=80, max_px=10**6, threads=threads
    ) as video:
        found = [(frame.pts, frame.img_input_hwc) for frame in video]
        return found, video.report


def all_of_them(monkeypatch: pytest.MonkeyPatch, path: Path, policy: SamplingPolicy):
    with monkeypatch.context() as patch:
        patch.setattr(PassingOver, "needed", lambda _self, read: read)
        return pictures(path, policy)


@pytest.mark.parametrize("kind", GOPS)
@pytest.mark.parametrize("threads", [1, 3])
def test_the_pictures_are_those_of_decoding_everything(
    clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: str, threads: int
) -> None:
    for frames in (1, 3, 7, GOP - 1, GOP, GOP + 1, 25, 38):
        for policy in (
            IntervalPolicy(frames / FPS),
            IntervalPolicy(frames / FPS + 0.003),
            ChangePolicy(4.0, max_gap_s=60.0, min_gap_s=frames / FPS),
        ):
            expected, _ = all_of_them(monkeypatch, clips[kind], policy)
            found, report = pictures(clips[kind], policy, threads)
            assert [pts for pts, _ in found] == [pts for pts, _ in expected], policy
            for (_, one), (_, other) in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other)
            assert (report.frames_decoded, report.decode_errors) == (COUNT, 0)
            assert report.frames_listed in (None, COUNT)


@pytest.mark.parametrize(
    ("every_frames", "most"),
    [(2 * GOP, 0.3), (GOP + GOP // 2, 0.6), (5 * GOP, 0.15)],  # a decoder delays its pictures
)
def test_what_nothing_wanted_stands_on_is_not_decoded(
    clips: dict[str, Path], every_frames: int, most: float
) -> None:
    path = clips["closed"]
    given = decoded_packets(path, IntervalPolicy(every_frames / FPS))
    assert 1 <= given <= most * COUNT


def decoded_packets(path: Path, policy: SamplingPolicy) -> int:
    info, given = probe(path, 10**6), 0
    chosen = sampler(policy)
    with av.open(str(path)) as container:
        stream = video_stream(container, path, 10**6, threads=1)
        passed: Callable[[int], None] = lambda _pts: None  # noqa: E731
        for packet in PassingOver(info, chosen.next_s, passed).needed(packets(container, stream)):
            if packet is None:
                stream.codec_context.flush_buffers()
                continue
            given += packet.size > 0
            for picture in packet.decode():
                assert picture.pts is not None
                chosen.keep(info.t_s(picture.pts), bool(picture.key_frame))
    return given


def test_what_is_held_back_is_bounded(
    clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passing_over, "_HELD_BYTES", 1)
    expected, _ = all_of_them(monkeypatch, clips["b-pictures"], IntervalPolicy(1.5))
    found, report = pictures(clips["b-pictures"], IntervalPolicy(1.5))
    assert [pts for pts, _ in found] == [pts for pts, _ in expected]
    assert report.frames_decoded == COUNT
    assert decoded_packets(clips["closed"], IntervalPolicy(1.5)) > COUNT / 2


@pytest.mark.parametrize("policy", [IntervalPolicy(0.8), KeyframePolicy(0.8)], ids=["every", "key"])
def test_times_that_start_again_are_counted(tmp_path: Path, policy: SamplingPolicy) -> None:
    once = make_clip(tmp_path / "once.ts", COUNT)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(once.read_bytes() * 2)
    _, first = pictures(once, policy)
    _, both = pictures(joined, policy)
    assert (first.frames_out_of_order, both.frames_out_of_order) == (0, first.frames_decoded)
