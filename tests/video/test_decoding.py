"""Decoding apart: the same pictures, and no file that gets past the limits of its process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
from av.video.stream import VideoStream

from tests.video.clips import FPS, make_audio, make_clip, real_clip
from tests.video.test_decode import CONTAINERS, IDS, sample, shown
from worker.core.sampling import ChangePolicy, IntervalPolicy, KeyframePolicy, SamplingPolicy
from worker.core.types import SizePx
from worker.errors import (
    InputInvalid,
    RisError,
    SetupFailed,
    VideoInvalid,
    VideoKilledDecoder,
    VideoTooSlow,
    VideoUnreadable,
)
from worker.video import decoding
from worker.video.decoding import network_of_decoders, probe_apart, sample_apart
from worker.video.probe import probe
from worker.video.values import DecodeReport, SampledFrame

INPUT = SizePx(64, 96)
EVERY = IntervalPolicy(0.001)
MAX_PX = 10_000_000


def apart(
    path: Path, policy: SamplingPolicy = EVERY, resume: int | None = None, **given: Any
) -> tuple[list[SampledFrame], DecodeReport]:
    settings = {"picture_max_side_px": 1920, "max_px": MAX_PX, "threads": 1, "deadline_s": 30.0}
    with sample_apart(
        path, policy, input_size=INPUT, resume_after_pts=resume, **(settings | given)
    ) as video:
        frames = list(video)
        return frames, video.report


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have the decoding program do something else than decode."""
    real = decoding.child_command

    def make(what: str) -> None:
        def command(fd: int) -> list[str]:
            *_, fd_given, parent = real(fd)
            return [sys.executable, "-P", "-m", "tests.video.bad_decoder", what, fd_given, parent]

        monkeypatch.setattr(decoding, "child_command", command)

    return make


def own_children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


@pytest.mark.parametrize(("name", "codec", "container"), CONTAINERS, ids=IDS)
@pytest.mark.parametrize(
    "policy", [IntervalPolicy(0.28), KeyframePolicy(), ChangePolicy(20.0, max_gap_s=0.6)]
)
def test_apart_is_the_same_as_here(
    tmp_path: Path, name: str, codec: str, container: str | None, policy: SamplingPolicy
) -> None:
    path = make_clip(tmp_path / name, 60, codec=codec, container=container)
    here, told_here = sample(path, policy)
    there, told_there = apart(path, policy)
    assert told_there == told_here
    assert len(there) >= 4
    for a, b in zip(here, there, strict=True):
        assert (a.pts, a.t_s, a.keyframe) == (b.pts, b.t_s, b.keyframe)
        np.testing.assert_array_equal(a.img_input_hwc, b.img_input_hwc)
        np.testing.assert_array_equal(a.img_picture_hwc, b.img_picture_hwc)
    assert probe_apart(path, MAX_PX, deadline_s=30) == probe(path, MAX_PX)
    cut = there[1].pts
    assert shown(apart(path, policy, cut)[0]) == shown(here)[2:]


def test_the_report_is_of_the_picture_given_last(tmp_path: Path) -> None:
    """The process is ahead of who reads; what is recorded with a picture must not be."""
    path = make_clip(tmp_path / "a.mp4", 60)
    with sample_apart(
        path,
        IntervalPolicy(0.4),
        input_size=INPUT,
        picture_max_side_px=100,
        max_px=MAX_PX,
        deadline_s=30,
        threads=1,
    ) as video:
        for kept, frame in enumerate(video, 1):
            time.sleep(0.02)
            assert video.report.frames_kept == kept
            assert video.report.frames_decoded == round(frame.t_s * FPS) + 1
        assert video.report.frames_decoded == 60
        pid = video.pid
    assert not psutil.pid_exists(pid)


