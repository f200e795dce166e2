"""Live decoders apart: no stream gets past the limits of its process, and none harms another."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import psutil
import pytest

from tests.conftest import Services
from tests.feed_faults import wrong_gaps
from tests.feeding import feed_context, feed_worker, frame_times, gap_rows, until
from tests.parts import sql
from tests.rtsp_server import Camera, encoded
from worker.context import Context
from worker.core.sampling import ChangePolicy, IntervalPolicy, SamplingPolicy
from worker.core.types import SizePx
from worker.errors import FeedFailed, SetupFailed
from worker.feeds import add_feed
from worker.video import live_decoders, live_feed
from worker.video.address import AddressRules
from worker.video.camera_link import RedirectWatch
from worker.video.decoding import decoder_env, network_of_decoders
from worker.video.live_decoders import LiveDecoders
from worker.video.live_feed import LiveFeed, open_live
from worker.video.live_values import LiveOptions, LivePicture

MARKER = "hunter2MARKER"
RULES = AddressRules(("rtsp", "http"), ("127.0.0.0/8", "::1"), None)
EVERY_S = 0.5


def options(policy: SamplingPolicy | None = None, **given: Any) -> LiveOptions:
    settings = {"stall_s": 1.5, "max_px": 10**6, "picture_max_side_px": 160} | given
    return LiveOptions(policy or IntervalPolicy(0.1), SizePx(32, 48), rules=RULES, **settings)


@contextmanager
def opened(
    camera: Camera, policy: SamplingPolicy | None = None, decoders: LiveDecoders | None = None
) -> Iterator[LiveFeed]:
    video = open_live(camera.url, options(policy), "feed x", decoders=decoders)
    try:
        yield video
    finally:
        video.close()


def next_picture(video: LiveFeed) -> LivePicture:
    while True:
        picture = video.step()
        if picture is not None:
            return picture


@contextmanager
def failing(what: str) -> Iterator[LiveDecoders]:
    """Decoders that do something else than decode at pictures 208 wide."""
    command = [sys.executable, "-P", "-m", "tests.video.bad_live", what]
    decoders = LiveDecoders(lambda fd: [*command, str(fd)])
    try:
        yield decoders
    finally:
        decoders._end()


def forker_of(decoders: LiveDecoders) -> psutil.Process:
    assert decoders._forker is not None
    return psutil.Process(decoders._forker.pid)


def failure(camera: Camera, decoders: LiveDecoders | None = None) -> FeedFailed:
    """Why it cannot be read."""
    with pytest.raises(FeedFailed) as failed, opened(camera, decoders=decoders) as video:
        while True:
            next_picture(video)
            video.pixels(SizePx(32, 48))
    return failed.value


def failure_of(what: str) -> FeedFailed:
    """Of a camera whose pictures, 208 wide, have its decoder do that."""
    bad = Camera(clip=encoded(208, 160), user="ris", password=MARKER)
    with failing(what) as decoders, bad as camera:
        failed = failure(camera, decoders)
        forker = forker_of(decoders)
        until(lambda: forker.children() == [], what="the end of the decoder")
    return failed


def test_pictures_come_through_in_the_size_asked_for() -> None:
    with Camera() as camera, opened(camera) as video:
        first = next_picture(video)
        assert (first.keyframe, first.damaged, first.gray_hw) == (True, False, None)
        assert first.info.coded_size == SizePx(128, 160)
        img_input_hwc, img_picture_hwc = video.pixels(SizePx(32, 48))
        assert (img_input_hwc.shape, img_picture_hwc.shape) == ((32, 48, 3), (128, 160, 3))
        np.testing.assert_allclose(img_picture_hwc[4, 4], (60, 60, 60), atol=6)
        second = next_picture(video)
        assert second.stream_s == pytest.approx(0.1)
        assert second.info is first.info
        assert video.pixels(SizePx(64, 64))[0].shape == (64, 64, 3)  # another backbone went live
        assert abs(second.arrival_s - time.time()) < 5


def test_policies_that_compare_are_given_grey_pictures() -> None:
    with Camera() as camera, opened(camera, ChangePolicy(4.0, 60.0, 0.1)) as video:
        gray_hw = next_picture(video).gray_hw
    assert gray_hw is not None
    assert gray_hw.shape == (51, 64)
    assert gray_hw.dtype == np.float32
    assert gray_hw[2, 2] == pytest.approx(60, abs=6)


WRONGS = {
    "crashed": "SIGSEGV",
    "left": "status 3",
    "greedy": "memory",
    "unforeseen": "ZeroDivisionError",
    "asleep": "hung",
    "busy": "hung|SIGXCPU",
    "noise": "nonsense",
    "long": "nonsense",
    "not a number": "nonsense",
    "large": "nonsense",
    "reading": "errno 13",
    "writing": "errno 13",
    "opening": "errno 24",
}
"""What a stream may make its decoder do, and how that is told."""


def test_a_decoder_that_fails_is_a_failure_of_its_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_feed, "_GRACE_S", 0.5)
    with ThreadPoolExecutor(len(WRONGS)) as threads:
        found = dict(zip(WRONGS, threads.map(failure_of, WRONGS), strict=True))
    assert {failed.reason for failed in found.values()} == {"decoder_killed"}
    for what, told in WRONGS.items():
        assert any(word in str(found[what]) for word in told.split("|")), found[what]


def test_a_decoder_reaches_its_camera_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    if network_of_decoders() != "none":
        pytest.skip("this kernel lets no unprivileged process leave the network")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        env = {**decoder_env(), "HOST": "127.0.0.1", "PORT": port}
        monkeypatch.setattr(live_decoders, "decoder_env", lambda: env)
        assert "errno 13" in str(failure_of("connecting"))  # Landlock: not that port


def test_a_decoder_has_no_settings_and_tells_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIS_DATABASE_URL", "postgresql://ris:secret@host/ris")
    told = str(failure_of("environment"))
    assert "LC_ALL" in told
    assert "RIS_" not in told
    failed = failure_of("telling")
    assert failed.reason == "auth"
    assert MARKER not in str(failed)


def test_no_process_and_no_descriptor_is_left() -> None:
    with failing("nothing") as decoders, Camera() as camera:
        with opened(camera, decoders=decoders) as video:
            next_picture(video)
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        for _ in range(3):
            with opened(camera, decoders=decoders) as video:
                next_picture(video)
                assert len(os.listdir(f"/proc/{video.pid}/fd")) < 16  # noqa: PTH208
            assert forker_of(decoders).children() == []
        assert len(os.listdir("/proc/self/fd")) <= before + 2  # noqa: PTH208


def test_decoders_end_with_their_worker() -> None:
    code = (
        "import os, signal, sys\n"
        "from tests.rtsp_server import Camera\n"
        "from worker.core.sampling import IntervalPolicy\n"
        "from worker.core.types import SizePx\n"
        "from worker.video.address import AddressRules\n"
        "from worker.video.live_decoders import DECODERS\n"
        "from worker.video.live_feed import open_live\n"
        "from worker.video.live_values import LiveOptions\n"
        "rules = AddressRules(('rtsp',), ('127.0.0.0/8',), None)\n"
        "options = LiveOptions(IntervalPolicy(1), SizePx(32, 32), 160, 10**6, 9.0, rules)\n"
        "with Camera() as camera:\n"
        "    video = open_live(camera.url, options, 'feed x')\n"
        "    while video.step() is None: pass\n"
        "    print(video.pid, DECODERS._forker.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    for pid in map(int, done.stdout.splitlines()[-1].split()):
        until(partial(_over, pid), what="the end of a process")


def _over(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_forker_that_is_gone_is_started_again() -> None:
    with failing("nothing") as decoders, Camera() as camera:
        with opened(camera, decoders=decoders) as video:
            next_picture(video)
            forker_of(decoders).kill()
            with pytest.raises(FeedFailed) as failed:
                while True:
                    video.step()
        assert failed.value.reason == "decoder_killed"
        with opened(camera, decoders=decoders) as video:
            next_picture(video)


def test_a_program_that_does_not_start_is_no_fault_of_the_camera() -> None:
    decoders = LiveDecoders(lambda _fd: [sys.executable, "-c", ""])
    with Camera() as camera, pytest.raises(SetupFailed, match="does not start"):
        open_live(camera.url, options(), "feed x", decoders=decoders)


@pytest.mark.parametrize("host", ["10.0.0.7", "fd00::7", "127.0.0.9", "::1"])
def test_ffmpeg_finds_the_cameras_own_address_in_a_network_of_its_own(host: str) -> None:
    if network_of_decoders() != "none":
        pytest.skip("this kernel lets no unprivileged process leave the network")
    code = (
        "import socket, sys\n"
        "from worker.video.camera_link import listen_as\n"
        "from worker.video.confinement import leave_network\n"
        "where = (sys.argv[1], 554)\n"
        "assert leave_network()\n"
        "with listen_as(where, alone=True) as listener:\n"
        "    assert listener.getsockname()[:2] == where\n"
        "    socket.create_connection(where, 1).close()\n"
    )
    subprocess.run([sys.executable, "-c", code, host], check=True)


@pytest.mark.parametrize("what", ["nothing", "no name space"])
def test_a_camera_that_sends_elsewhere_is_not_followed(what: str) -> None:
    """Also where the kernel or a container lets no process leave the network."""
    with failing(what) as decoders, Camera() as other, Camera() as camera:
        with opened(camera, decoders=decoders) as video:
            next_picture(video)
        camera.faults.redirect_to = other.url
        failed = failure(camera, decoders)
        assert (camera.connections, other.connections) == (2, 0)
    assert failed.reason == "refused"
    assert "not followed" in str(failed)


@pytest.mark.parametrize(
    "told",
    [
        b"RTSP/1.0 302 Found\r\nLocation: rtsp://127.0.0.1/\r\n\r\n",
        b"\r\nRTSP/1.0 301 Moved\r\n\r\n",
        b"RTSP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n12345RTSP/1.1  305 X\r\n\r\n",
        b"$\x00\x00\x0412\r\nRTSP/1.0 302 Found\r\n\r\n",
        b"x" * 70_000,
    ],
)
@pytest.mark.parametrize("piece", [1, 7, 100_000])
def test_redirects_are_seen_however_they_come(told: bytes, piece: int) -> None:
    watch = RedirectWatch()
    seen = [watch.answers(memoryview(told[at : at + piece])) for at in range(0, len(told), piece)]
    assert seen[-1]


def test_what_is_no_redirect_is_let_through() -> None:
    watch = RedirectWatch()
    body = b"RTSP/1.0 302 Found\r\n\r\n"
    head = f"RTSP/1.0 200 OK\r\nContent-length: {len(body)}\r\n\r\n".encode()
    assert not watch.answers(memoryview(head + body))
    assert not watch.asks(memoryview(b"PLAY rtsp://h/ RTSP/1.0\r\n\r\n"))
    assert not watch.answers(memoryview(b"RTSP/1.0 302 Found\r\n\r\n"))  # FFmpeg goes nowhere now


@pytest.fixture(scope="module")
def shared(
    services: Services, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Context]:
    folder = tmp_path_factory.mktemp("live-decoders")
    with feed_context(services, template_database, folder, job_slice_s=30.0) as made:
        yield made


@pytest.fixture
def context(shared: Context) -> Context:
    sql(shared, "truncate jobs, cameras cascade")
    return shared


def trouble(context: Context, camera: str) -> object:
    statement = (
        "select error_code from feed_status s join feeds f on f.id = feed_id"
        " join cameras c on c.id = camera_id where c.name = %s"
    )
    return sql(context, statement, camera)[0][0]


@pytest.fixture
def bad(monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveDecoders]:
    """Have the decoders of this process crash at pictures 208 wide."""
    with failing("crashed") as decoders:
        monkeypatch.setattr(live_feed, "DECODERS", decoders)
        yield decoders


def test_a_stream_that_kills_its_decoder_is_a_gap_of_its_feed_alone(
    context: Context, bad: LiveDecoders
) -> None:
    with Camera() as good, Camera() as evil, feed_worker(context):
        for name, camera in (("good", good), ("evil", evil)):
            add_feed(context, name, camera.url, IntervalPolicy(EVERY_S))
        until(lambda: len(frame_times(context, "evil")) >= 3, what="frames before")
        evil.clip = encoded(208, 160)
        until(lambda: trouble(context, "evil") == "decoder_killed", what="the trouble")
        before = len(frame_times(context, "good"))
        until(lambda: len(frame_times(context, "good")) >= before + 6, what="the other's frames")
        assert trouble(context, "evil") == "decoder_killed"  # tried again, and killed again
        evil.clip = encoded()
        stands = len(frame_times(context, "evil"))
        until(lambda: len(frame_times(context, "evil")) >= stands + 3, what="frames again")
        assert good.connections == 1
    assert [reason for *_, reason in gap_rows(context, "evil")] == ["decoder_killed", "stopped"]
    assert [reason for *_, reason in gap_rows(context, "good")] == ["stopped"]
    for name in ("good", "evil"):
        assert wrong_gaps(context, name, EVERY_S) == []


def test_a_killed_decoder_is_followed_by_another(context: Context, bad: LiveDecoders) -> None:
    """kill -9 of the process, as an administrator or a machine without memory does."""
    with Camera() as camera, feed_worker(context):
        add_feed(context, "killed", camera.url, IntervalPolicy(EVERY_S))
        until(lambda: len(frame_times(context, "killed")) >= 3, what="frames")
        (decoder,) = forker_of(bad).children()
        decoder.kill()
        before = len(frame_times(context, "killed"))
        until(lambda: len(frame_times(context, "killed")) >= before + 3, what="frames again")
    reasons = [reason for *_, reason in gap_rows(context, "killed")]
    assert reasons == ["decoder_killed", "stopped"]
    assert wrong_gaps(context, "killed", EVERY_S) == []
    assert sql(context, "select count(*), max(attempts) from jobs") == [(1, 0)]