def test_no_process_and_no_descriptor_is_left(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", 60)
    before = _descriptors(os.getpid())
    for policy in (EVERY, KeyframePolicy()):
        apart(path, policy)
        with sample_apart(
            path,
            policy,
            input_size=INPUT,
            picture_max_side_px=100,
            max_px=MAX_PX,
            deadline_s=30,
        ) as video:
            next(video)  # and no more of it
    with pytest.raises(VideoInvalid):
        probe_apart(path, 100, deadline_s=30)
    assert own_children() == []
    assert _descriptors(os.getpid()) == before


def test_refusals_are_those_of_the_decoder(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", 3)
    with pytest.raises(VideoUnreadable, match="check the path"):
        apart(tmp_path / "none.mp4")
    with pytest.raises(VideoUnreadable, match="not a regular file"):
        apart(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(VideoUnreadable, match="not a regular file"):
        apart(tmp_path / "pipe")
    with pytest.raises(VideoInvalid, match=r"a\.mp4.*RIS_VIDEO_MAX_PX"):
        apart(path, max_px=100)
    with pytest.raises(InputInvalid, match="picture_max_side_px"):
        apart(path, picture_max_side_px=0)
    list_of = tmp_path / "list.mp4"
    list_of.write_text(f"ffconcat version 1.0\nfile {path}\n")
    with pytest.raises(VideoInvalid, match="not a video"):
        apart(list_of)


@pytest.mark.parametrize(
    ("what", "expected", "told"),
    [
        ("killed", VideoKilledDecoder, "SIGKILL"),
        ("crashed", VideoKilledDecoder, "SIGSEGV"),
        ("left", VideoKilledDecoder, "status 3"),
        ("greedy", VideoKilledDecoder, "memory"),
        ("unforeseen", VideoKilledDecoder, "ZeroDivisionError: by zero"),
        ("telling", VideoKilledDecoder, "nonsense"),
        ("noise", VideoKilledDecoder, "nonsense"),
        ("long", VideoKilledDecoder, "nonsense"),
        ("nested", VideoKilledDecoder, "nonsense"),
        ("asleep", VideoTooSlow, "RIS_DECODE_DEADLINE_S"),
        ("busy", VideoTooSlow, "RIS_DECODE_DEADLINE_S"),
        ("alive for ever", VideoTooSlow, "RIS_DECODE_DEADLINE_S"),
    ],
)
@pytest.mark.parametrize("frames", [0, 3])
def test_a_process_that_fails_is_a_typed_error_behind_good_pictures(
    tmp_path: Path,
    failing: Callable[[str], None],
    what: str,
    expected: type[RisError],
    told: str,
    frames: int,
) -> None:
    path = make_clip(tmp_path / "a.mp4", 30)
    failing(f"{frames}:{what}")
    given: list[SampledFrame] = []
    with (
        pytest.raises(expected, match=told) as caught,
        sample_apart(
            path,
            EVERY,
            input_size=INPUT,
            picture_max_side_px=100,
            max_px=MAX_PX,
            deadline_s=0.5 if expected is VideoTooSlow else 30,
            threads=1,
        ) as video,
    ):
        given.extend(video)
    assert [number for number, _ in shown(given)] == list(range(frames))
    assert str(path) in str(caught.value)
    assert not caught.value.retryable
    assert own_children() == []


def test_what_eats_memory_is_stopped_by_its_limit(
    tmp_path: Path, failing: Callable[[str], None]
) -> None:
    """Of 1.3 GB for pictures this small, whatever the machine has."""
    failing("0:greedy")
    most = 0
    ended = threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.01):
            for child in own_children():
                try:
                    most = max(most, child.memory_info().vms)
                except psutil.NoSuchProcess:
                    continue

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        with pytest.raises(VideoKilledDecoder):
            apart(make_clip(tmp_path / "a.mp4", 5))
    finally:
        ended.set()
        watching.join()
    assert 0 < most < 2_000_000_000


def test_killed_from_outside(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", 200)
    given = []
    with (
        pytest.raises(VideoKilledDecoder, match="SIGKILL"),
        sample_apart(
            path,
            EVERY,
            input_size=SizePx(512, 512),  # what is on its way does not hold them all
            picture_max_side_px=1000,
            max_px=MAX_PX,
            deadline_s=30,
        ) as video,
    ):
        for frame in video:
            given.append(frame)
            if len(given) == 5:
                os.kill(video.pid, signal.SIGKILL)
    assert 5 <= len(given) < 200


def test_it_ends_with_who_started_it(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", 60)
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from worker.core.sampling import IntervalPolicy\n"
        "from worker.core.types import SizePx\n"
        "from worker.video.decoding import sample_apart\n"
        "with sample_apart(Path(sys.argv[1]), IntervalPolicy(0.001), input_size=SizePx(900, 900),"
        " picture_max_side_px=900, max_px=10**7, deadline_s=60) as video:\n"
        "    next(video)\n"
        "    print(video.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid = int(done.stdout)
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)  # pytest's own time limit ends it


def test_it_may_not_write_nor_open_much(tmp_path: Path, failing: Callable[[str], None]) -> None:
    path = make_clip(tmp_path / "a.mp4", 5)
    for what, number in (("writing", "(?:13|27)"), ("opening", "24")):  # EACCES or EFBIG, EMFILE
        failing(f"0:{what}")
        with pytest.raises(VideoKilledDecoder, match=f"errno {number}"):
            apart(path)


def test_it_has_no_network(
    tmp_path: Path, failing: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    if network_of_decoders() != "none":
        pytest.skip("this kernel lets no unprivileged process leave the network")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        real = subprocess.Popen

        def popen(*given: Any, **named: Any) -> Any:
            named["env"] = named["env"] | {"PORT": str(port)}
            return real(*given, **named)

        monkeypatch.setattr(subprocess, "Popen", popen)
        failing("0:connecting")
        with pytest.raises(VideoKilledDecoder, match=r"errno (13|101)"):  # EACCES or ENETUNREACH
            apart(make_clip(tmp_path / "a.mp4", 5))


def test_its_environment_holds_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIS_DATABASE_URL", "postgresql://ris:secret@host/ris")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    path = make_clip(tmp_path / "a.mp4", 60)
    with sample_apart(
        path,
        EVERY,
        input_size=SizePx(900, 900),
        picture_max_side_px=900,
        max_px=MAX_PX,
        deadline_s=30,
    ) as video:
        next(video)
        told = Path(f"/proc/{video.pid}/environ").read_bytes()
        opened = {os.path.realpath(f"/proc/{video.pid}/fd/{fd}") for fd in _descriptors(video.pid)}
    assert b"PYTHONPATH" in told
    assert b"secret" not in told
    files = {name for name in opened if name.startswith("/") and "/fd/" not in name}
    assert files == {str(path), os.devnull}


def _descriptors(pid: int) -> set[str]:
    return {entry.name for entry in Path(f"/proc/{pid}/fd").iterdir()}


def test_a_program_that_does_not_start_is_no_fault_of_the_file(
    tmp_path: Path, failing: Callable[[str], None]
) -> None:
    failing("0:before ready")
    with pytest.raises(SetupFailed, match="did not start"):
        apart(make_clip(tmp_path / "a.mp4", 5))


# What files may be like: each is made here, and ends as said.


def _cut(path: Path, whole: Path, share: float) -> Path:
    content = whole.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


def make_streams(path: Path, count: int) -> Path:
    """A file of ``count`` streams of sound besides the video."""
    with av.open(str(path), "w") as output:
        video = output.add_stream("mpeg4", rate=25)
        assert isinstance(video, VideoStream)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sounds = [output.add_stream("mp2", rate=48_000, layout="mono") for _ in range(count)]
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 40 * number, np.uint8), "rgb24")
            frame.pts = number
            output.mux(video.encode(frame))
        for sound in sounds:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), "s16", "mono")
            silence.sample_rate, silence.pts = 48_000, 0
            output.mux(sound.encode(silence))
        output.mux(video.encode())
    return path


def make_bomb(path: Path, codec: str, **given: Any) -> Path:
    """Few bytes that are pictures of 16384 x 8192."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25, options=given)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = 16_384, 8_192
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        frame = av.VideoFrame(16_384, 8_192, stream.pix_fmt)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.pts = 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def _touch(path: Path) -> Path:
    path.touch()
    return path


def _cut_moov(folder: Path) -> Path:
    """An index at the front that ends half-way, and nothing behind it."""
    content = make_clip(
        folder / "w.mp4", 60, container_options={"movflags": "faststart"}
    ).read_bytes()
    at = content.index(b"moov")
    path = folder / "a.mp4"
    path.write_bytes(content[: at + 300])
    return path


PIXEL_FORMATS = (
    *("yuv410p", "yuv411p", "yuv444p", "yuva420p", "yuv422p10le", "yuv420p16le"),
    *("gray", "gray16le", "bgr0", "gbrp12le", "rgb48le"),
)


def _coloured(pixel_format: str, folder: Path) -> Path:
    return make_clip(folder / "a.mkv", 20, codec="ffv1", pixel_format=pixel_format)


CORPUS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty": (lambda f: _touch(f / "a.mp4"), "video_invalid"),
    "audio only": (lambda f: make_audio(f / "a.m4a"), "video_invalid"),
    "no moov": (lambda f: _cut(f / "a.mp4", make_clip(f / "w.mp4"), 0.6), "video_invalid"),
    "cut moov": (_cut_moov, "video_invalid"),
    "one frame": (lambda f: make_clip(f / "a.mp4", 1), "done"),
    "rotated": (lambda f: make_clip(f / "a.mp4", 20, rotation_ccw_deg=90), "done"),
    "negative pts": (lambda f: make_clip(f / "a.mkv", 20, start=-10), "done"),
    "cut": (lambda f: _cut(f / "a.mkv", make_clip(f / "w.mkv", 200), 0.6), "partial"),
    "1000 streams": (lambda f: make_streams(f / "a.mov", 999), "done"),
    "bomb h264": (
        lambda f: make_bomb(f / "a.mkv", "libx264", preset="ultrafast"),
        "video_invalid",
    ),
    "bomb mjpeg": (lambda f: make_bomb(f / "a.avi", "mjpeg"), "video_invalid"),
    **{name: (partial(_coloured, name), "done") for name in PIXEL_FORMATS},
    "10 bit": (lambda f: make_clip(f / "a.mp4", 20, pixel_format="yuv420p10le"), "done"),
}  # fmt: skip


@pytest.mark.parametrize("name", CORPUS)
def test_every_kind_of_file_ends(tmp_path: Path, name: str) -> None:
    make, expected = CORPUS[name]
    path = make(tmp_path)
    before = psutil.Process().memory_info().rss
    try:
        frames, report = apart(path, max_px=8192 * 4320)
        assert frames
        ended = "partial" if report.truncated or report.decode_errors else "done"
    except RisError as error:
        ended = error.code
    assert ended in expected
    assert psutil.Process().memory_info().rss - before < 300 * 1024 * 1024


def test_pictures_that_a_file_lists_and_does_not_hold_are_told(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", 60, codec="mpeg4")
    report = apart(path)[1]
    assert (report.frames_listed, report.frames_decoded) == (60, 60)
    content = bytearray(path.read_bytes())
    sizes = content.index(b"stsz") + 4
    count = int.from_bytes(content[sizes + 8 : sizes + 12], "big")
    assert count == 60
    for entry in range(20, 30):  # sizes of ten pictures become 0: no error, and no picture
        at = sizes + 12 + 4 * entry
        content[at : at + 4] = bytes(4)
    path.write_bytes(content)
    report = apart(path)[1]
    assert report.frames_listed == 60
    assert report.frames_decoded < 60


def test_pictures_that_an_edit_list_hides_are_not_missed(tmp_path: Path) -> None:
    content = bytearray(make_clip(tmp_path / "w.mp4", 60, codec="mpeg4").read_bytes())
    entry = content.index(b"elst") + 12  # version, flags, count: then length, start, rate
    start = int.from_bytes(content[entry + 4 : entry + 8], "big")
    content[entry : entry + 4] = (1200).to_bytes(4, "big")  # 30 pictures from the 25th on
    content[entry + 4 : entry + 8] = (start + 25 * 512).to_bytes(4, "big")
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    report = apart(path)[1]
    assert report.frames_listed == report.frames_decoded == 30
    assert not report.truncated


def test_a_resume_may_take_as_long_as_the_footage_before_it(tmp_path: Path) -> None:
    """A raw stream is decoded from its start: nothing is kept until the resume point."""
    path = make_clip(tmp_path / "a.h264", 500, container="h264")
    whole, _ = apart(path, IntervalPolicy(5.0))
    rest, _ = apart(path, IntervalPolicy(5.0), whole[-2].pts, deadline_s=5.0)
    assert shown(rest) == shown(whole)[-1:]


def test_real_footage_apart() -> None:
    path = real_clip("bikes.mp4")
    frames, report = apart(path, IntervalPolicy(1.0), threads=0)
    assert [round(frame.t_s) for frame in frames] == list(range(10))
    assert replace(report, last_pts=None) == DecodeReport(250, 10, 0, 0, False, None, 250, 250)
